#!/usr/bin/env bash
# Builds and runs the image with what is there: docker, podman, or buildah without any engine.
#   deploy/image.sh build                    builds inferd:local
#   deploy/image.sh size                     prints the bytes of the image's file system, unpacked
#   deploy/image.sh run REPOSITORY PORT      serves REPOSITORY on 127.0.0.1:PORT, in the foreground
#
# BASE        the base image; buildah without one makes its own with debootstrap
# EXTRA       server (default) or gpu
# BUILD_ARGS  more arguments for the build, e.g. a mount of the machine's certificates
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGE=inferd:local
EXTRA=${EXTRA:-server}
read -r -a BUILD_ARGS <<<"${BUILD_ARGS:-}"

engine() {
    for candidate in docker podman; do
        if command -v "$candidate" >/dev/null && "$candidate" info >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    if command -v buildah >/dev/null; then
        echo buildah
        return
    fi
    echo "an image needs docker, podman or buildah: install one of them" >&2
    exit 1
}

# buildah without an engine: files instead of an overlay, chroot instead of namespaces, layers under build/.
buildah() {
    STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot BUILDAH_FORMAT=docker command buildah "$@"
}

debian_base() {
    if buildah images --quiet inferd-base:bookworm >/dev/null 2>&1; then return; fi
    local rootfs=build/base-rootfs
    if [ ! -f "$rootfs/.complete" ]; then
        command -v debootstrap >/dev/null || { echo "a base image is needed: set BASE, or install debootstrap" >&2; exit 1; }
        rm -rf "$rootfs"
        mkdir -p "$(dirname "$rootfs")"
        debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm "$rootfs" >&2
        rm -rf "$rootfs"/var/cache/apt/archives/*.deb "$rootfs"/var/lib/apt/lists/* "$rootfs"/usr/share/doc/*
        touch "$rootfs/.complete"
    fi
    local container
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$rootfs" / >/dev/null
    buildah commit --quiet --rm "$container" inferd-base:bookworm >/dev/null
}

ENGINE=$(engine)
case "${1:-}" in
build)
    if [ "$ENGINE" = buildah ]; then
        [ -n "${BASE:-}" ] || { debian_base; BASE=localhost/inferd-base:bookworm; }
        buildah build --pull-never --layers --tag "$IMAGE" --build-arg "EXTRA=$EXTRA" --build-arg "BASE=$BASE" \
            "${BUILD_ARGS[@]}" .
    else
        "$ENGINE" build --tag "$IMAGE" --build-arg "EXTRA=$EXTRA" ${BASE:+--build-arg "BASE=$BASE"} "${BUILD_ARGS[@]}" .
    fi
    ;;
size)
    if [ "$ENGINE" = buildah ]; then
        container=$(buildah from --pull-never "$IMAGE")
        du --summarize --block-size=1 "$(buildah mount "$container")" | cut -f1
        buildah rm "$container" >/dev/null
    else
        "$ENGINE" image inspect --format '{{.Size}}' "$IMAGE"
    fi
    ;;
run)
    repository=$(realpath "$2")
    serve=(serve --model-repository /models --log-format json)
    if [ "$ENGINE" = buildah ]; then
        container=$(buildah from --pull-never "$IMAGE")
        trap 'buildah rm "$container" >/dev/null' EXIT
        root=$(buildah mount "$container")
        # buildah run keeps signals to itself, so the server is the child here: same files, same user, same command.
        mkdir -p "$root/models"
        mount --bind -o ro "$repository" "$root/models"
        trap 'umount "$root/models"; buildah rm "$container" >/dev/null' EXIT
        chroot --userspec=10001:10001 "$root" /usr/bin/env -i PATH=/opt/inferd/bin:/usr/bin:/bin \
            inferd "${serve[@]}" --grpc-address 127.0.0.1 --grpc-port "$3" --metrics-port 0 &
        server=$!
        trap 'kill -TERM $server' TERM INT
        wait $server || true
        status=0
        wait $server || status=$?
        exit $status
    fi
    exec "$ENGINE" run --rm --init=false --publish "127.0.0.1:$3:8001" --volume "$repository:/models:ro" "$IMAGE" \
        "${serve[@]}" --grpc-address 0.0.0.0
    ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
