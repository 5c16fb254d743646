"""From a status to an error, in one place."""

from __future__ import annotations

import inspect

import grpc
import pytest
from inferd_client import errors
from inferd_protocol.reasons import Reason

PUBLIC = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.InferdError)]

BY_CODE = {
    "CANCELLED": errors.Cancelled,
    "UNKNOWN": errors.ServerFault,
    "INVALID_ARGUMENT": errors.InvalidInput,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "NOT_FOUND": errors.ModelNotFound,
    "ALREADY_EXISTS": errors.ServerFault,
    "PERMISSION_DENIED": errors.PermissionDenied,
    "RESOURCE_EXHAUSTED": errors.MessageTooLarge,
    "FAILED_PRECONDITION": errors.ServerFault,
    "ABORTED": errors.ServerFault,
    "OUT_OF_RANGE": errors.InvalidInput,
    "UNIMPLEMENTED": errors.Unimplemented,
    "INTERNAL": errors.ServerFault,
    "UNAVAILABLE": errors.Unavailable,
    "DATA_LOSS": errors.ServerFault,
    "UNAUTHENTICATED": errors.Unauthenticated,
}


def test_every_code_that_is_an_error_has_its_error() -> None:
    assert BY_CODE.keys() == {code.name for code in grpc.StatusCode} - {"OK"}
    for code, kind in BY_CODE.items():
        error = errors.from_status(code, "what the server says", None)
        assert type(error) is kind
        assert str(error) == "what the server says"


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (Reason.QUEUE_FULL, errors.Overloaded),
        (Reason.QUEUE_TIMEOUT, errors.Overloaded),
        (Reason.LOADING, errors.NotReady),
        (Reason.DRAINING, errors.Draining),
        (Reason.CONTROL_OFF, errors.ControlOff),
        ("a reason of the future", errors.Unavailable),
    ],
)
def test_reasons_tell_unavailable_apart(reason: str, kind: type[errors.InferdError]) -> None:
    assert type(errors.from_status("UNAVAILABLE", "", reason)) is kind
    assert type(errors.from_status("INTERNAL", "", reason)) is errors.ServerFault


def test_every_reason_has_its_error() -> None:
    assert all(type(errors.from_status("UNAVAILABLE", "", reason)) is not errors.Unavailable for reason in Reason)


def test_a_status_without_a_message_still_says_something() -> None:
    assert str(errors.from_status("INTERNAL", "", None)) == "the server answered INTERNAL without a message"


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {line.split("── ")[-1].split()[0] for line in (errors.__doc__ or "").splitlines() if "── " in line}
    assert drawn | {"InferdError"} == {kind.__name__ for kind in PUBLIC}
    assert issubclass(errors.InvalidInput, ValueError)
    assert issubclass(errors.DeadlineExceeded, TimeoutError)
