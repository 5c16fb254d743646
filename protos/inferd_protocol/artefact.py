"""The published artefact: where its files lie in a model repository, and what its ONNX metadata says.

Metadata values are strings; those marked JSON hold a JSON document.
"""

MODEL_FILE = "model.onnx"
"""`<repository>/<model>/<version>/model.onnx`, Triton's layout."""

WEIGHTS_FILE = "model.onnx.data"
"""Beside the model, where its weights are too many for one protobuf message: they lie there, and the model says where
(`inferd_protocol.external_data`)."""

REPORT_FILE = "report.json"
"""Beside the model: what was verified, and how it came out (JSON)."""

GOLDEN_FILE = "golden.npz"
"""Beside the model, optional: a few samples and the answers that are expected to them (`inferd_protocol.golden`)."""

CONFIG_FILE = "config.pbtxt"
"""`<repository>/<model>/config.pbtxt`: optional."""

LABELS_KEY = "inferd.labels"
"""ONNX metadata, JSON: {output name: [label, ...]}, one label per element of the output's last axis."""

PREPROCESSING_KEY = "inferd.preprocessing"
"""ONNX metadata, JSON: what the graph does to its raw inputs, in words and numbers, by input name."""

TOKENISER_KEY = "inferd.tokeniser"
"""ONNX metadata, JSON, where an input takes token ids: {input name: how they are made of a text}.

`encoding` "utf-8" and `unit` "byte": an id is a byte of the text plus `offset`. The first `length` are taken, and
`padding` fills up what is shorter; ids are below `vocabulary`. `words` says the same to people.
"""

TRAINING_KEY = "inferd.training"
"""ONNX metadata, JSON: family, hyper-parameters, metrics on the test set."""

DATA_KEY = "inferd.data"
"""ONNX metadata, JSON: the dataset's name, its source, the SHA-256 of each of its files, and {package: version} of
what those were made from, if anything."""

OPTIMISATION_KEY = "inferd.optimisation"
"""ONNX metadata, JSON: the SHA-256 of the export that the model was made of, how, and what the gate found."""

VERSIONS_KEY = "inferd.versions"
"""ONNX metadata, JSON: {package: version} of everything that shaped the artefact."""
