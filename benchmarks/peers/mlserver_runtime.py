"""MLServer: a custom runtime, as its documentation writes one. Its settings are files that `mlserver_server` writes."""

from __future__ import annotations

import onnx_model
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Cnn(MLModel):  # type: ignore[misc]
    """One variant of the model."""

    async def load(self) -> bool:
        """Makes the session."""
        datatype = next(key for key, name in onnx_model.MODELS.items() if name == self.name)
        self._dtype = onnx_model.DTYPES[datatype]
        self._session = onnx_model.load(datatype)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One request, or what MLServer's batcher made of several."""
        batch = NumpyCodec.decode_input(payload.inputs[0]).astype(self._dtype, copy=False)
        output = NumpyCodec.encode_output(onnx_model.OUTPUT, onnx_model.run(self._session, batch))
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])
