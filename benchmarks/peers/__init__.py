"""The peers' servers: each script runs in its own environment and imports nothing of this project's but `onnx_model`."""
