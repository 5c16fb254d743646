"""`parameters` and the graph level: settings of the runtime, under the names that Triton's ONNX Runtime backend has."""

from __future__ import annotations

from collections.abc import Mapping

from inferd_protocol.reasons import LABEL_PREFIX

from inferd_server.errors import LoadError
from inferd_server.repository.labels import is_label
from inferd_server.runtime.backend import GraphLevel, SessionSettings

PROVIDER = "provider"
"""The execution provider that runs the model: answered by ModelConfig, and checked where it is declared."""

TUNED = "tuned"
"""What `--tune on` chose: answered by ModelConfig, and not read."""

_MOST_THREADS = 1024
_MOST_VERSION = 999_999_999

_LEVELS = {-1: GraphLevel.BASIC, 0: GraphLevel.ALL, 1: GraphLevel.EXTENDED, 2: GraphLevel.NONE}

_ENTRIES = (
    "session.disable_prepacking",
    "session.inter_op.allow_spinning",
    "session.intra_op.allow_spinning",
    "session.use_device_allocator_for_initializers",
)

HONOURED: Mapping[str, str] = {
    "intra_op_thread_count": "threads within one run, instead of `--intra-op-threads`; 0 leaves it to the server",
    "inter_op_thread_count": "threads across the branches of a graph, where `execution_mode` is 1; 0 is 1",
    "execution_mode": "0 runs the nodes one after the other, 1 branches of the graph in parallel",
    "enable_mem_arena": "0 or 1: whether the runtime keeps the memory of a run for the next",
    "enable_mem_pattern": "0 or 1: whether the runtime plans the memory of a run as one piece",
    **dict.fromkeys(_ENTRIES, "0 or 1: the runtime's session option of this name"),
    TUNED: "not read: ModelConfig answers here which session options `--tune on` has chosen",
    PROVIDER: "must be the execution provider that runs the model",
    f"{LABEL_PREFIX}<label>": "a version that can be called by this label, where it is READY",
}
"""Keys that are acted on, and how."""

REFUSED = frozenset(
    {
        "arena_extend_strategy",
        "cudnn_conv_algo_search",
        "cudnn_conv_use_max_workspace",
        "do_copy_in_default_stream",
        "enable_cuda_graph",
        "gpu_mem_limit",
        "share_session_between_instances",
        "use_ep_level_unified_stream",
    }
)
"""Keys that Triton's backend knows and this server does not have."""

REFUSED_PREFIXES = ("ep.", "memory.", "optimization.", "session.")
"""Names of the runtime's own: of these, what is not honoured is refused.

`session.set_denormal_as_zero` for one: the runtime takes it from the first session of the process, for all of them."""


def is_of_runtime(key: str) -> bool:
    """Whether a key is of the runtime that runs a file: labels, and keys of the operator's own, are not."""
    return key in HONOURED or key in REFUSED or key.startswith(REFUSED_PREFIXES)


def session_settings(source: str, parameters: Mapping[str, str], graph_level: int) -> SessionSettings:
    """The settings that a model's session is to have.

    Raises LoadError for a key of the runtime's that is not honoured, and for values that make no sense.
    """
    for key in parameters:
        if key not in HONOURED and (key in REFUSED or key.startswith(REFUSED_PREFIXES)):
            raise LoadError(f"{source} sets parameters '{key}', which this server does not pass on: take it out")
    if graph_level not in _LEVELS:
        raise LoadError(f"{source} says optimization.graph.level: {graph_level}, expected -1, 0, 1 or 2")
    return SessionSettings(
        intra_op_threads=_number(source, parameters, "intra_op_thread_count", _MOST_THREADS),
        inter_op_threads=_number(source, parameters, "inter_op_thread_count", _MOST_THREADS) or 1,
        parallel=_flag(source, parameters, "execution_mode", default=False),
        memory_arena=_flag(source, parameters, "enable_mem_arena", default=True),
        memory_pattern=_flag(source, parameters, "enable_mem_pattern", default=True),
        graph_level=_LEVELS[graph_level],
        entries={key: str(int(_flag(source, parameters, key, default=False))) for key in _ENTRIES if key in parameters},
        explicit=_explicit(parameters, graph_level),
    )


def _explicit(parameters: Mapping[str, str], graph_level: int) -> frozenset[str]:
    """Fields of SessionSettings that are set. A level of 0 cannot be told from none."""
    fields = {"enable_mem_arena": "memory_arena", "enable_mem_pattern": "memory_pattern"}
    found = {field for key, field in fields.items() if key in parameters}
    if parameters.get("intra_op_thread_count", "0").strip("0"):
        found.add("intra_op_threads")
    if graph_level:
        found.add("graph_level")
    return frozenset(found)


def version_labels(source: str, parameters: Mapping[str, str]) -> Mapping[str, int]:
    """The versions that `label:<label>` name. Raises LoadError where the label or the version can be none."""
    labels: dict[str, int] = {}
    for key, text in parameters.items():
        if not key.startswith(LABEL_PREFIX):
            continue
        label = key.removeprefix(LABEL_PREFIX)
        number = _number(source, parameters, key, _MOST_VERSION)
        if not number or not is_label(label):
            raise LoadError(
                f"{source} says parameters '{key}': '{text}', expected a word that begins with a letter, and a version"
            )
        labels[label] = number
    return labels


def _number(source: str, parameters: Mapping[str, str], key: str, most: int) -> int:
    text = parameters.get(key, "0")
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if not 0 <= number <= most:
        raise LoadError(f"{source} says parameters '{key}': '{text}', expected a whole number from 0 to {most}")
    return number


def _flag(source: str, parameters: Mapping[str, str], key: str, *, default: bool) -> bool:
    text = parameters.get(key, str(int(default)))
    if text not in ("0", "1"):
        raise LoadError(f"{source} says parameters '{key}': '{text}', expected 0 or 1")
    return text == "1"
