"""The data sets known by name: their classes, and the SHA-256 of their files without compression."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from inferd_training.data.kinds import IMAGES, TEXT, Kind
from inferd_training.errors import DataError

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
"""The four files of a data set of images, under the names that MNIST gave them."""


@dataclass(frozen=True, slots=True)
class KnownDataset:
    """A data set known by `name`. `sha256` is by file name, of the uncompressed content, where it never changes.

    `labels` are empty where those of the files count.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    sha256: Mapping[str, str] = field(default_factory=dict)
    kind: Kind = IMAGES

    @property
    def own(self) -> bool:
        """Whether nobody has it but the user."""
        return not self.labels


MNIST = KnownDataset(
    name="mnist",
    title="MNIST handwritten digits",
    labels=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
    sha256={
        TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)

FASHION_MNIST = KnownDataset(
    name="fashion-mnist",
    title="Fashion-MNIST",
    # The order is that of the data set's own README (Zalando Research).
    labels=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    sha256={
        TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        TRAIN_LABELS: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        TEST_LABELS: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
)

MANPAGES = KnownDataset(
    name="manpages",
    title="Debian's manual pages in eight languages",
    labels=("German", "English", "Spanish", "French", "Italian", "Dutch", "Polish", "Portuguese"),
    kind=TEXT,
)

OWN_TEXT = KnownDataset(name="text", title="labelled texts of your own", labels=(), kind=TEXT)

DATASETS: Mapping[str, KnownDataset] = {dataset.name: dataset for dataset in (MNIST, FASHION_MNIST, MANPAGES, OWN_TEXT)}


def hashes(contents: Mapping[str, bytes]) -> dict[str, str]:
    """The SHA-256 (hex) of each content, by file name."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def check_hashes(dataset: KnownDataset, found: Mapping[str, str], source: str) -> None:
    """Raises DataError, naming the first file, where a hash is not the one of `dataset`."""
    for name in FILES:
        if found[name] != dataset.sha256[name]:
            raise DataError(
                f"{name} from {source} is not {dataset.title}'s own: SHA-256 {dataset.sha256[name]} was expected, "
                f"{found[name]} came"
            )


def recognise(found: Mapping[str, str]) -> dict[str, KnownDataset]:
    """The known data set of each file whose hash is known, by file name; files of the user's own are left out."""
    by_hash = {(name, digest): dataset for dataset in DATASETS.values() for name, digest in dataset.sha256.items()}
    return {name: by_hash[name, digest] for name, digest in found.items() if (name, digest) in by_hash}
