"""What the operator decides: every setting of the server, validated once, immutable afterwards.

The command line is generated from the fields, their defaults and the text in their metadata.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from inferd_server.errors import ConfigurationError

MIB = 1024 * 1024

MOST_TUNE_SECS = 600.0


class Device(StrEnum):
    """Where models run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


class Precision(StrEnum):
    """What engines may calculate in, where that is faster; in single precision they always may."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class Tune(StrEnum):
    """Whether session options are chosen by measuring, once for each model."""

    OFF = "off"
    ON = "on"


class Transport(StrEnum):
    """What speaks gRPC."""

    AUTO = "auto"
    GRPCIO = "grpcio"
    NATIVE = "native"


class ControlMode(StrEnum):
    """Who decides which models are loaded."""

    NONE = "none"
    POLL = "poll"
    EXPLICIT = "explicit"


class SharedMemory(StrEnum):
    """Whether clients may register shared memory."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least important lines that are still written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def port_or_off(text: str) -> int | None:
    """A port as the command line has it; None for `off`. Raises ValueError for any other word."""
    return None if text == "off" else int(text)


def _setting(text: str, *, default: Any = None, parse: Callable[[str], Any] = str, many: bool = False) -> Any:
    metadata = {"help": text, "parse": parse, "many": many}
    return field(default=() if many else default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The settings of one server process. Raises ConfigurationError where they make no sense together."""

    model_repository: Path = field(
        metadata={"help": "folder of models, <model>/<version>/model.onnx", "parse": Path, "many": False}
    )
    grpc_address: str = _setting("address to listen on; 0.0.0.0 for every interface", default="127.0.0.1")
    grpc_port: int = _setting("port to listen on; 0 takes a free one", default=8001, parse=int)
    metrics_address: str | None = _setting("address to serve metrics on; the default is that of --grpc-address")
    metrics_port: int | None = _setting(
        "port of the metrics for Prometheus, http://ADDRESS:PORT/metrics; 0 takes a free one, off serves none",
        default=8002,
        parse=port_or_off,
    )
    access_log: str | None = _setting("file that gets a line of JSON for each inference request; - for stdout")
    trace_endpoint: str | None = _setting(
        "collector that gets traces, OTLP over gRPC, http://HOST:4317 or https://; without it there are none"
    )
    trace_rate: int = _setting(
        "of so many requests one is traced, beside those whose caller says so; 0 traces the latter alone",
        default=1000,
        parse=int,
    )
    transport: Transport = _setting(
        "what speaks gRPC: native is fastest and knows no TLS; auto takes it where it is installed and TLS is off",
        default=Transport.AUTO,
        parse=Transport,
    )
    device: Device = _setting(
        "where models run: auto takes CUDA where it works, else the CPU; what is named fails where it cannot be had",
        default=Device.AUTO,
        parse=Device,
    )
    allow_tf32: bool = _setting(
        "let a GPU multiply FP32 in TF32: faster, with 10 bits of mantissa", default=False, parse=bool
    )
    cuda_graphs: bool = _setting(
        "with --device cuda: capture the batch sizes 1, 2, 4, ... as CUDA graphs at load; batches are padded to them",
        default=False,
        parse=bool,
    )
    gpu_memory_limit_bytes: int = _setting(
        "most memory that the arena of each model takes on the GPU; 0 for no limit", default=0, parse=int
    )
    gpu_arena_shrinkage: bool = _setting(
        "give memory of the GPU's arena back after each run: for GPUs that are shared, and slower",
        default=False,
        parse=bool,
    )
    tensorrt_precision: Precision = _setting(
        "with --device tensorrt: let engines calculate in this too where it is faster; models and their inputs and "
        "outputs stay as they are",
        default=Precision.FP32,
        parse=Precision,
    )
    tune: Tune = _setting(
        "on measures on the CPU, once a model, which session options run it fastest, and keeps what it found in "
        "--cache-dir; config.pbtxt and --intra-op-threads go before it",
        default=Tune.OFF,
        parse=Tune,
    )
    tune_secs: float = _setting("most seconds that --tune on measures a model", default=5.0, parse=float)
    cache_dir: Path | None = _setting(
        "folder for what --tune on found and TensorRT built; the default is inferd in $XDG_CACHE_HOME or ~/.cache",
        parse=Path,
    )
    model_control_mode: ControlMode = _setting(
        "what is loaded: none all once; poll what the repository holds; explicit what --load-model and requests say",
        default=ControlMode.NONE,
        parse=ControlMode,
    )
    load_model: tuple[str, ...] = _setting("model to load at the start under explicit control (repeatable)", many=True)
    repository_poll_secs: float = _setting(
        "seconds between two looks at the repository under poll control", default=15.0, parse=float
    )
    max_batch_size: int = _setting("most rows run at once; longer requests are split", default=64, parse=int)
    max_request_rows: int = _setting("most rows one request may bring", default=65536, parse=int)
    max_queue_size: int = _setting("most requests that wait for one model; more are refused", default=2048, parse=int)
    max_queue_bytes: int = _setting("most bytes of requests that wait for one model", default=512 * MIB, parse=int)
    max_sequences: int = _setting(
        "most sequences of one model that are live, where its config.pbtxt sets no max_candidate_sequences",
        default=4096,
        parse=int,
    )
    response_cache_bytes: int = _setting(
        "most bytes of answers kept, in each worker, for models whose config.pbtxt says response_cache; 0 keeps none",
        default=0,
        parse=int,
    )
    workers: int = _setting(
        "processes that share the port, each with the models of its own: for hosts with many CPUs",
        default=1,
        parse=int,
    )
    max_queue_delay_microseconds: int = _setting(
        "longest that a batch which is not full waits for more rows; 0 never waits", default=0, parse=int
    )
    instances: int = _setting("batches of one model that run at the same time", default=1, parse=int)
    intra_op_threads: int = _setting(
        "threads within one run; 0 shares the CPUs that may be used among workers and instances", default=0, parse=int
    )
    required_model: tuple[str, ...] = _setting(
        "model without which the server is not ready (repeatable); with none, any one model will do", many=True
    )
    grpc_max_message_size: int = _setting("largest message received or sent, bytes", default=64 * MIB, parse=int)
    grpc_max_concurrent_streams: int = _setting("most calls at once on one connection", default=1024, parse=int)
    grpc_use_ssl: bool = _setting("serve TLS", default=False, parse=bool)
    grpc_server_cert: Path | None = _setting("PEM certificate chain of the server", parse=Path)
    grpc_server_key: Path | None = _setting("PEM private key of the server", parse=Path)
    grpc_root_cert: Path | None = _setting("PEM certificates that client certificates are checked against", parse=Path)
    grpc_use_ssl_mutual: bool = _setting("require client certificates", default=False, parse=bool)
    shared_memory: SharedMemory = _setting(
        "whether clients may register shared memory, of the system or of a GPU, which whoever can call the server then "
        "reads and writes as the server's user; auto says on where only this host can call it and there is one worker",
        default=SharedMemory.AUTO,
        parse=SharedMemory,
    )
    drain_delay_secs: float = _setting(
        "seconds between saying NOT_SERVING and refusing calls, for load balancers to notice", default=0.0, parse=float
    )
    exit_timeout_secs: float = _setting("seconds that running requests get to finish", default=30.0, parse=float)
    log_format: LogFormat = _setting("log lines as text or as JSON", default=LogFormat.TEXT, parse=LogFormat)
    log_level: LogLevel = _setting("least important lines that are written", default=LogLevel.INFO, parse=LogLevel)

    def __post_init__(self) -> None:
        self._at_least(1, "max_batch_size", "max_request_rows", "max_queue_size", "max_queue_bytes", "instances")
        self._at_least(1, "grpc_max_concurrent_streams", "workers", "max_sequences")
        self._at_least(0, "max_queue_delay_microseconds", "response_cache_bytes", "trace_rate")
        self._at_least(0, "intra_op_threads", "drain_delay_secs", "exit_timeout_secs", "grpc_port")
        self._at_least(1024, "grpc_max_message_size")
        self._at_least(0, "gpu_memory_limit_bytes")
        self._check_devices()
        if self.repository_poll_secs <= 0:
            raise ConfigurationError(f"--repository-poll-secs expects more than 0, got {self.repository_poll_secs}")
        if self.load_model and self.model_control_mode is not ControlMode.EXPLICIT:
            raise ConfigurationError("--load-model needs --model-control-mode explicit: without it all are loaded")
        if self.workers > 1 and self.model_control_mode is ControlMode.EXPLICIT:
            raise ConfigurationError(
                "--model-control-mode explicit works with one worker: a request reaches one of several, and the others "
                "would not know; use poll with --workers"
            )
        if self.shared_memory is SharedMemory.ON and self.workers > 1:
            raise ConfigurationError(
                "--shared-memory on needs --workers 1: a client's registration reaches only one worker"
            )
        if self.trace_endpoint is not None and not re.fullmatch(r"https?://[^/\s]+", self.trace_endpoint):
            raise ConfigurationError(
                f"--trace-endpoint expects http://HOST:PORT or https://HOST:PORT, got '{self.trace_endpoint}'"
            )
        if self.metrics_port is not None:
            self._at_least(0, "metrics_port")
        for flag, port in (("--grpc-port", self.grpc_port), ("--metrics-port", self.metrics_port or 0)):
            if port > 65535:
                raise ConfigurationError(f"{flag} expects at most 65535, got {port}")
        if self.metrics_port and self.metrics_port == self.grpc_port:
            raise ConfigurationError(f"--metrics-port and --grpc-port are both {self.grpc_port}: expected two ports")
        if self.grpc_use_ssl_mutual and not self.grpc_root_cert:
            raise ConfigurationError("--grpc-use-ssl-mutual needs --grpc-root-cert to check clients against")
        if self.grpc_use_ssl and not (self.grpc_server_cert and self.grpc_server_key):
            raise ConfigurationError("--grpc-use-ssl needs --grpc-server-cert and --grpc-server-key")
        if not self.grpc_use_ssl and (self.grpc_server_cert or self.grpc_server_key or self.grpc_use_ssl_mutual):
            raise ConfigurationError("certificates are given, but TLS is off: add --grpc-use-ssl")
        if self.grpc_use_ssl and self.transport is Transport.NATIVE:
            raise ConfigurationError("--transport native knows no TLS: use --transport grpcio with --grpc-use-ssl")
        for path in (self.grpc_server_cert, self.grpc_server_key, self.grpc_root_cert):
            if path is not None and not path.is_file():
                raise ConfigurationError(f"{path} is not a file: expected PEM certificates or a key")

    @property
    def shared_memory_refusal(self) -> str:
        """Why clients may not register shared memory, one sentence; empty where they may."""
        match self.shared_memory:
            case SharedMemory.ON:
                return ""
            case SharedMemory.OFF:
                return "this server has shared memory switched off: send tensors in the message"
        if self.workers > 1:
            return "shared memory is off where a server has several workers: send tensors in the message"
        if not _is_loopback(self.grpc_address):
            return (
                "shared memory is off where other hosts can call the server: send tensors in the message, "
                "or start it with --shared-memory on"
            )
        return ""

    def _check_devices(self) -> None:
        if not 0 < self.tune_secs <= MOST_TUNE_SECS:
            raise ConfigurationError(
                f"--tune-secs expects more than 0 and at most {MOST_TUNE_SECS:g}, got {self.tune_secs}"
            )
        if self.cuda_graphs and self.device is not Device.CUDA:
            raise ConfigurationError(f"--cuda-graphs needs --device cuda, got --device {self.device}")
        if self.cuda_graphs and self.gpu_arena_shrinkage:
            raise ConfigurationError(
                "--cuda-graphs and --gpu-arena-shrinkage exclude each other: a captured graph keeps its memory"
            )
        if self.tensorrt_precision is not Precision.FP32 and self.device is not Device.TENSORRT:
            raise ConfigurationError(
                f"--tensorrt-precision {self.tensorrt_precision} needs --device tensorrt, got --device {self.device}"
            )

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                flag = "--" + name.replace("_", "-")
                raise ConfigurationError(f"{flag} expects at least {least}, got {getattr(self, name)}")


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        # Another name: who can call it is not known here.
        return False
