"""The classification extension: the k largest elements of each row, with their labels, instead of the tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from inferd_protocol.datatypes import BF16, BYTES, Datatype
from inferd_protocol.tensors import Tensor, bf16_values

from inferd_server.errors import InvalidRequest


def classify(
    name: str, datatype: Datatype, array: Tensor, count: int, labels: Sequence[str], *, batched: bool
) -> Tensor:
    """`value:index[:label]` as `bytes`, largest first: shape [rows, k], or [k] for a model without a batch axis.

    k is `count`, or the elements of a row where there are fewer. Each row's axes are flattened.
    Raises InvalidRequest where the output has no order (BOOL, BYTES) or no elements.
    """
    if datatype is BYTES or array.dtype.kind == "b":
        raise InvalidRequest(f"output '{name}' is {datatype.name}: classification expects numbers")
    values = bf16_values(array) if datatype is BF16 else array
    rows = values.reshape(len(values), -1) if batched and values.ndim else values.reshape(1, -1)
    # Stable on the negated order, so that of equal values the lower index comes first.
    order = rows.shape[1] - 1 - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    answer = np.empty(order.shape, object)
    for row, indices in enumerate(order):
        for place, index in enumerate(indices):
            label = f":{labels[index]}" if index < len(labels) else ""
            answer[row, place] = f"{rows[row, index]}:{index}{label}".encode()
    return answer if batched else answer[0]
