"""ModelInferRequests to requests, fast where the next message looks like one that was seen before.

A caller's messages differ in their ids and tensors and in nothing else, and the tensors come last. So the bytes before
them, the head, decide everything that the codec works out of a message; it does so once for each head, and for later
messages of the same head and length the form is looked up and the contents are views of the message. Where tensors are
in shared memory the head says in which; what is registered by that name is looked up for each message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol import wire
from inferd_protocol.datatypes import BYTES

from inferd_server.frontend.codec import DecodedMessage, decode_message
from inferd_server.request import (
    Content,
    InferenceRequest,
    RequestForm,
    SequenceRequest,
    SequenceStep,
    SharedMemoryRequest,
)
from inferd_server.shared_memory.regions import NO_REGIONS, Range, Regions, Window

_FIELD = pb.ModelInferRequest
_MODEL_NAME, _MODEL_VERSION, _ID = (
    _FIELD.MODEL_NAME_FIELD_NUMBER,
    _FIELD.MODEL_VERSION_FIELD_NUMBER,
    _FIELD.ID_FIELD_NUMBER,
)
_RAW_INPUT_CONTENTS = _FIELD.RAW_INPUT_CONTENTS_FIELD_NUMBER
_ID_TAG = wire.prefix(_ID, 0)[0]
_NAME_TAG = wire.prefix(_MODEL_NAME, 0)[0]
_VERSION_TAG = wire.prefix(_MODEL_VERSION, 0)[0]
_ONE_BYTE_LENGTH = 0x80
"""Lengths below it take one byte."""

_MOST_HEADS = 1024
_LONGEST_HEAD = 4096
"""Bytes: what is remembered stays below 4 MiB."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What a head decides. Positions count from the head's end."""

    form: RequestForm
    size: int
    """Bytes after the head."""
    spans: tuple[tuple[int, int], ...]
    """Where the contents of each input are."""
    prefixes: tuple[tuple[int, bytes], ...]
    """What must stand between them: the tags and lengths of the second tensor and those after it."""

    def request(self, request_id: str, message: bytes, end: int) -> InferenceRequest | None:
        """The request of a message with this head; None where what comes after the head is laid out in another way."""
        if len(message) - end != self.size:
            return None
        for offset, prefix in self.prefixes:
            if not message.startswith(prefix, end + offset):
                return None
        view = memoryview(message)
        if len(self.spans) == 1:
            return InferenceRequest(self.form, request_id, (view[end:],), len(message))
        contents = [view[end + start : end + stop] for start, stop in self.spans]
        return InferenceRequest(self.form, request_id, contents, len(message))


@dataclass(frozen=True, slots=True)
class _KnownShared(_Known):
    """A head that names shared memory; `spans` are those of the inputs in the message."""

    inputs_in: tuple[Range | None, ...]
    outputs_in: tuple[Range | None, ...]
    regions: Regions

    def request(self, request_id: str, message: bytes, end: int) -> InferenceRequest | None:
        sent = _Known.request(self, request_id, message, end)
        if sent is None:
            return None
        contents = sent.contents
        if self.inputs_in:
            views = iter(contents)
            contents = [
                next(views) if place is None else self.regions.window(tensor.name, place)
                for tensor, place in zip(self.form.inputs, self.inputs_in, strict=True)
            ]
        return _request(self.form, request_id, contents, len(message), self.outputs_in, self.regions)


class RequestDecoder:
    """Decodes messages and remembers their heads. May be used from any thread."""

    def __init__(self, regions: Regions = NO_REGIONS) -> None:
        self._regions = regions
        self._head_sizes: dict[int, tuple[int, ...]] = {}
        """By the length of the message without its id: the sizes of the heads, without their ids, that it may have."""
        self._known: dict[bytes, _Known] = {}
        self._sequence_forms: dict[tuple[object, ...], RequestForm] = {}
        """By all that a form says."""

    def decode(self, message: bytes) -> InferenceRequest:
        """A ModelInferRequest's bytes as a request whose raw tensors are views of them.

        Raises as `codec.decode_message` does.
        """
        for size in self._head_sizes.get(len(message), ()):
            known = self._known.get(message[:size])
            if known is not None and (request := known.request("", message, size)) is not None:
                return request
        id_start, id_end = _find_id(message)
        if id_end > id_start:
            without = id_end - id_start
            for size in self._head_sizes.get(len(message) - without, ()):
                known = self._known.get(message[:id_start] + message[id_end : size + without])
                if known is not None:
                    try:
                        # The tag and the length take a byte each.
                        request_id = message[id_start + 2 : id_end].decode()
                    except UnicodeDecodeError:
                        break
                    if (request := known.request(request_id, message, size + without)) is not None:
                        return request
        decoded = decode_message(message, self._regions)
        if decoded.step is not None:
            return self._in_sequence(decoded, decoded.step, len(message))
        self._remember(message, decoded, id_start, id_end)
        return _request(decoded.form, decoded.id, decoded.contents, len(message), decoded.outputs_in, self._regions)

    def _in_sequence(self, decoded: DecodedMessage, step: SequenceStep, nbytes: int) -> InferenceRequest:
        """A step of a sequence: its head holds the sequence's id and is no other's, but its form is shared.

        So the head is not remembered, and plans are still made once for each form.
        """
        form = decoded.form
        key = (form.model_name, form.model_version, form.inputs, form.outputs, form.timeout_us, form.priority)
        if len(self._sequence_forms) >= _MOST_HEADS:
            self._sequence_forms = {}
        shared = self._sequence_forms.setdefault(key, form)
        places = _places(shared, decoded.outputs_in, self._regions)
        return SequenceRequest(shared, decoded.id, decoded.contents, nbytes, step, places)

    def _remember(self, message: bytes, decoded: DecodedMessage, id_start: int, id_end: int) -> None:
        inputs = decoded.form.inputs
        found = wire.fields(message)
        if found is None or not inputs or any(tensor.datatype is BYTES for tensor in inputs):
            return
        numbers = [field.number for field in found]
        sent = len(inputs) - sum(place is not None for place in decoded.inputs_in)
        raw = found[len(found) - sent :]
        # In order, the tensors last, and nothing twice that counts once: then the head and the id decide all.
        if (
            numbers != sorted(numbers)
            or numbers.count(_RAW_INPUT_CONTENTS) != sent
            or any(numbers.count(number) > 1 for number in (_MODEL_NAME, _MODEL_VERSION, _ID))
            or message[id_start + 2 : id_end].decode() != decoded.id
        ):
            return
        end = raw[0].payload if raw else len(message)
        head = message[:id_start] + message[id_end:end]
        if len(head) > _LONGEST_HEAD:
            return
        if len(self._known) >= _MOST_HEADS:
            # New dictionaries, not emptied ones: other threads may be reading these.
            self._known, self._head_sizes = {}, {}
        size = len(message) - end
        spans = tuple((field.payload - end, field.end - end) for field in raw)
        prefixes = tuple((field.start - end, message[field.start : field.payload]) for field in raw[1:])
        if decoded.inputs_in or decoded.outputs_in:
            self._known[head] = _KnownShared(
                decoded.form, size, spans, prefixes, decoded.inputs_in, decoded.outputs_in, self._regions
            )
        else:
            self._known[head] = _Known(decoded.form, size, spans, prefixes)
        total = len(message) - (id_end - id_start)
        sizes = self._head_sizes.get(total, ())
        if len(head) not in sizes:
            self._head_sizes[total] = (*sizes, len(head))


def addressee(message: bytes) -> tuple[str, str]:
    """The model's name and version in a message that may be malformed, empty where they are not its first fields."""
    texts = []
    position = 0
    for tag in (_NAME_TAG, _VERSION_TAG):
        text = b""
        start = message[position : position + 2]
        if len(start) == 2 and start[0] == tag and start[1] < _ONE_BYTE_LENGTH:
            end = position + 2 + start[1]
            text = message[position + 2 : end]
            position = end
        texts.append(text.decode(errors="replace"))
    return texts[0], texts[1]


def _request(
    form: RequestForm,
    request_id: str,
    contents: Sequence[Content],
    nbytes: int,
    outputs_in: Sequence[Range | None],
    regions: Regions,
) -> InferenceRequest:
    """The request, with the places of its outputs where any go to shared memory."""
    if not outputs_in:
        return InferenceRequest(form, request_id, contents, nbytes)
    return SharedMemoryRequest(form, request_id, contents, nbytes, _places(form, outputs_in, regions))


def _places(form: RequestForm, outputs_in: Sequence[Range | None], regions: Regions) -> tuple[Window | None, ...]:
    """A window for each of the outputs that go to shared memory; empty where none do."""
    if not outputs_in:
        return ()
    return tuple(
        None if place is None else regions.window(output.name, place)
        for output, place in zip(form.outputs, outputs_in, strict=True)
    )


def _find_id(message: bytes) -> tuple[int, int]:
    """Where the id's field begins and ends, an empty span where it is not where serialisers put it.

    They write fields in the order of their numbers: the id comes after the model's name and version.
    """
    position = 0
    try:
        for tag in (_NAME_TAG, _VERSION_TAG):
            if message[position] == tag:
                if message[position + 1] >= _ONE_BYTE_LENGTH:
                    return 0, 0
                position += 2 + message[position + 1]
        if message[position] == _ID_TAG and message[position + 1] < _ONE_BYTE_LENGTH:
            end = position + 2 + message[position + 1]
            return (position, end) if end <= len(message) else (0, 0)
    except IndexError:
        pass
    return 0, 0
