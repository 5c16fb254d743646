"""Labelled texts small enough to train on in a test, and packages of manual pages that never were."""

import gzip
import io
import random
import tarfile
from collections.abc import Mapping
from pathlib import Path

from inferd_training.data import tsv

WORDS = {
    "German": ["der", "Befehl", "gibt", "die", "Datei", "nicht", "aus", "und", "wird", "über", "keine"],
    "English": ["the", "command", "prints", "this", "file", "which", "is", "not", "and", "would", "be"],
    "Spanish": ["el", "comando", "imprime", "los", "ficheros", "que", "no", "y", "está", "según", "una"],
    "French": ["le", "nom", "du", "fichier", "est", "lu", "par", "la", "commande", "où", "à"],
    "Italian": ["il", "nome", "del", "viene", "letto", "dal", "che", "è", "più", "nella", "riga"],
    "Dutch": ["de", "naam", "van", "het", "bestand", "wordt", "niet", "een", "gelezen", "door", "zijn"],
    "Polish": ["nazwa", "pliku", "jest", "przez", "się", "nie", "wiersz", "być", "może", "dla", "który"],
    "Portuguese": ["o", "nome", "do", "arquivo", "não", "uma", "linha", "são", "por", "padrão", "você"],
}


def sentence(label: str, drawn: random.Random) -> str:
    return " ".join(drawn.choices(WORDS[label], k=drawn.randint(10, 14))) + "."


def tiny_texts(train: int = 40, test: int = 16, seed: int = 0, validation: int = 0) -> dict[str, bytes]:
    """The files of a folder: as many lines of each, of two languages in turn."""
    drawn = random.Random(seed)
    labels = ("German", "Spanish")

    def lines(count: int) -> bytes:
        return tsv.write((labels[row % 2], sentence(labels[row % 2], drawn)) for row in range(count))

    contents = {tsv.TRAIN_TEXT: lines(train), tsv.TEST_TEXT: lines(test)}
    return {**contents, **({tsv.VALIDATION_TEXT: lines(validation)} if validation else {})}


def roff(label: str, page: str, sentences: int = 6) -> str:
    drawn = random.Random(f"{label} {page}")
    paragraphs = "\n.PP\n".join(sentence(label, drawn).replace(" ", "\n", 3) for _ in range(sentences))
    return f'.\\" Kommentar\n.TH {page.upper()} 1\n.SH NAME\n{paragraphs}\n.SH CODE\n.nf\n{paragraphs[:40]}\n.fi\n'


def package(files: Mapping[str, str | bytes]) -> bytes:
    """A package's files as `dpkg-deb --fsys-tarfile` gives them: text is packed as manual pages are."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(f"./{path}")
            packed = content if isinstance(content, bytes) else gzip.compress(content.encode())
            member.size = len(packed)
            tar.addfile(member, io.BytesIO(packed))
    return stream.getvalue()


def manual(label: str, folder: str, pages: int = 30) -> dict[str, str | bytes]:
    """The files of a package of manual pages in `folder` ("de/", "" for English)."""
    return {f"usr/share/man/{folder}man1/p{page}.1.gz": roff(label, f"p{page}") for page in range(pages)}


def put_packages(folder: Path, packages: Mapping[str, bytes]) -> None:
    """Each package's archive in `folder`, as NAME.tar."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in packages.items():
        (folder / f"{name}.tar").write_bytes(content)
