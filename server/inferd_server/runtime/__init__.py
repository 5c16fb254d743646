"""Runs models. The only room that knows ONNX Runtime."""
