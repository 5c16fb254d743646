"""The core without a server: a script of outcomes, a clock that stands still."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from inferd_client import errors
from inferd_client.core import Call, Core, Step, Steps, Wait
from inferd_client.known import KINDS_PER_MODEL
from inferd_client.results import InferResult
from inferd_client.retry import NO_RETRY, Retry
from inferd_protocol import grpc_service_pb2 as pb
from stub_server import double, metadata

X = np.ones((2, 2), np.float32)
METADATA = metadata().SerializeToString()
OTHER_METADATA = metadata(inputs={"x": ("FP64", [-1, 2])}).SerializeToString()
ONES = double(
    pb.ModelInferRequest(
        model_name="double",
        inputs=[pb.ModelInferRequest.InferInputTensor(name="x", shape=[2, 2])],
        raw_input_contents=[X.tobytes()],
    ),
    None,  # type: ignore[arg-type]
).SerializeToString()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(
    clock: Clock | None = None, *, retry: Retry = NO_RETRY, timeout: float = 30.0, limit: int = 2**20, draw: float = 0.5
) -> Core:
    return Core(timeout=timeout, retry=retry, max_message_bytes=limit, clock=clock or Clock(), random=lambda: draw)


def play(steps: Steps[Any], *outcomes: bytes | Exception, clock: Clock | None = None, each: float = 0.0) -> list[Step]:
    """Carries out steps: calls end as the outcomes say and take `each` seconds, waits pass. Returns the steps taken.

    What the call raises is raised; what it returns is the last element.
    """
    taken: list[Any] = []
    waiting = list(outcomes)
    outcome: bytes | Exception | None = None
    try:
        while True:
            step = steps.throw(outcome) if isinstance(outcome, Exception) else steps.send(outcome)  # type: ignore[arg-type]
            taken.append(step)
            if isinstance(step, Wait):
                outcome = b""
                if clock is not None:
                    clock.now += step.seconds
            else:
                outcome = waiting.pop(0)
                if clock is not None:
                    clock.now += each
    except StopIteration as stop:
        assert not waiting
        taken.append(stop.value)
    return taken


def infer(core: Core, *outcomes: bytes | Exception, inputs: Mapping[str, Any] | None = None, **options: Any) -> Any:
    *steps, result = play(core.infer("double", inputs or {"x": X}, **options), *outcomes)
    assert isinstance(result, InferResult)
    return [step.method if isinstance(step, Call) else "wait" for step in steps], result


def test_metadata_is_fetched_once_and_the_answer_is_a_mapping() -> None:
    core = make()
    methods, result = infer(core, METADATA, ONES)
    assert methods == ["ModelMetadata", "ModelInfer"]
    np.testing.assert_array_equal(result["y"], X * 2)
    assert (list(result), len(result), result.model_name, result.model_version) == (["y"], 1, "double", "1")
    assert "y" in result
    assert "z" not in result
    with pytest.raises(KeyError, match="no output 'z': model 'double' answered 'y'"):
        result["z"]
    methods, again = infer(core, ONES)
    assert methods == ["ModelInfer"]
    np.testing.assert_array_equal(again["y"], X * 2)
    assert again != result
    assert not again["y"].flags.writeable


def test_each_version_has_its_own_metadata() -> None:
    core = make()
    infer(core, METADATA, ONES)
    assert infer(core, METADATA, ONES, version="1")[0] == ["ModelMetadata", "ModelInfer"]


def test_requests_of_many_shapes_do_not_fill_the_memory() -> None:
    core = make()
    infer(core, METADATA, ONES)
    for rows in range(1, 2 * KINDS_PER_MODEL):
        infer(core, ONES, inputs={"x": np.ones((rows, 2), np.float32)})
    assert len(core._models["double", ""].kinds) <= KINDS_PER_MODEL


def test_the_last_message_is_kept_unless_it_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    core = make()
    infer(core, METADATA, ONES)
    step = next(core.infer("double", {"x": X}))
    assert isinstance(step, Call)
    assert core._kept is step.request
    monkeypatch.setattr("inferd_client.core.KEPT_BYTES", len(step.request) - 1)
    next(core.infer("double", {"x": X}))
    assert core._kept is step.request


class TestReload:
    """A version-less request's model may be replaced at any time."""

    def test_a_refusal_fetches_the_metadata_again_and_tries_again_if_it_changed(self) -> None:
        core = make()
        infer(core, METADATA, ONES)
        methods, _ = infer(core, errors.InvalidInput("takes FP64"), OTHER_METADATA, ONES)
        assert methods == ["ModelInfer", "ModelMetadata", "ModelInfer"]
        assert infer(core, ONES)[0] == ["ModelInfer"]

    def test_a_refusal_stands_if_the_metadata_is_the_same(self) -> None:
        core = make()
        infer(core, METADATA, ONES)
        with pytest.raises(errors.InvalidInput, match="too many rows"):
            infer(core, errors.InvalidInput("too many rows"), METADATA)

    def test_a_refusal_stands_if_the_metadata_cannot_be_had(self) -> None:
        core = make()
        infer(core, METADATA, ONES)
        with pytest.raises(errors.InvalidInput, match="too many rows"):
            infer(core, errors.InvalidInput("too many rows"), errors.Unavailable("gone"))

    def test_an_array_that_no_longer_fits_is_looked_at_again(self) -> None:
        core = make()
        infer(core, METADATA, ONES)
        methods, _ = infer(core, OTHER_METADATA, ONES, inputs={"x": X.astype(np.float64)})
        assert methods == ["ModelMetadata", "ModelInfer"]

    def test_fresh_metadata_is_not_fetched_again(self) -> None:
        with pytest.raises(errors.InvalidInput, match="wrong"):
            infer(make(), METADATA, errors.InvalidInput("wrong"))

    def test_a_model_that_is_gone_is_forgotten(self) -> None:
        core = make()
        infer(core, METADATA, ONES)
        with pytest.raises(errors.ModelNotFound):
            infer(core, errors.ModelNotFound("gone"))
        assert infer(core, METADATA, ONES)[0] == ["ModelMetadata", "ModelInfer"]


class TestRetry:
    def test_no_connection_is_tried_again_with_growing_waits(self) -> None:
        gone = errors.Unavailable("gone")
        retry = Retry(attempts=4, initial=1, multiplier=3, maximum=5)
        steps = play(
            make(retry=retry).server_metadata(None), gone, gone, gone, pb.ServerMetadataResponse().SerializeToString()
        )
        assert [step.seconds for step in steps if isinstance(step, Wait)] == [0.5, 1.5, 2.5]

    @pytest.mark.parametrize(
        ("error", "retry", "again"),
        [
            (errors.Draining("bye"), Retry(), True),
            (errors.Overloaded("full"), Retry(), False),
            (errors.Overloaded("full"), Retry(overloaded=True), True),
            (errors.NotReady("loading"), Retry(), False),
            (errors.NotReady("loading"), Retry(not_ready=True), True),
            (errors.ControlOff("off"), Retry(overloaded=True, not_ready=True), False),
            (errors.ServerFault("broken"), Retry(overloaded=True, not_ready=True), False),
            (errors.DeadlineExceeded("late"), Retry(), False),
            (errors.Unavailable("gone"), NO_RETRY, False),
        ],
    )
    def test_what_is_tried_again(self, error: errors.InferdError, retry: Retry, again: bool) -> None:
        core = make(retry=retry)
        infer(core, METADATA, ONES)
        if again:
            assert infer(core, error, ONES)[0] == ["ModelInfer", "wait", "ModelInfer"]
        else:
            with pytest.raises(type(error)):
                infer(core, error)

    def test_a_sequences_requests_are_sent_once(self) -> None:
        core = make(retry=Retry())
        with pytest.raises(errors.Unavailable):
            infer(core, METADATA, errors.Unavailable("gone"), parameters={"sequence_id": 7})
        with pytest.raises(errors.InvalidInput):
            infer(core, errors.InvalidInput("no"), parameters={"sequence_id": 7})

    def test_attempts_are_counted(self) -> None:
        with pytest.raises(errors.Unavailable, match="third"):
            play(
                make(retry=Retry(attempts=3)).server_metadata(None),
                *(errors.Unavailable(nth) for nth in ("first", "second", "third")),
            )

    def test_the_deadline_covers_retries_and_is_never_reset(self) -> None:
        clock = Clock()
        core = make(clock, retry=Retry(attempts=100, initial=2, maximum=2, multiplier=1), timeout=10, draw=0.5)
        gone = errors.Unavailable("gone")
        steps = core.server_metadata(None)
        with pytest.raises(errors.Unavailable, match="gone"):
            play(steps, *[gone] * 100, clock=clock, each=2)
        # 2 s for each call and 1 s for each wait: the fourth call ends at 11 s, after which there is no time to wait.
        assert clock.now == 1000 + 11

    def test_each_attempt_gets_what_time_is_left(self) -> None:
        clock = Clock()
        core = make(clock, retry=Retry(initial=1, maximum=1, multiplier=1), timeout=10)
        steps = play(core.infer("double", {"x": X}), METADATA, errors.Unavailable("gone"), ONES, clock=clock, each=2)
        assert [step.timeout for step in steps if isinstance(step, Call)] == [10, 8, 5.5]

    def test_a_deadline_that_passed_between_calls_is_said(self) -> None:
        clock = Clock()
        with pytest.raises(errors.DeadlineExceeded, match="before ModelInfer"):
            play(make(clock, timeout=1).infer("double", {"x": X}), METADATA, clock=clock, each=2)

    @pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
    def test_a_timeout_is_a_positive_number(self, timeout: float) -> None:
        with pytest.raises(errors.InvalidInput, match="positive number of seconds"):
            play(make().server_live(timeout))
        with pytest.raises(errors.InvalidInput, match="positive number of seconds"):
            make(timeout=timeout)

    @pytest.mark.parametrize(
        "wrong", [{"attempts": 0}, {"initial": -1}, {"initial": 3, "maximum": 2}, {"multiplier": 0.5}]
    )
    def test_a_policy_that_makes_no_sense_is_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="at least one attempt"):
            Retry(**wrong)

    def test_late_retries_do_not_overflow(self) -> None:
        assert Retry(maximum=7).delay(10_000, lambda: 1.0) == 7


class TestHealth:
    def test_nobody_there_is_an_answer_and_is_not_tried_again(self) -> None:
        core = make(retry=Retry())
        assert play(core.server_live(None), errors.Unavailable("gone"))[-1] is False
        assert play(core.server_ready(None), errors.Draining("bye"))[-1] is False
        assert play(core.model_ready("m", "", None), errors.Unavailable("gone"))[-1] is False

    def test_a_model_that_is_not_there_is_not_ready(self) -> None:
        assert play(make().model_ready("m", "", None), errors.ModelNotFound("no m"))[-1] is False

    def test_what_is_no_answer_is_an_error(self) -> None:
        with pytest.raises(errors.BadResponse, match="ServerLive"):
            play(make().server_live(None), b"\xff")


class TestSplitting:
    ROWS = np.arange(20, dtype=np.float32).reshape(10, 2)

    @staticmethod
    def answer(step: Step, *, version: str = "1") -> bytes:
        assert isinstance(step, Call)
        response = double(pb.ModelInferRequest.FromString(step.request), None)  # type: ignore[arg-type]
        response.model_version = version
        return response.SerializeToString()

    def run(self, core: Core, limit: int, rows: np.ndarray, **options: Any) -> tuple[list[int], InferResult]:
        """The result against a server that takes `limit` rows, and the rows of each request."""
        steps = core.infer("double", {"x": rows}, **options)
        step, sent = next(steps), []
        try:
            while True:
                assert isinstance(step, Call)
                if step.method == "ModelMetadata":
                    step = steps.send(METADATA)
                    continue
                sent.append(pb.ModelInferRequest.FromString(step.request).inputs[0].shape[0])
                if sent[-1] > limit:
                    step = steps.throw(errors.MessageTooLarge("too large"))
                else:
                    step = steps.send(self.answer(step))
        except StopIteration as stop:
            return sent, stop.value

    def test_a_batch_over_this_clients_limit_is_sent_in_parts(self) -> None:
        core = make(limit=70)
        for _ in range(2):  # with the metadata fetched on the way, and with it known
            sent, result = self.run(core, 1000, self.ROWS)
            assert sum(sent) == 10
            assert len(sent) > 1
            np.testing.assert_array_equal(result["y"], self.ROWS * 2)

    def test_a_batch_over_the_servers_limit_is_sent_in_parts(self) -> None:
        core = make()
        for _ in range(2):
            sent, result = self.run(core, 3, self.ROWS)
            assert sent == [10, 5, 2, 3, 5, 2, 3]
            np.testing.assert_array_equal(result["y"], self.ROWS * 2)

    def test_a_row_that_is_too_large_by_itself(self) -> None:
        with pytest.raises(
            errors.MessageTooLarge, match=r"for model 'double' is over this client's limit of 10 bytes; .*single row"
        ):
            self.run(make(limit=10), 1000, self.ROWS)

    def test_a_model_without_a_batch_axis(self) -> None:
        fixed = metadata(inputs={"x": ("FP32", [10, 2])}).SerializeToString()
        with pytest.raises(errors.MessageTooLarge, match="no batch axis"):
            infer(make(limit=10), fixed, inputs={"x": self.ROWS})

    def test_inputs_of_different_lengths(self) -> None:
        two = metadata(inputs={"x": ("FP32", [-1]), "z": ("FP32", [-1])}).SerializeToString()
        with pytest.raises(errors.MessageTooLarge, match="same number of rows"):
            infer(make(limit=10), two, inputs={"x": np.ones(2, np.float32), "z": np.ones(3, np.float32)})

    def test_a_sequences_request(self) -> None:
        with pytest.raises(errors.MessageTooLarge, match="sequence is not split"):
            self.run(make(limit=50), 1000, self.ROWS, parameters={"sequence_id": 1})

    def test_an_output_without_the_rows_that_went_in_is_not_joined(self) -> None:
        with pytest.raises(errors.BadResponse, match=r"shape \[2, 2\] for 5 rows"):
            infer(make(), METADATA, errors.MessageTooLarge("no"), ONES, ONES, inputs={"x": self.ROWS})

    def test_parts_answered_by_different_versions_are_not_joined(self) -> None:
        steps = make().infer("double", {"x": self.ROWS})
        next(steps)
        steps.send(METADATA)
        step = steps.throw(errors.MessageTooLarge("no"))
        step = steps.send(self.answer(step))
        with pytest.raises(errors.BadResponse, match="versions 1 and 2"):
            steps.send(self.answer(step, version="2"))


class TestInputs:
    @pytest.mark.parametrize(
        ("datatype", "array"),
        [
            ("FP32", np.ones(2, np.float16)),
            ("FP32", np.ones(2, np.uint8)),
            ("FP32", np.ones(2, ">f4")),
            ("FP64", np.ones(2, np.int32)),
            ("INT64", np.ones(2, np.uint32)),
            ("BF16", np.ones(2, np.float32)),
            ("BF16", np.ones(2, np.uint8)),
            ("BYTES", np.array(["a", "b"])),
            ("BYTES", np.array([b"a", b"b"])),
            ("BYTES", np.array(["a", b"b"], object)),
            ("FP64", [1.0, 2.0]),
        ],
    )
    def test_what_fits_without_loss_is_taken(self, datatype: str, array: Any) -> None:
        infer(make(), metadata(inputs={"x": (datatype, [-1])}).SerializeToString(), ONES, inputs={"x": array})

    @pytest.mark.parametrize(
        ("datatype", "array", "message"),
        [
            ("FP32", np.ones(2), "takes FP32, and float64 does not fit into it without loss.*astype\\('float32'\\)"),
            ("FP32", np.ones(2, np.int32), "int32 does not fit"),
            ("FP64", np.ones(2, np.int64), "int64 does not fit"),
            ("UINT8", np.ones(2, np.int8), "int8 does not fit"),
            ("UINT8", np.ones(2, np.float32), "float32 does not fit"),
            ("BF16", np.ones(2), "float64 does not fit"),
            ("FP32", np.array(["a"]), "does not fit"),
            ("FP32", np.array([None]), "object does not fit"),
            ("BYTES", np.ones(2), "takes strings, got an array of float64"),
            ("BYTES", np.array(["a", None], object), "got an element of NoneType"),
        ],
    )
    def test_what_would_lose_something_is_refused(self, datatype: str, array: np.ndarray, message: str) -> None:
        with pytest.raises(errors.InvalidInput, match=message):
            infer(make(), metadata(inputs={"x": (datatype, [-1])}).SerializeToString(), inputs={"x": array})

    def test_an_unknown_name(self) -> None:
        with pytest.raises(errors.InvalidInput, match="model 'double' has no input 'z': its inputs are 'x'"):
            infer(make(), METADATA, inputs={"z": X})

    def test_a_name_in_place_of_names(self) -> None:
        with pytest.raises(errors.InvalidInput, match=r"such as \['y'\]"):
            infer(make(), outputs="y")

    @pytest.mark.parametrize("value", [None, b"x", 2**64, -(2**63) - 1, [1]])
    def test_a_parameter_of_no_type_that_there_is(self, value: Any) -> None:
        with pytest.raises(errors.InvalidInput, match="parameter 'p'"):
            infer(make(), METADATA, parameters={"p": value})

    def test_classification_asks_for_all_outputs_and_marks_its_own(self) -> None:
        two = metadata(outputs={"y": ("FP32", [-1, 2]), "z": ("FP32", [-1, 2])}).SerializeToString()
        steps = make().infer("double", {"x": X}, classification={"z": 3})
        next(steps)
        call = steps.send(two)
        assert isinstance(call, Call)
        outputs = pb.ModelInferRequest.FromString(call.request).outputs
        assert [output.name for output in outputs] == ["y", "z"]
        assert [dict(output.parameters) for output in outputs] == [
            {},
            {"classification": pb.InferParameter(int64_param=3)},
        ]

    def test_classification_of_an_output_that_is_not_asked_for(self) -> None:
        with pytest.raises(errors.InvalidInput, match=r"classification names 'z'.*: 'y'"):
            infer(make(), METADATA, outputs=["y"], classification={"z": 3})


def test_metadata_with_an_unknown_datatype_is_refused() -> None:
    with pytest.raises(errors.BadResponse, match="unknown datatype FP8"):
        infer(make(), metadata(inputs={"x": ("FP8", [1])}).SerializeToString())
