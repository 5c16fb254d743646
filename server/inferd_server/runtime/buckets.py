"""The batch sizes for which memory on a device is taken, and graphs captured, beforehand."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from inferd_protocol.datatypes import BF16, BYTES

from inferd_server.runtime.backend import Signature, TensorSpec


def bucket_sizes(most_rows: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most_rows`; none for 0. The sizes that warm-up runs."""
    if most_rows < 1:
        return ()
    return (*(1 << power for power in range((most_rows - 1).bit_length())), most_rows)


def bucket_of(sizes: Sequence[int], rows: int) -> int | None:
    """The index of the smallest size with room for the rows; None where there is none, or there are no rows."""
    if rows < 1:
        return None
    place = bisect_left(sizes, rows)
    return place if place < len(sizes) else None


def can_be_bound(signature: Signature) -> bool:
    """Whether its tensors can be kept in memory taken beforehand: only the batch axis varies, all are numbers.

    BF16 is left out with text: numpy has neither.
    """
    return all(_fits(spec) for spec in signature.inputs + signature.outputs) and bool(signature.inputs)


def _fits(spec: TensorSpec) -> bool:
    return (
        bool(spec.shape)
        and not isinstance(spec.shape[0], int)
        and all(isinstance(dim, int) and dim > 0 for dim in spec.shape[1:])
        and spec.datatype not in (BF16, BYTES)
    )
