"""`inferd infer` and `inferd score` against a server in the same process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.command import main
from inferd_protocol.datatypes import BYTES
from inferd_protocol.tensors import encode_raw
from numpy.lib import format as npy
from PIL import Image
from stub_server import SECONDS, Held, StubServer, metadata, refuse

LABELS = ("dark", "light")
Run = Callable[..., tuple[int, str, str]]


def brightness(request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
    """image uint8 [n, 2, 2, 1] -> p float [n, 2]: how dark, how light. With labels."""
    (image,) = request.inputs
    assert image.datatype == "UINT8"
    pixels = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(image.shape[0], -1)
    light = (pixels.mean(axis=1) / 255).astype(np.float32)
    p = np.stack([1 - light, light], axis=1)
    response = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    if request.outputs and "classification" in request.outputs[0].parameters:
        count = min(request.outputs[0].parameters["classification"].int64_param, 2)
        rows = [[f"{row[i]:f}:{i}:{LABELS[i]}".encode() for i in np.argsort(-row)[:count]] for row in p]
        response.outputs.add(name="p", datatype="BYTES", shape=[len(p), count])
        response.raw_output_contents.append(encode_raw(np.array(rows, object), BYTES))
    else:
        response.outputs.add(name="p", datatype="FP32", shape=p.shape)
        response.raw_output_contents.append(p.tobytes())
    return response


def without_classification(request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
    if request.outputs and "classification" in request.outputs[0].parameters:
        refuse(grpc.StatusCode.UNIMPLEMENTED, "no classification")(request, context)
    return brightness(request, context)


@pytest.fixture
def server(stub: StubServer) -> StubServer:
    described = metadata(name="m", inputs={"image": ("UINT8", [-1, 2, 2, 1])}, outputs={"p": ("FP32", [-1, 2])})
    stub.default["ModelMetadata"] = lambda request, context: described
    stub.default["ModelInfer"] = brightness
    return stub


@pytest.fixture
def run(server: StubServer, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(name: str, *arguments: object) -> tuple[int, str, str]:
        options = ["--model", "m", "--server", server.address]
        status = main([name, *map(str, arguments), *options])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (30, 20), (51, 51, 51)).save(path)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, np.arange(100 * 4, dtype=np.int64).reshape(100, 2, 2).astype(np.uint8))
    return path


class TestInfer:
    def test_a_picture(self, run: Run, picture: Path) -> None:
        assert run("infer", picture) == (0, "dark   0.8000\nlight  0.2000\n", "")

    def test_inverted_and_the_best_only(self, run: Run, picture: Path) -> None:
        assert run("infer", picture, "--invert", "--top", 1) == (0, "light  0.8000\n", "")

    def test_json(self, run: Run, picture: Path) -> None:
        status, out, _ = run("infer", picture, "--json", "--top", 1)
        assert status == 0
        assert json.loads(out) == {
            "model": "m",
            "version": "1",
            "output": "p",
            "rows": [[{"index": 0, "label": "dark", "value": 0.8}]],
        }

    @pytest.mark.parametrize("shape", [(2, 2), (2, 2, 1), (1, 2, 2, 1)])
    def test_one_row_as_npy(self, run: Run, tmp_path: Path, shape: tuple[int, ...]) -> None:
        np.save(tmp_path / "row.npy", np.full(shape, 51, np.uint8))
        assert run("infer", tmp_path / "row.npy", "--top", 1)[1] == "dark  0.8000\n"

    def test_several_rows(self, run: Run, tmp_path: Path) -> None:
        np.save(tmp_path / "row.npy", np.array([0, 255], np.uint8).repeat(4).reshape(2, 2, 2))
        out = run("infer", tmp_path / "row.npy", "--top", 1)[1]
        assert out == "row 0\ndark   1.0000\nrow 1\nlight  1.0000\n"

    def test_a_server_without_classification(self, server: StubServer, run: Run, picture: Path) -> None:
        server.default["ModelInfer"] = without_classification
        assert run("infer", picture) == (0, "class 0  0.8000\nclass 1  0.2000\n", "")

    def test_a_server_that_ignores_classification(self, server: StubServer, run: Run, picture: Path) -> None:
        def ignorant(request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
            request.outputs[0].parameters.clear()
            return brightness(request, context)

        server.default["ModelInfer"] = ignorant
        out = run("infer", picture, "--json", "--top", 1)[1]
        assert json.loads(out)["rows"][0][0] == {"index": 0, "label": None, "value": pytest.approx(0.8)}

    def test_an_output_that_has_no_classes(self, server: StubServer, run: Run, picture: Path) -> None:
        described = metadata(name="m", inputs={"image": ("UINT8", [-1, 2, 2, 1])}, outputs={"p": ("FP32", [-1, 1, 2])})
        server.default["ModelMetadata"] = lambda request, context: described
        assert run("infer", picture)[1] == "[[0.8 0.2]]\n"
        assert json.loads(run("infer", picture, "--json")[1])["values"] == [pytest.approx([0.8, 0.2])]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["no.png"], "cannot read no.png: "),
            (["no.npy"], "cannot read no.npy as an array: "),
            (["{picture}", "--output", "q"], "model 'm' has no output 'q': it has p"),
            (["{picture}", "--input", "q"], "model 'm' has no input 'q': it has image"),
            (["{picture}", "--scale", "1/255"], "--scale is for numbers and an input of floats"),
            (["{rows}", "--tls-root", "no.pem"], "cannot read no.pem: No such file"),
            (["{rows}", "--tls-key", "{rows}"], "--tls-certificate and --tls-key are given together"),
            (["{rows}", "--token-file", "no.txt"], "cannot read no.txt: No such file"),
        ],
    )
    def test_mistakes_are_one_line(
        self, run: Run, picture: Path, rows: Path, arguments: list[str], message: str
    ) -> None:
        status, out, err = run("infer", *(argument.format(picture=picture, rows=rows) for argument in arguments))
        assert (status, out) == (1, "")
        assert err.startswith(f"inferd infer: {message}")
        assert err.count("\n") == 1

    def test_what_the_server_refuses_is_one_line(self, server: StubServer, run: Run, picture: Path) -> None:
        server.default["ModelMetadata"] = refuse(grpc.StatusCode.NOT_FOUND, "no model 'm'")
        assert run("infer", picture) == (1, "", "inferd infer: no model 'm'\n")

    @pytest.mark.parametrize("wrong", [["--scale", "x"], ["--scale", "1/0"], ["--top", "0"], ["--top", "x"]])
    def test_wrong_usage(self, picture: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["infer", str(picture), "--model", "m", *wrong])
        assert ended.value.code == 2
        assert f"argument {wrong[0]}" in capsys.readouterr().err

    def test_tokens(
        self, server: StubServer, run: Run, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("INFERD_TOKEN", "of the environment".replace(" ", "-"))
        run("infer", picture)
        assert server.metadata[-1]["authorization"] == "Bearer of-the-environment"
        (tmp_path / "token").write_text("of-the-file\n")
        run("infer", picture, "--token-file", tmp_path / "token")
        assert server.metadata[-1]["authorization"] == "Bearer of-the-file"


class TestScore:
    @pytest.fixture
    def out(self, tmp_path: Path) -> Path:
        folder = tmp_path / "out"
        folder.mkdir()
        return folder

    def test_csv(self, run: Run, rows: Path, out: Path) -> None:
        status, text, err = run("score", rows, "--output", out / "o.csv", "--batch-size", 7, "--concurrency", 3)
        assert (status, err) == (0, "")
        assert text.startswith("100 rows in ")
        assert text.endswith(f"rows/s: {out / 'o.csv'}\n")
        lines = (out / "o.csv").read_text().splitlines()
        assert len(lines) == 101
        assert lines[0] == "row,predicted,label,p_0,p_1"
        assert lines[1].startswith('0,0,"dark",0.99411')
        assert [line.split(",")[0] for line in lines[1:]] == [str(number) for number in range(100)]

    def test_npy_in_order_whatever_the_batches(self, run: Run, rows: Path, out: Path) -> None:
        expected = np.load(rows).reshape(100, 4).mean(axis=1) / 255
        for size, concurrency in ((1, 1), (7, 5), (64, 4), (1000, 2)):
            status = run("score", rows, "--output", out / "o.npy", "--batch-size", size, "--concurrency", concurrency)[
                0
            ]
            assert status == 0
            np.testing.assert_allclose(np.load(out / "o.npy")[:, 1], expected, rtol=1e-6)

    def test_a_folder(self, run: Run, tmp_path: Path, out: Path) -> None:
        folder = tmp_path / "pictures"
        folder.mkdir()
        for name, grey in (("b.png", 255), ("a.png", 0)):
            Image.new("L", (5, 5), grey).save(folder / name)
        assert run("score", folder, "--output", out / "o.csv")[0] == 0
        assert (out / "o.csv").read_text() == (
            'file,predicted,label,p_0,p_1\n"a.png",0,"dark",1,0\n"b.png",1,"light",0,1\n'
        )

    def test_without_labels(self, server: StubServer, run: Run, rows: Path, out: Path) -> None:
        server.default["ModelInfer"] = without_classification
        assert run("score", rows, "--output", out / "o.csv")[0] == 0
        assert (out / "o.csv").read_text().startswith("row,predicted,p_0,p_1\n")

    def test_a_full_queue_is_waited_for(self, server: StubServer, run: Run, rows: Path, out: Path) -> None:
        full = refuse(grpc.StatusCode.UNAVAILABLE, "the queue is full", "queue_full")
        server.script["ModelInfer"] = [full, brightness, full, full, brightness]
        assert run("score", rows, "--output", out / "o.npy", "--batch-size", 10)[0] == 0
        assert len(np.load(out / "o.npy")) == 100

    @pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT])
    def test_a_failure_says_where_and_leaves_nothing(
        self, server: StubServer, run: Run, rows: Path, out: Path, code: grpc.StatusCode
    ) -> None:
        server.script["ModelInfer"] = [brightness, brightness, brightness, refuse(code, "broken")]
        status, _, err = run("score", rows, "--output", out / "o.csv", "--batch-size", 10, "--concurrency", 1)
        assert (status, err) == (1, "inferd score: broken, from 20 on\n")
        assert list(out.iterdir()) == []

    def test_rows_that_do_not_fit(self, run: Run, tmp_path: Path, out: Path) -> None:
        np.save(tmp_path / "wrong.npy", np.zeros((5, 3, 3), np.uint8))
        status, _, err = run("score", tmp_path / "wrong.npy", "--output", out / "o.csv")
        assert status == 1
        assert "rows of shape [3, 3] do not fit input 'image' of shape [-1, 2, 2, 1]" in err
        assert list(out.iterdir()) == []

    def test_an_answer_with_too_few_rows(self, server: StubServer, run: Run, rows: Path, out: Path) -> None:
        def short(request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
            response = brightness(request, context)
            response.outputs[0].shape[0] -= 1
            response.raw_output_contents[0] = response.raw_output_contents[0][8:]
            return response

        server.script["ModelInfer"] = [brightness, brightness, short]
        status, _, err = run("score", rows, "--output", out / "o.csv", "--batch-size", 10, "--concurrency", 1)
        assert (status, err) == (1, "inferd score: output 'p' has shape [9, 2], expected [10, 2], from 10 on\n")

    def test_a_model_without_batches(self, server: StubServer, run: Run, rows: Path, out: Path) -> None:
        described = metadata(name="m", inputs={"image": ("UINT8", [1, 2, 2, 1])}, outputs={"p": ("FP32", [1, 2])})
        server.default["ModelMetadata"] = lambda request, context: described
        status, _, err = run("score", rows, "--output", out / "o.csv")
        assert (status, err) == (1, "inferd score: model 'm' takes no batches: export it with a dynamic first axis\n")

    def test_an_extension_that_is_none_is_refused_before_anything_is_asked(
        self, server: StubServer, run: Run, rows: Path, out: Path
    ) -> None:
        assert run("score", rows, "--output", out / "o.xls")[0] == 1
        assert server.requests == []

    @pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupted_job_leaves_nothing_and_cancels(
        self, server: StubServer, rows: Path, out: Path, signalled: signal.Signals
    ) -> None:
        held = Held(brightness)
        server.script["ModelInfer"] = [brightness, brightness, held]
        command = ["score", rows, "--output", out / "o.csv", "--model", "m", "--server", server.address]
        # As in a terminal: tests that run in the background may have SIGINT ignored, which children inherit.
        program = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from inferd_protocol.command import main; sys.exit(main(sys.argv[1:]))"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, *command, "--batch-size", "10", "--concurrency", "1"],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert held.arrived.acquire(timeout=SECONDS)
            assert len(list(out.iterdir())) == 1  # the unfinished file
            process.send_signal(signalled)
            _, err = process.communicate(timeout=SECONDS)
            assert (process.returncode, err) == (130, "inferd score: interrupted\n")
            assert list(out.iterdir()) == []
            assert held.cancelled.wait(SECONDS)
        finally:
            held.let_go()
            process.kill()
            process.wait(SECONDS)

    def test_a_million_rows_are_never_held(self, server: StubServer, tmp_path: Path, out: Path) -> None:
        """784 MB of rows, in a file with a hole, and a process that stays far below."""
        described = metadata(name="m", inputs={"x": ("UINT8", [-1, 784])}, outputs={"y": ("FP32", [-1, 1])})
        server.default["ModelMetadata"] = lambda request, context: described

        def zeros(request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
            count = request.inputs[0].shape[0]
            response = pb.ModelInferResponse(model_name="m", model_version="1")
            response.outputs.add(name="y", datatype="FP32", shape=[count, 1])
            response.raw_output_contents.append(bytes(4 * count))
            return response

        server.default["ModelInfer"] = zeros
        path, rows = tmp_path / "rows.npy", 1_000_000
        with path.open("wb") as file:
            npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (rows, 784)})
            file.truncate(file.tell() + rows * 784)
        # Not ru_maxrss: Linux carries the parent's peak over into it, and a test worker may hold gigabytes.
        program = (
            "import re, sys; from pathlib import Path; from inferd_protocol.command import main; "
            "status = main(sys.argv[1:]); "
            "print(int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) // 1024); "
            "sys.exit(status)"
        )
        command = ["score", path, "--output", out / "o.parquet", "--model", "m", "--server", server.address]
        result = subprocess.run(
            [sys.executable, "-c", program, *command, "--batch-size", "4096"],
            capture_output=True,
            text=True,
            check=True,
            timeout=240,
        )
        assert result.stdout.startswith("1000000 rows in ")
        assert int(result.stdout.splitlines()[-1]) < 400
