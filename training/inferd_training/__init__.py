"""Data to verified, published ONNX."""
