"""Every field of a config.pbtxt: honoured, or refused by name. Nothing is ignored in silence.

A field is named by its path, `dynamic_batching.max_queue_delay_microseconds` for instance. What is refused is refused
with everything in it. A field that is at its default, where protobuf knows no presence, is not set and never refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from inferd_server.errors import LoadError


@dataclass(frozen=True, slots=True)
class Honoured:
    """A field that is acted on. `how` is what follows from it."""

    how: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that fails the load where it is set. `why` follows on its name: `..., which expects sequences`."""

    why: str


Verdict = Honoured | Refused

_NO_PRIORITIES = Refused("and a config.pbtxt cannot order requests by priority here")
_NO_PINNED = Refused("and tensors are not copied through pinned buffers of the server's own")
_NO_RAGGED = Refused("and rows of different shapes do not share a batch here")
_NO_SLOTS = Refused("and a sequence has no slot of its own in a batch")
_NO_SEQUENCE_DELAY = Refused("and batches of sequences wait as `--max-queue-delay-microseconds` says")
_NO_STATE_BUFFERS = Refused("and a state is a new array after each run")
_NO_ACCELERATOR_LAYOUT = Refused("and models take their tensors in the plain row-major layout here")

FIELDS: Mapping[str, Verdict] = {
    "name": Honoured("must be the folder's name"),
    "platform": Honoured("must be `onnxruntime_onnx`, or `ensemble` beside `ensemble_scheduling`"),
    "backend": Honoured("must be `onnxruntime`; none in an ensemble"),
    "runtime": Refused("and the library that runs a model is the server's"),
    "version_policy": Honoured("which versions are served; the latest one without it"),
    "version_policy.latest": Honoured("the highest versions"),
    "version_policy.latest.num_versions": Honoured("how many; 0 is 1"),
    "version_policy.all": Honoured("every version"),
    "version_policy.specific": Honoured("these versions; one that is missing fails to load"),
    "version_policy.specific.versions": Honoured("from 1, at least one"),
    "max_batch_size": Honoured(
        "rows a run, instead of `--max-batch-size`; 0 beside declared tensors: no batch axis; 0 or absent without "
        "them: the model decides"
    ),
    "input": Honoured("held against the model; inputs that are not declared are the model's"),
    "input.name": Honoured("an input of the model"),
    "input.data_type": Honoured("must be the model's; absent together with `dims`: both are the model's"),
    "input.format": Refused("and the layout of an image is the model's own"),
    "input.dims": Honoured(
        "without the batch axis; must agree with the model; a size given for a free axis is the only one accepted; -1 "
        "leaves the axis as it is"
    ),
    "input.reshape": Honoured("clients send `dims`, the model gets `shape`"),
    "input.reshape.shape": Honoured("as many elements as `dims`, at most one -1 in each, without the batch axis"),
    "input.is_shape_tensor": Refused("and only TensorRT has shape tensors"),
    "input.allow_ragged_batch": _NO_RAGGED,
    "input.optional": Refused("and every input of a model must come with a request"),
    "input.is_non_linear_format_io": _NO_ACCELERATOR_LAYOUT,
    "output": Honoured("held against the model; outputs that are not declared are the model's"),
    "output.name": Honoured("an output of the model"),
    "output.data_type": Honoured("as for inputs"),
    "output.dims": Honoured("as for inputs; an answer of another size fails"),
    "output.reshape": Honoured("the model gives `shape`, clients get `dims`"),
    "output.reshape.shape": Honoured("as for inputs"),
    "output.label_filename": Honoured(
        "a file in the model's folder, UTF-8, one label a line, for `classification`; instead of the model's own"
    ),
    "output.is_shape_tensor": Refused("and only TensorRT has shape tensors"),
    "output.is_non_linear_format_io": _NO_ACCELERATOR_LAYOUT,
    "batch_input": _NO_RAGGED,
    "batch_output": _NO_RAGGED,
    "optimization": Honoured("the graph level"),
    "optimization.graph": Honoured("the graph level"),
    "optimization.graph.level": Honoured(
        "-1 basic, 0 all, 1 extended, 2 no optimizations of the graph, as in Triton's ONNX Runtime backend"
    ),
    "optimization.priority": Refused("and no model runs before another one here"),
    "optimization.cuda": Refused("and CUDA graphs and streams are left to the runtime"),
    "optimization.execution_accelerators": Refused("and models run on the CPU, CUDA or TensorRT as `--device` says"),
    "optimization.input_pinned_memory": Honoured("the message; `enable` is refused"),
    "optimization.input_pinned_memory.enable": _NO_PINNED,
    "optimization.output_pinned_memory": Honoured("the message; `enable` is refused"),
    "optimization.output_pinned_memory.enable": _NO_PINNED,
    "optimization.gather_kernel_buffer_threshold": Refused("and batches are not gathered by a CUDA kernel here"),
    "optimization.eager_batching": Refused("and a batch is gathered once an instance is free for it"),
    "dynamic_batching": Honoured("how rows of separate requests run together, which they do without it too"),
    "dynamic_batching.preferred_batch_size": Honoured(
        "sizes from 1 to the maximum; where batches wait for more rows, one of the smallest of these sizes waits no "
        "longer; any size up to the maximum is formed"
    ),
    "dynamic_batching.max_queue_delay_microseconds": Honoured(
        "how long a batch waits for more rows; 0 or absent: `--max-queue-delay-microseconds`; an hour at most"
    ),
    "dynamic_batching.preserve_ordering": Honoured(
        "accepted where answers come in the order of requests: one instance, and inputs without free axes; refused "
        "elsewhere"
    ),
    "dynamic_batching.priority_levels": _NO_PRIORITIES,
    "dynamic_batching.default_priority_level": _NO_PRIORITIES,
    "dynamic_batching.default_queue_policy": Honoured("the limits of the queue"),
    "dynamic_batching.default_queue_policy.timeout_action": Refused("and a request whose timeout is over is refused"),
    "dynamic_batching.default_queue_policy.default_timeout_microseconds": Honoured(
        "how long a request may wait, instead of the `timeout` it asks for"
    ),
    "dynamic_batching.default_queue_policy.allow_timeout_override": Honoured(
        "the shorter of the default and the `timeout` that a request asks for; without a default every request's own "
        "counts anyway"
    ),
    "dynamic_batching.default_queue_policy.max_queue_size": Honoured(
        "requests that may wait; 0 or absent: `--max-queue-size`"
    ),
    "dynamic_batching.priority_queue_policy": _NO_PRIORITIES,
    "sequence_batching": Honoured("the model keeps sequences: every request is a step of one, of one row"),
    "sequence_batching.direct": Honoured("the message; as without it"),
    "sequence_batching.direct.max_queue_delay_microseconds": _NO_SLOTS,
    "sequence_batching.direct.minimum_slot_utilization": _NO_SLOTS,
    "sequence_batching.oldest": Honoured("the message; as without it"),
    "sequence_batching.oldest.max_candidate_sequences": Honoured(
        "sequences that are live, more are refused; 0 or absent: `--max-sequences`"
    ),
    "sequence_batching.oldest.preferred_batch_size": _NO_SEQUENCE_DELAY,
    "sequence_batching.oldest.max_queue_delay_microseconds": _NO_SEQUENCE_DELAY,
    "sequence_batching.oldest.preserve_ordering": Refused("and only the answers of one sequence come in order"),
    "sequence_batching.max_sequence_idle_microseconds": Honoured(
        "how long a sequence is kept that has no request; 0 is a second"
    ),
    "sequence_batching.control_input": Honoured("an input that the server fills in, and callers do not see"),
    "sequence_batching.control_input.name": Honoured("an input of the model, one element a row"),
    "sequence_batching.control_input.control": Honoured("exactly one for each input"),
    "sequence_batching.control_input.control.kind": Honoured("each kind at most once"),
    "sequence_batching.control_input.control.int32_false_true": Honoured("two values, for an input of INT32"),
    "sequence_batching.control_input.control.fp32_false_true": Honoured("two values, for an input of FP32"),
    "sequence_batching.control_input.control.bool_false_true": Honoured("two values, for an input of BOOL"),
    "sequence_batching.control_input.control.data_type": Honoured(
        "for `CONTROL_SEQUENCE_CORRID` alone: a whole number of 32 or 64 bits, or a string"
    ),
    "sequence_batching.state": Honoured("kept by the server from request to request; callers do not see its input"),
    "sequence_batching.state.input_name": Honoured("an input of the model"),
    "sequence_batching.state.output_name": Honoured("an output of the model; answered only where `output` names it"),
    "sequence_batching.state.data_type": Honoured("must be that of both"),
    "sequence_batching.state.dims": Honoured("without the batch axis; must agree with both; -1 for any size"),
    "sequence_batching.state.initial_state": Honoured("at most one; without it zeros of `dims`, 1 in place of a -1"),
    "sequence_batching.state.initial_state.data_type": Honoured("must be the state's"),
    "sequence_batching.state.initial_state.dims": Honoured("the state's, with a size in place of each -1"),
    "sequence_batching.state.initial_state.zero_data": Honoured("zeros, or empty strings; whatever its value"),
    "sequence_batching.state.initial_state.data_file": Refused("and a sequence begins with zeros"),
    "sequence_batching.state.initial_state.name": Honoured("for the error that names it"),
    "sequence_batching.state.use_same_buffer_for_input_output": _NO_STATE_BUFFERS,
    "sequence_batching.state.use_growable_memory": _NO_STATE_BUFFERS,
    "sequence_batching.iterative_sequence": Refused("and a request has one answer"),
    "ensemble_scheduling": Honoured(
        "the model runs others; it declares its input and output, and sets nothing that says how a file is run"
    ),
    "ensemble_scheduling.step": Honoured("at least one; those that do not need each other run at the same time"),
    "ensemble_scheduling.step.model_name": Honoured("a model of this repository, an ensemble too, but no cycle"),
    "ensemble_scheduling.step.model_version": Honoured("from 1; -1, 0 or absent: the latest that is READY"),
    "ensemble_scheduling.step.input_map": Honoured("every input of the step's model, and the tensor that it gets"),
    "ensemble_scheduling.step.output_map": Honoured("outputs of the step's model, and the tensor that each becomes"),
    "ensemble_scheduling.step.model_namespace": Refused("and models have no namespaces here"),
    "ensemble_scheduling.max_inflight_requests": Refused("and the queues of the steps' models bound what is under way"),
    "instance_group": Honoured("one group at most"),
    "instance_group.name": Refused("and instances have no names of their own"),
    "instance_group.kind": Honoured(
        "`KIND_AUTO`, or the kind of device that the server runs on: `KIND_CPU` or `KIND_GPU`; `KIND_MODEL` is refused"
    ),
    "instance_group.count": Honoured("batches that run at the same time; 0 or absent: `--instances`; at most 1024"),
    "instance_group.rate_limiter": Refused("and instances run whenever they have work"),
    "instance_group.gpus": Refused("and the server chooses the device"),
    "instance_group.secondary_devices": Refused("and a model runs on one device"),
    "instance_group.profile": Refused("and only TensorRT has optimization profiles"),
    "instance_group.passive": Refused("and every instance takes work"),
    "instance_group.host_policy": Refused("and the server has no host policies"),
    "default_model_filename": Honoured("the model's file in the version's folder; `model.onnx` without it"),
    "cc_model_filenames": Refused("and one file serves every device: default_model_filename names it"),
    "metric_tags": Honoured("kept, and answered by ModelConfig"),
    "parameters": Honoured(
        "settings of the runtime, listed below; a key that is none of the runtime's is kept, and answered by "
        "ModelConfig"
    ),
    "parameters.string_value": Honoured("the value"),
    "model_warmup": Honoured("requests that are run at load; one that fails, fails the load"),
    "model_warmup.name": Honoured("for the error that names it"),
    "model_warmup.batch_size": Honoured("rows of the request: the input is repeated; 0 is 1"),
    "model_warmup.inputs": Honoured("one for each of the model's inputs"),
    "model_warmup.inputs.data_type": Honoured("must be the model's"),
    "model_warmup.inputs.dims": Honoured("without the batch axis, every size from 1"),
    "model_warmup.inputs.zero_data": Honoured("zeros, or empty strings"),
    "model_warmup.inputs.random_data": Honoured("from 0 to 1 where real, from 0 to 127 where whole, or digits"),
    "model_warmup.inputs.input_data_file": Honoured(
        "a file in the folder `warmup` of the model's folder: one row's raw tensor, as the protocol carries it"
    ),
    "model_warmup.count": Honoured("how many times it is run; 0 is 1"),
    "model_operations": Refused("and the server loads no libraries of custom operators"),
    "model_transaction_policy": Honoured("the message; `decoupled` is refused"),
    "model_transaction_policy.decoupled": Refused("and a request has one answer"),
    "model_repository_agents": Refused("and the server has no repository agents"),
    "response_cache": Honoured("the message"),
    "response_cache.enable": Honoured("with `--response-cache-bytes`, outputs are kept and answered again"),
    "model_metrics": Refused("and the buckets of metrics are the same for every model"),
}
"""By path, in the order of the message. Fields in a refused message need no entry."""


def refuse(source: str, message: Message) -> None:
    """Raises LoadError for the first field set in `message`, a ModelConfig, that is not honoured; it names the rest."""
    refused = list(_refused(message, ""))
    if not refused:
        return
    path, which, why = refused[0]
    rest = ", ".join(path for path, _, _ in refused[1:])
    raise LoadError(f"{source} sets {path}{which}, {why}: take it out" + (f", and {rest} too" if rest else ""))


def children(field: FieldDescriptor) -> Descriptor | None:
    """The message whose fields may be set within a field: a map's is that of its values. None for a plain value."""
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        message = message.fields_by_name["value"].message_type
    return message


def _refused(message: Message, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Path, which of several, and why."""
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        verdict = FIELDS.get(path, Refused("and this server does not know it"))
        if isinstance(verdict, Refused):
            name = getattr(message, "name", "") if prefix and field.name != "name" else ""
            yield path, f" of '{name}'" if name else "", verdict.why
        elif children(field) is not None:
            for each in _messages(field, value):
                yield from _refused(each, f"{path}.")


def _messages(field: FieldDescriptor, value: Any) -> list[Message]:
    if isinstance(value, Message):
        return [value]
    entry = field.message_type
    return list(value.values() if entry is not None and entry.GetOptions().map_entry else value)
