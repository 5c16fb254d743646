"""From a Keras model to an ONNX file that is known to give the same answers."""
