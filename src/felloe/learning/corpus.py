"""The training text: the Python standard library as documents, split by file.

The text is what the running Python ships, so its digest and the Python version belong to every figure.
"""

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from felloe.learning.recipe import CorpusChoice

# Written by the build of each interpreter: they differ from machine to machine.
_GENERATED_PREFIX = "_sysconfigdata"


class CorpusError(RuntimeError):
    """The machine's Python cannot supply the text that a recipe asks for."""


@dataclass(frozen=True)
class Document:
    """One source file; `path` is relative to the library, with forward slashes."""

    path: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, documents kept for evaluation, and what identifies both."""

    training: tuple[Document, ...]
    held_out: tuple[Document, ...]
    digest: str
    """SHA-256 in hexadecimal over every path and text, in order of path."""
    python_version: str


def standard_library() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def read_corpus(library: Path, choice: CorpusChoice) -> Corpus:
    """Read every chosen `.py` file under `library`; raises CorpusError if either split is empty."""
    documents = _documents(library, choice)
    held_out = tuple(doc for doc in documents if is_held_out(doc.path, choice.held_out_one_in))
    training = tuple(doc for doc in documents if not is_held_out(doc.path, choice.held_out_one_in))
    if not training or not held_out:
        raise CorpusError(
            f"{library} holds too little Python source ({len(documents)} files): "
            "use a Python that ships its standard library as files"
        )
    return Corpus(training, held_out, corpus_digest(documents), platform.python_version())


def is_held_out(path: str, one_in: int) -> bool:
    """Whether a file is kept for evaluation: decided by its path alone, so new files move no old one."""
    return pick(path, one_in) == 0


def pick(key: str, count: int) -> int:
    """A number below `count` that follows from `key` alone: a choice that every run and machine repeats."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % count


def is_excluded(path: str, exclude: tuple[str, ...]) -> bool:
    """Whether a relative path lies in an excluded folder name, or under an excluded `folder/`."""
    folders = PurePosixPath(path).parts[:-1]
    return any(path.startswith(rule) if rule.endswith("/") else rule in folders for rule in exclude)


def corpus_digest(documents: list[Document]) -> str:
    """SHA-256 over paths and texts; lengths go in too, so that no two corpora share their bytes."""
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.path.encode(), document.text.encode()):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()


def _documents(library: Path, choice: CorpusChoice) -> list[Document]:
    found: list[Document] = []
    for file in library.rglob("*.py"):
        path = file.relative_to(library).as_posix()
        if is_excluded(path, choice.exclude) or file.name.startswith(_GENERATED_PREFIX):
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if len(text) >= choice.minimum_characters:
            found.append(Document(path, text))
    return sorted(found, key=lambda document: document.path)
