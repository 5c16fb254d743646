"""What can go wrong between the data and the published artefact.

    TrainingError
     +- DataError             a data file or folder cannot be used
     |   +- SourceUnavailable  one source cannot give the data; the next may
     +- ModelError            a model file, run folder or setting cannot be used
     +- AccuracyError         a smaller model answers worse than was allowed
     +- ExportError           the conversion failed
     +- VerificationError     the converted model was refused
     +- OptimiseError         an optimisation was refused or cannot be had
     +- PublishError          the artefact was refused, or its place is taken

Each message is one sentence: what was expected, what came, what to do.
"""

from __future__ import annotations


class TrainingError(Exception):
    """The root: whatever this package refuses for a reason that the user can act on."""


class DataError(TrainingError):
    """A data file or folder cannot be used."""


class SourceUnavailable(DataError):
    """One source cannot give the data."""


class ModelError(TrainingError):
    """A model file, a run folder or a setting cannot be used."""


class AccuracyError(TrainingError):
    """A smaller model answers worse than was allowed."""


class ExportError(TrainingError):
    """The conversion to ONNX failed."""


class VerificationError(TrainingError):
    """The converted model was refused: it must not be published."""


class OptimiseError(TrainingError):
    """An optimisation was refused or cannot be had."""


class PublishError(TrainingError):
    """The artefact was refused, or its place in the repository is taken."""
