from pathlib import Path

import pytest

from felloe.learning.corpus import CorpusError, Document, corpus_digest, is_excluded, is_held_out, read_corpus
from felloe.learning.recipe import CorpusChoice

CHOICE = CorpusChoice(exclude=("test", "asyncio/"), minimum_characters=10, held_out_one_in=5)


def write_library(folder: Path, *paths: str) -> Path:
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# the text of {path}\n", encoding="utf-8")
    return folder


def test_the_split_is_the_one_that_shipped_figures_rest_on() -> None:
    names = [f"module_{number}.py" for number in range(40)]
    assert [name for name in names if is_held_out(name, 20)] == ["module_14.py"]


def test_a_new_file_moves_no_old_file_across_the_split(tmp_path: Path) -> None:
    library = write_library(tmp_path, *(f"module_{number}.py" for number in range(20)))
    before = read_corpus(library, CHOICE)
    write_library(tmp_path, "a_new_module.py")
    after = read_corpus(library, CHOICE)
    assert set(before.training) <= set(after.training)
    assert set(before.held_out) <= set(after.held_out)
    assert before.digest != after.digest


def test_no_document_is_in_both_splits(tmp_path: Path) -> None:
    corpus = read_corpus(write_library(tmp_path, *(f"module_{number}.py" for number in range(20))), CHOICE)
    assert not set(corpus.training) & set(corpus.held_out)
    assert len(corpus.training) + len(corpus.held_out) == 20


def test_excluded_generated_short_and_undecodable_files_are_left_out(tmp_path: Path) -> None:
    kept = [f"module_{number}.py" for number in range(20)]
    write_library(tmp_path, *kept, "email/test/case.py", "asyncio/locks.py", "_sysconfigdata__linux.py", "notes.txt")
    (tmp_path / "short.py").write_text("x = 1")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9 and more\n")
    corpus = read_corpus(tmp_path, CHOICE)
    assert {document.path for document in corpus.training + corpus.held_out} == set(kept)


@pytest.mark.parametrize(
    ("path", "excluded"),
    [
        ("test/a.py", True),
        ("json/test/a.py", True),
        ("test.py", False),
        ("asyncio/a.py", True),
        ("x/asyncio/a.py", False),
    ],
)
def test_a_folder_name_excludes_anywhere_and_a_path_only_at_the_root(path: str, excluded: bool) -> None:
    assert is_excluded(path, CHOICE.exclude) is excluded


def test_the_digest_tells_apart_texts_that_join_to_the_same_bytes() -> None:
    assert corpus_digest([Document("a", "bc")]) != corpus_digest([Document("ab", "c")])


def test_a_python_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="too little Python source"):
        read_corpus(tmp_path, CHOICE)
