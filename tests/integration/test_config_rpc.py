"""config.pbtxt and RPC ModelConfig, as a client sees them that nobody here wrote."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as triton
from support import models
from support.server import serve
from tritonclient.utils import InferenceServerException

CONFIGURED = """
platform: "onnxruntime_onnx"
max_batch_size: 6
default_model_filename: "other.onnx"
version_policy { all { } }
input { name: "image" data_type: TYPE_UINT8 dims: [ 16 ] reshape { shape: [ 4, 4, 1 ] } }
output { name: "probabilities" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" }
instance_group { kind: KIND_CPU count: 2 }
dynamic_batching {
  preferred_batch_size: [ 2, 4 ]
  max_queue_delay_microseconds: 100
  default_queue_policy { default_timeout_microseconds: 60000000 allow_timeout_override: true max_queue_size: 50 }
}
optimization { graph { level: 1 } }
metric_tags { key: "team" value: "vision" }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
model_warmup { name: "zeros" batch_size: 2
  inputs { key: "image" value { data_type: TYPE_UINT8 dims: 16 zero_data: true } } }
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[triton.InferenceServerClient]:
    folder = tmp_path_factory.mktemp("configured")
    for name, text in {
        "configured": CONFIGURED,
        "refused": "ensemble_scheduling { }",
        "contradicting": 'max_batch_size: 2 input { name: "image" data_type: TYPE_UINT8 dims: [ 4, 4, 3 ] }',
    }.items():
        path = models.write(folder, name, models.classifier())
        (folder / name / "config.pbtxt").write_text(text)
        if name == "configured":
            path.rename(path.with_name("other.onnx"))
            (folder / name / "labels.txt").write_text("klein\nmittel\ngroß\n", encoding="utf-8")
    models.write(folder, "plain", models.classifier(), version=3)
    models.write(folder, "fixed", models.fixed_batch())
    with (
        serve(folder, "--transport", transport, "--device", "cpu", "--max-batch-size", "8") as running,
        triton.InferenceServerClient(running.address) as connected,
    ):
        yield connected


def test_without_a_file_everything_comes_from_the_model(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("plain", "3").config
    assert (config.name, config.platform, config.backend) == ("plain", "onnxruntime_onnx", "onnxruntime")
    assert (config.max_batch_size, config.default_model_filename) == (8, "model.onnx")
    assert config.version_policy.latest.num_versions == 1
    (image,), (probabilities,) = config.input, config.output
    assert (image.name, list(image.dims)) == ("image", [4, 4, 1])
    assert (probabilities.name, list(probabilities.dims)) == ("probabilities", [3])
    as_json = client.get_model_config("plain", as_json=True)["config"]
    assert (as_json["input"][0]["data_type"], as_json["output"][0]["data_type"]) == ("TYPE_UINT8", "TYPE_FP32")
    assert as_json["instance_group"] == [{"kind": "KIND_CPU", "count": 1}]
    assert as_json["parameters"] == {"provider": {"string_value": "CPUExecutionProvider"}}
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 2048


def test_a_model_without_a_batch_axis_has_its_whole_dims_and_no_batching(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("fixed").config
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [1, 3]
    assert config.WhichOneof("scheduling_choice") is None


def test_a_file_is_answered_and_acted_on(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("configured").config
    assert (config.max_batch_size, config.default_model_filename) == (6, "other.onnx")
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    assert list(config.input[0].dims) == [16]
    assert list(config.input[0].reshape.shape) == [4, 4, 1]
    assert config.output[0].label_filename == "labels.txt"
    assert config.instance_group[0].count == 2
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4]
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 50
    assert config.optimization.graph.level == 1
    assert dict(config.metric_tags) == {"team": "vision"}
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert config.model_warmup[0].name == "zeros"
    assert list(client.get_model_metadata("configured").inputs[0].shape) == [-1, 16]
    images = np.random.default_rng(3).integers(0, 256, (20, 4, 4, 1), np.uint8)
    tensor = triton.InferInput("image", [20, 16], "UINT8")
    tensor.set_data_from_numpy(images.reshape(20, 16))
    answer = client.infer("configured", [tensor]).as_numpy("probabilities")
    np.testing.assert_allclose(answer, models.classify(images), rtol=1e-5)
    classes = client.infer(
        "configured", [tensor], outputs=[triton.InferRequestedOutput("probabilities", class_count=1)]
    ).as_numpy("probabilities")
    best = models.classify(images).argmax(axis=1)
    assert [each[0].decode().rpartition(":")[2] for each in classes] == [
        ("klein", "mittel", "groß")[one] for one in best
    ]


@pytest.mark.parametrize(
    ("name", "version", "code", "message"),
    [
        ("none", "", "NOT_FOUND", "model 'none' is not known"),
        ("plain", "7", "NOT_FOUND", "no version 7"),
        ("plain", "x", "INVALID_ARGUMENT", "whole number"),
        ("refused", "", "UNAVAILABLE", "config.pbtxt sets ensemble_scheduling, and"),
        ("contradicting", "1", "UNAVAILABLE", "with dims [4, 4, 3], the model has [4, 4, 1] (without the batch axis)"),
    ],
)
def test_what_does_not_run_has_no_configuration(
    client: triton.InferenceServerClient, name: str, version: str, code: str, message: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.get_model_config(name, version)
    assert caught.value.status() == f"StatusCode.{code}"
    assert message in str(caught.value.message())
