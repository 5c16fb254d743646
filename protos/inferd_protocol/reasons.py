"""Words that both sides of a call must spell alike: reasons in trailing metadata, reserved request parameters."""

from __future__ import annotations

from enum import StrEnum

REASON_KEY = "inferd-reason"
"""The trailing-metadata key that says, beside a status code, what kind of failure it was."""


class Reason(StrEnum):
    """Why a call was answered UNAVAILABLE. Only some of these get better by trying again at once."""

    QUEUE_FULL = "queue_full"
    """Overloaded: the model's queue has no room. Trying again at once makes it worse."""
    QUEUE_TIMEOUT = "queue_timeout"
    """The request waited longer than its `timeout` parameter allows."""
    LOADING = "loading"
    """The model is not ready: it is loading, or its load failed."""
    DRAINING = "draining"
    """The server is shutting down: another one may answer."""
    CONTROL_OFF = "control_off"
    """Loading and unloading by request is switched off."""


class Parameter(StrEnum):
    """Request parameters with a meaning of their own."""

    TIMEOUT = "timeout"
    """int64, microseconds: the longest the request may wait in the queue."""
    PRIORITY = "priority"
    """uint64 or int64: 1 runs before 2, and so on; 0, as no priority, after all others."""
    SEQUENCE_ID = "sequence_id"
    SEQUENCE_START = "sequence_start"
    SEQUENCE_END = "sequence_end"
    FINAL_RESPONSE = "triton_final_response"
    """On an answer of a stream, bool: its request has no further one."""
    CLASSIFICATION = "classification"
    """On an output, int64 k: answer the k largest elements of each row as BYTES `value:index[:label]`."""
    SHARED_MEMORY_REGION = "shared_memory_region"
    SHARED_MEMORY_OFFSET = "shared_memory_offset"
    SHARED_MEMORY_BYTE_SIZE = "shared_memory_byte_size"


LABEL_PREFIX = "label:"
"""`label:<name>`: a parameter of RepositoryModelLoad (int64, the version; 0 takes the label away) and of the answer of
ModelConfig (string, the version)."""
