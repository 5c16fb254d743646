# The server, on the CPU:   docker build -t inferd .
# on NVIDIA GPUs:           docker build -t inferd:gpu --build-arg EXTRA=gpu .
# on another base:          --build-arg BASE=... (Debian or Ubuntu with python3 >= 3.11; the build stage needs its venv and pip)

ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG EXTRA=server
WORKDIR /src
RUN python3 -m venv /opt/inferd
COPY requirements/build.txt requirements/${EXTRA}.txt requirements/
# Pinned and hash-checked, the build's own tools too; those stay behind in their folder.
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check --require-hashes --target /build-tools \
        -r requirements/build.txt \
 && /opt/inferd/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes \
        -r requirements/${EXTRA}.txt
COPY pyproject.toml README.md ./
COPY protos protos
COPY client client
COPY server server
COPY training training
# The wheel, then only what serving needs of it: no training code, no pip.
RUN PYTHONPATH=/build-tools python3 -m hatchling build -t wheel -d /dist \
 && /opt/inferd/bin/python -m pip install --no-deps --no-index --no-cache-dir --disable-pip-version-check /dist/*.whl \
 && rm -rf /opt/inferd/lib/python3*/site-packages/inferd_training \
 && /opt/inferd/bin/python -m pip uninstall --yes --quiet setuptools pip

FROM ${BASE}
LABEL org.opencontainers.image.title="inferd" \
      org.opencontainers.image.description="Serves ONNX models over gRPC (Open Inference Protocol)"
COPY --from=build /opt/inferd /opt/inferd
ENV PATH=/opt/inferd/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8001 8002
VOLUME /models
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["inferd", "health"]
ENTRYPOINT ["inferd"]
CMD ["serve", "--model-repository", "/models", "--grpc-address", "0.0.0.0", "--log-format", "json"]
