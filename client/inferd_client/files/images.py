"""Pictures as a model takes them: size, channels and their order are read off the shape of its input."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from inferd_protocol.command import CommandError
from PIL import Image, ImageOps, UnidentifiedImageError

from inferd_client.metadata import TensorMetadata

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """What an input takes: pixels (None: of any number), 1 channel (grey) or 3 (RGB), and on which axis, if on any."""

    height: int | None
    width: int | None
    channels: int
    axis: int | None

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height, None where the picture keeps its own."""
        return None if self.height is None or self.width is None else (self.width, self.height)


def image_format(tensor: TensorMetadata) -> ImageFormat:
    """The format for an input of shape [n, height, width], [n, height, width, 1 or 3] or [n, 1 or 3, height, width].

    Raises CommandError for other shapes, and for datatypes that 0 to 255 do not fit into.
    """
    if tensor.datatype.numpy.kind not in "uif" or tensor.datatype.name == "INT8":
        raise CommandError(f"input '{tensor.name}' takes {tensor.datatype.name}, which cannot hold 0 to 255")
    match tensor.shape:
        case (_, height, width):
            return ImageFormat(_fixed(height), _fixed(width), 1, None)
        case (_, height, width, channels) if channels in _MODES:
            return ImageFormat(_fixed(height), _fixed(width), channels, -1)
        case (_, channels, height, width) if channels in _MODES:
            return ImageFormat(_fixed(height), _fixed(width), channels, 0)
    raise CommandError(
        f"input '{tensor.name}' of shape {list(tensor.shape)} is not one of pictures: give the rows as .npy instead"
    )


def read(path: Path, wanted: ImageFormat) -> npt.NDArray[np.uint8]:
    """A picture of `wanted`, turned upright, converted and resized: [height, width] or with the axis of its channels.

    Raises CommandError for a file that is no picture, or one with more than 8 bits a channel.
    """
    try:
        # Pillow warns of a picture so large that it may be an attack; what a user names on the command line is not.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if picture.mode.startswith(("I", "F")):
                    raise CommandError(f"{path} has more than 8 bits a channel: convert it first")
                upright = ImageOps.exif_transpose(picture).convert(_MODES[wanted.channels])
    except UnidentifiedImageError as error:
        raise CommandError(f"{path} is no picture that can be read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CommandError(f"cannot read {path}: {error}") from error
    if wanted.size is not None and upright.size != wanted.size:
        upright = upright.resize(wanted.size, Image.Resampling.BILINEAR)
    pixels = np.asarray(upright)
    if wanted.axis is None:
        return pixels
    if wanted.channels == 1:
        return np.expand_dims(pixels, wanted.axis)
    return np.moveaxis(pixels, -1, wanted.axis)


def _fixed(size: int) -> int | None:
    return None if size < 0 else size
