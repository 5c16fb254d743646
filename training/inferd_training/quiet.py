"""Loads TensorFlow without its chatter, which it writes to the process's stderr past any Python logging."""

from __future__ import annotations

import logging
import os
import sys
import tempfile


def load_tensorflow() -> None:
    """Imports TensorFlow and Keras, on Keras's TensorFlow backend, keeping start-up messages off stderr.

    For commands: file descriptor 2 is redirected meanwhile, for every thread of the process. Where the import fails,
    what was held back is written after all. Redirects nothing where TensorFlow is loaded already.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("tensorflow", "tf2onnx", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if "tensorflow" in sys.modules:
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            import keras  # noqa: F401 - loaded for its effect
            import tensorflow as tf

            # The first operation sets up the devices, and has as much to say as the import.
            tf.constant(0)
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
