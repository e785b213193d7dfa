"""One surface under coverage guidance until its time is up: `python -m fuzz.guided SURFACE FOLDER [libFuzzer options]`.

The driver's child. Findings are written to `FOLDER/findings` and the search goes on; what widened the coverage lies in
`FOLDER/corpus`.
"""

import hashlib
import sys
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["felloe", "tuf", "securesystemslib", "idna", "email._parseaddr"]):
    from fuzz.surface import MOST_INPUT_BYTES, Finding, Surface, kept, try_input
    from fuzz.surfaces import SURFACES

_SHARE_BY_MEANING = 0.6


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    surface = SURFACES[name]
    corpus, findings = folder / "corpus", folder / "findings"
    for each in (corpus, findings):
        each.mkdir(parents=True, exist_ok=True)
    for data in [*surface.seeds(), *(path.read_bytes() for path in kept(surface))]:
        (corpus / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
    words = folder / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in surface.words))
    seen: set[str] = set()

    def one(data: bytes) -> None:
        try:
            try_input(surface, data)
        except Finding as finding:
            why = str(finding)
            if _kind(why) not in seen:
                seen.add(_kind(why))
                stem = hashlib.sha1(data, usedforsecurity=False).hexdigest()[:16]
                (findings / stem).write_bytes(data)
                (findings / f"{stem}.why").write_text(why + "\n")

    options = [f"-max_len={MOST_INPUT_BYTES}", f"-dict={words}", "-print_final_stats=1", *sys.argv[3:]]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=_mutator(surface))
    atheris.Fuzz()


def _mutator(surface: Surface):
    def mutate(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        changed = surface.mutate(data, random) if random.random() < _SHARE_BY_MEANING else None
        return atheris.Mutate(data, most) if changed is None or len(changed) > most else changed

    return mutate


def _kind(why: str) -> str:
    """A finding without what differs between two inputs."""
    return why.partition(":")[0] + why.rpartition(" at ")[2]


def _escaped(word: str) -> str:
    return "".join(chr(byte) if 32 < byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in word.encode())


if __name__ == "__main__":
    main()
