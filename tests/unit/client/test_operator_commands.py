"""`inferd models`, `stats`, `load`, `unload` and `label` against a server in the same process."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from inferd_client import Duration, ModelConfig, ModelIndex, ModelStatistics
from inferd_client.commands import columns, models, rates
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.command import main
from stub_server import SECONDS, Handler, StubServer, counters, index, refuse, statistics

Run = Callable[..., tuple[int, str, str]]
MISSING = refuse(grpc.StatusCode.UNIMPLEMENTED, "this server does not have it")


@pytest.fixture
def run(stub: StubServer, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: object) -> tuple[int, str, str]:
        status = main([*map(str, arguments), "-u", stub.address])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def version(name: str = "m", number: str = "1", **counted: Any) -> ModelStatistics:
    return ModelStatistics(name, number, **counted)


class TestRates:
    def test_looks_are_in_order_of_name_and_number(self) -> None:
        looked = rates.look([version("b", "1"), version("a", "10"), version("a", "9"), version("a", "")])
        assert list(looked) == [("a", ""), ("a", "9"), ("a", "10"), ("b", "1")]

    def test_what_was_counted_between_two_looks(self) -> None:
        before = version(rows=100, executions=10, success=Duration(20, 9), fail=Duration(1, 0), queue=Duration(20, 5))
        after = version(rows=150, executions=12, success=Duration(27, 16), fail=Duration(3, 0), queue=Duration(27, 12))
        ((_, counted),) = rates.between(rates.look([before]), rates.look([after])).items()
        assert (counted.rows, counted.executions) == (50, 2)
        assert (counted.success, counted.fail, counted.queue) == (Duration(7, 7), Duration(2, 0), Duration(7, 7))

    @pytest.mark.parametrize("before", [[], [version(rows=1000, executions=9)], [version(fail=Duration(1, 0))]])
    def test_a_version_that_is_new_or_loaded_anew_counts_from_zero(self, before: list[ModelStatistics]) -> None:
        after = version(rows=150, executions=12)
        assert rates.between(rates.look(before), rates.look([after])) == {("m", "1"): after}

    def test_a_version_that_has_gone_is_gone(self) -> None:
        assert rates.between(rates.look([version()]), rates.look([])) == {}

    def test_means_are_microseconds_a_request_and_rows_an_execution(self) -> None:
        counted = version(
            rows=30,
            executions=4,
            success=Duration(10, 0),
            fail=Duration(2, 0),
            queue=Duration(10, 1_000_000),
            compute_input=Duration(10, 20_000),
            compute_infer=Duration(10, 5_000_000),
        )
        (used,) = rates.usage(rates.look([counted]), {("m", "1"): 15.0})
        assert used == rates.Usage("m", "1", 10, 2, 30, 7.5, 100.0, 2.0, 500.0, None, 15.0)

    def test_what_did_nothing_has_no_means(self) -> None:
        (used,) = rates.usage(rates.look([version()]), {})
        assert used == rates.Usage("m", "1", 0, 0, 0, None, None, None, None, None, None)

    def test_rows_a_second(self) -> None:
        assert rates.rows_per_second(rates.look([version(rows=30)]), 2.0) == {("m", "1"): 15.0}


class TestColumns:
    def test_columns_line_up_and_numbers_end_on_the_right(self) -> None:
        assert columns.lines(("NAME", "N"), [("a", "1"), ("longer", "1000")], numbers=("N",)) == [
            "NAME       N",
            "a          1",
            "longer  1000",
        ]

    def test_a_cell_stays_on_its_line_and_nothing_is_a_dash(self) -> None:
        assert columns.lines(("A", "B"), [("one\n two\r", "")]) == ["A        B", "one two  -"]

    @pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.0, "0.0"), (99.94, "99.9"), (12345.6, "12346")])
    def test_numbers(self, value: float | None, text: str) -> None:
        assert columns.number(value) == text


class TestModelRows:
    CONFIG = ModelConfig("m", "", "", 0, {"stable": 3, "blue": 3, "canary": 4}, "CPUExecutionProvider", {})

    def test_labels_are_shown_at_the_version_that_they_stand_for(self) -> None:
        versions = [ModelIndex("m", number, "READY", "") for number in ("10", "4", "3")]
        found = models.rows(versions, {("m", number): self.CONFIG for number in ("3", "4", "10")}, {("m", "3"): 7.0})
        assert [(row.version, row.labels, row.rows_per_second) for row in found] == [
            ("3", ("blue", "stable"), 7.0),
            ("4", ("canary",), None),
            ("10", (), None),
        ]
        assert {row.provider for row in found} == {"CPUExecutionProvider"}

    def test_what_is_not_told_is_none(self) -> None:
        (row,) = models.rows([ModelIndex("m", "", "", "never loaded")], {}, {})
        assert row == models.ModelRow("m", "", None, None, None, None, "never loaded")

    def test_without_an_index_there_are_the_versions_with_statistics(self) -> None:
        (row,) = models.rows(None, {}, {("m", "1"): None})
        assert row == models.ModelRow("m", "1", None, None, None, None, "")


class TestModels:
    @pytest.fixture(autouse=True)
    def busy(self, stub: StubServer) -> None:
        """A version that answers 8 rows between two looks, and one that cannot be loaded."""
        stub.default["RepositoryIndex"] = lambda request, context: index(
            ("mine", "3", "READY", ""), ("broken", "1", "UNAVAILABLE", "model.onnx\nis no model")
        )
        seen = iter(range(1, 1000))

        def growing(request: pb.ModelStatisticsRequest, context: grpc.ServicerContext) -> pb.ModelStatisticsResponse:
            looked = next(seen)
            return statistics(counters("mine", "3", requests=2 * looked, rows=8 * looked))

        stub.default["ModelStatistics"] = growing

    def test_the_table(self, run: Run) -> None:
        assert run("models", "--interval", 0) == (
            0,
            "MODEL   VERSION  STATE        LABELS  PROVIDER              ROWS/S  REASON\n"
            "broken        1  UNAVAILABLE  -       -                          -  model.onnx is no model\n"
            "mine          3  READY        stable  CPUExecutionProvider       -  -\n",
            "",
        )

    def test_rows_a_second_are_of_two_looks(self, run: Run, stub: StubServer) -> None:
        status, out, _ = run("models", "--interval", 0.05, "--json")
        assert status == 0
        broken, mine = json.loads(out)
        assert broken["rows_per_second"] is None
        assert 0 < mine["rows_per_second"] <= 8 / 0.05
        assert stub.names().count("ModelStatistics") == 2

    def test_json(self, run: Run) -> None:
        assert json.loads(run("models", "--json", "--interval", 0)[1])[1] == {
            "model": "mine",
            "version": "3",
            "state": "READY",
            "labels": ["stable"],
            "provider": "CPUExecutionProvider",
            "rows_per_second": None,
            "reason": "",
        }

    @pytest.mark.parametrize(
        ("missing", "line"),
        [
            (["ModelConfig"], "mine          3  READY        -       -              -  -"),
            (["ModelStatistics"], "mine          3  READY        stable  CPUExecutionProvider       -  -"),
            (["ModelConfig", "ModelStatistics"], "mine          3  READY        -       -              -  -"),
            (["RepositoryIndex"], "mine         3  -      stable  CPUExecutionProvider       -  -"),
            (["RepositoryIndex", "ModelConfig"], "mine         3  -      -       -              -  -"),
        ],
    )
    def test_a_server_without_an_rpc(self, run: Run, stub: StubServer, missing: list[str], line: str) -> None:
        for method in missing:
            stub.default[method] = MISSING
        status, out, err = run("models", "--interval", 0)
        assert (status, out.splitlines()[-1].split(), err) == (0, line.split(), "")

    def test_a_server_without_any_list(self, run: Run, stub: StubServer) -> None:
        stub.default["RepositoryIndex"] = stub.default["ModelStatistics"] = MISSING
        status, out, err = run("models")
        assert (status, out) == (1, "")
        assert (
            err == f"inferd models: the server at {stub.address} has no list of models: neither index nor statistics\n"
        )

    @pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT])
    def test_a_version_that_goes_meanwhile_has_no_configuration(
        self, run: Run, stub: StubServer, code: grpc.StatusCode
    ) -> None:
        stub.default["ModelConfig"] = refuse(code, "gone")
        status, out, _ = run("models", "--interval", 0)
        assert (status, out.splitlines()[-1].split()) == (0, ["mine", "3", "READY", "-", "-", "-", "-"])

    def test_a_server_without_models(self, run: Run, stub: StubServer) -> None:
        stub.default["RepositoryIndex"] = lambda request, context: index()
        stub.default["ModelStatistics"] = lambda request, context: statistics()
        assert run("models", "--interval", 0) == (0, "no models\n", "")
        assert run("models", "--interval", 0, "--json") == (0, "[]\n", "")


class TestStats:
    def test_the_table(self, run: Run, stub: StubServer) -> None:
        stub.default["ModelStatistics"] = lambda request, context: statistics(
            counters("mine", "10", requests=0, rows=0),
            counters("mine", "3", requests=2, rows=8, executions=2),
        )
        assert run("stats", "mine", "--interval", 0) == (
            0,
            "MODEL  VERSION  REQUESTS  FAILURES  ROWS  BATCH  QUEUE us  INPUT us  INFER us  OUTPUT us  ROWS/S\n"
            "mine         3         2         1     8    4.0      10.0       1.0       100        2.0       -\n"
            "mine        10         0         1     0    0.0         -         -         -          -       -\n",
            "",
        )
        assert stub.requests == [("ModelStatistics", pb.ModelStatisticsRequest(name="mine"))]

    def test_json_with_the_rows_a_second_of_this_moment(self, run: Run, stub: StubServer) -> None:
        stub.script["ModelStatistics"] = [
            lambda request, context: statistics(counters("m", "1", requests=1, rows=4)),
            lambda request, context: statistics(counters("m", "1", requests=2, rows=8, executions=2)),
        ]
        answered = json.loads(run("stats", "--interval", 0.05, "--json")[1])
        assert answered["seconds"] is None
        (used,) = answered["versions"]
        assert (used["requests"], used["rows"], used["mean_batch_size"]) == (2, 8, 4.0)
        assert 0 < used["rows_per_second"] <= 4 / 0.05

    def test_a_server_without_statistics(self, run: Run, stub: StubServer) -> None:
        stub.default["ModelStatistics"] = MISSING
        for arguments in ([], ["--watch"]):
            assert run("stats", *arguments) == (1, "", "inferd stats: this server does not have it\n")

    def test_a_watch_ends_with_the_server(self, run: Run, stub: StubServer) -> None:
        stub.script["ModelStatistics"] = [stub.default["ModelStatistics"], refuse(grpc.StatusCode.INTERNAL, "broke")]
        status, out, err = run("stats", "--watch", 0.01)
        assert (status, err) == (1, "inferd stats: broke\n")
        assert " since loaded\nMODEL " in out

    @pytest.mark.parametrize("wrong", [["--watch", "0"], ["--watch", "-1"], ["--interval", "x"], ["--watch", "inf"]])
    def test_wrong_usage(self, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["stats", *wrong])
        assert ended.value.code == 2
        assert f"argument {wrong[0]}" in capsys.readouterr().err


def growing() -> Handler:
    """Statistics that are 3 rows more with every look."""
    looks = iter(range(1, 10_000))

    def handler(request: pb.ModelStatisticsRequest, context: grpc.ServicerContext) -> pb.ModelStatisticsResponse:
        looked = next(looks)
        return statistics(counters("m", "1", requests=looked, rows=3 * looked, executions=looked))

    return handler


class TestWatch:
    """In a process of its own, ended by Ctrl-C as in a terminal."""

    # Tests that run in the background may have SIGINT ignored, which children inherit.
    PROGRAM = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from inferd_protocol.command import main; sys.exit(main(sys.argv[1:]))"
    )

    @pytest.fixture
    def start(self, stub: StubServer) -> Iterator[Callable[..., subprocess.Popen[str]]]:
        stub.default["ModelStatistics"] = growing()
        started: list[subprocess.Popen[str]] = []

        def begin(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
            command = ["stats", "--watch", "0.05", *arguments, "-u", stub.address]
            process = subprocess.Popen(
                [sys.executable, "-c", self.PROGRAM, *command], stdout=stdout, stderr=subprocess.PIPE, text=True
            )
            started.append(process)
            return process

        yield begin
        for process in started:
            process.kill()
            process.communicate(timeout=SECONDS)

    def test_lines_of_json_through_a_pipe(self, start: Callable[..., subprocess.Popen[str]]) -> None:
        process = start("--json")
        assert process.stdout is not None
        loaded, first, second = (json.loads(process.stdout.readline()) for _ in range(3))
        assert (loaded["seconds"], loaded["versions"][0]["rows"]) == (None, 3)
        for each in (first, second):
            (used,) = each["versions"]
            assert (used["requests"], used["rows"], used["failures"], used["queue_us"]) == (1, 3, 0, 10.0)
            assert used["rows_per_second"] == pytest.approx(3 / each["seconds"])
            assert each["seconds"] >= 0.05
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, err) == (0, "")

    def test_blocks_through_a_pipe(self, start: Callable[..., subprocess.Popen[str]]) -> None:
        process = start("m")
        assert process.stdout is not None
        block = [process.stdout.readline() for _ in range(8)]
        assert block[0].endswith(" since loaded\n")
        assert (block[3], block[7]) == ("\n", "\n")
        assert " in 0." in block[4]
        assert block[6].split()[:5] == ["m", "1", "1", "0", "3"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, err) == (0, "")
        assert "\x1b" not in "".join(block) + out

    def test_a_terminal_is_drawn_anew(self, start: Callable[..., subprocess.Popen[str]]) -> None:
        master, terminal = pty.openpty()
        process = start(stdout=terminal)
        os.close(terminal)
        shown = b""
        while shown.count(b"\x1b[H\x1b[2J") < 3:
            shown += os.read(master, 1000)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
        os.close(master)
        assert (process.returncode, err) == (0, "")


class TestControl:
    def test_load(self, run: Run, stub: StubServer) -> None:
        assert run("load", "mine") == (0, "mine is loaded\n", "")
        assert stub.requests == [("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="mine"))]

    def test_load_with_a_configuration(self, run: Run, stub: StubServer, tmp_path: Path) -> None:
        (tmp_path / "c.json").write_text('{"max_batch_size": 8}')
        assert run("load", "mine", "--config", tmp_path / "c.json")[0] == 0
        ((_, request),) = stub.requests
        assert request.parameters["config"].string_param == '{"max_batch_size": 8}'

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "cannot read {path}: No such file or directory"),
            (b"\xff", "cannot read {path}: 'utf-8' codec can't decode"),
            (b"{", "{path} is no JSON: "),
            (b"[]", "{path} is expected to hold one JSON object"),
        ],
    )
    def test_a_configuration_that_is_none(
        self, run: Run, stub: StubServer, tmp_path: Path, content: bytes | None, message: str
    ) -> None:
        path = tmp_path / "c.json"
        if content is not None:
            path.write_bytes(content)
        status, out, err = run("load", "mine", "--config", path)
        assert (status, out) == (1, "")
        assert err.startswith(f"inferd load: {message.format(path=path)}")
        assert err.count("\n") == 1
        assert stub.requests == []

    def test_unload(self, run: Run, stub: StubServer) -> None:
        assert run("unload", "mine") == (0, "mine is unloaded\n", "")
        assert run("unload", "mine", "--unload-dependents")[0] == 0
        assert [request.parameters["unload_dependents"].bool_param for _, request in stub.requests] == [False, True]

    def test_label(self, run: Run, stub: StubServer) -> None:
        assert run("label", "mine", "stable", 3) == (0, "label stable of mine is version 3\n", "")
        assert run("label", "mine", "stable", "--remove") == (0, "label stable of mine is removed\n", "")
        assert [request.parameters["label:stable"].int64_param for _, request in stub.requests] == [3, 0]

    @pytest.mark.parametrize("arguments", [["mine", "stable"], ["mine", "stable", "3", "--remove"]])
    def test_a_label_is_set_or_removed(self, run: Run, arguments: list[str]) -> None:
        assert run("label", *arguments) == (
            2,
            "",
            "inferd label: give either the version that the label stands for or --remove\n",
        )

    @pytest.mark.parametrize(
        ("method", "arguments"),
        [
            ("RepositoryModelLoad", ["load", "mine"]),
            ("RepositoryModelUnload", ["unload", "mine"]),
            ("RepositoryModelLoad", ["label", "mine", "stable", "3"]),
        ],
    )
    @pytest.mark.parametrize(
        "refusal",
        [
            refuse(grpc.StatusCode.UNAVAILABLE, "the server's own sentence", "control_off"),
            refuse(grpc.StatusCode.INTERNAL, "the server's own sentence"),
            refuse(grpc.StatusCode.UNIMPLEMENTED, "the server's own sentence"),
        ],
    )
    def test_a_failure_is_the_servers_sentence(
        self, run: Run, stub: StubServer, method: str, arguments: list[str], refusal: Handler
    ) -> None:
        stub.default[method] = refusal
        assert run(*arguments) == (1, "", f"inferd {arguments[0]}: the server's own sentence\n")
