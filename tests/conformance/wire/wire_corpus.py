"""The recorded messages. `python tests/conformance/wire/wire_corpus.py` records what is new in the present version.

A folder `corpus/<major.minor>/` holds one file a message, as that version wrote it, and `manifest.json`: what each of
them means. A message is recorded once and kept: to change one after its version was released breaks the upgrade.
"""

from pathlib import Path
from typing import Any

import msgspec
import wire_catalog
import wire_commands
import wire_hubs
import wire_network
import wire_roster
import wire_serving
import wire_state
import wire_streams
import wire_transfer
import wire_trust
from wire_case import Case, meaning

from felloe import __version__

CORPUS = Path(__file__).parent / "corpus"
CASES: dict[str, Case] = {
    case.name: case
    for part in (
        wire_roster,
        wire_streams,
        wire_hubs,
        wire_trust,
        wire_state,
        wire_serving,
        wire_network,
        wire_commands,
        wire_transfer,
        wire_catalog,
    )
    for case in part.CASES
}


def own_version() -> str:
    """This program's `major.minor`, as its folder is called."""
    return ".".join(__version__.split(".")[:2])


def versions() -> list[str]:
    """The versions whose messages are recorded."""
    return sorted(folder.name for folder in CORPUS.iterdir() if folder.is_dir())


def manifest(version: str) -> dict[str, Any]:
    """What each recorded message of `version` means, by the case's name."""
    return msgspec.json.decode((CORPUS / version / "manifest.json").read_bytes(), type=dict[str, Any])


def recorded(version: str, case: Case) -> bytes:
    """A message as `version` wrote it."""
    return (CORPUS / version / case.file).read_bytes()


def record(folder: Path) -> list[str]:
    """Write the messages that `folder` lacks, and what they mean; their names. What is there stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "manifest.json"
    meanings = msgspec.json.decode(listed.read_bytes(), type=dict[str, Any]) if listed.exists() else {}
    new = [name for name in CASES if name not in meanings]
    for name in new:
        case = CASES[name]
        data = case.write()
        (folder / case.file).write_bytes(data)
        meanings[name] = meaning(case.read(data))
    listed.write_bytes(msgspec.json.format(msgspec.json.encode(meanings), indent=1) + b"\n")
    return new


def main() -> None:
    """Record the present version."""
    folder = CORPUS / own_version()
    for name in record(folder):
        print(f"recorded {name} in {folder}")


if __name__ == "__main__":
    main()
