"""Replacing keys and taking the root offline from the terminal: passphrases come in unseen and never go out."""

import os
import pty
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from felloe.cli.client import OperatorClient
from felloe.cli.main import create_app
from felloe.console.hub_messages import (
    KeysReplaced,
    RootExported,
    RootExportRequest,
    RootRotateRequest,
    RootView,
    RotateRequest,
    SealedRoot,
    TrustedRow,
)
from felloe.domain.errors import FelloeError

SECRET = "a long passphrase"


class FakeNode:
    """Takes every request."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.here = True

    def tell(self, _: OperatorClient, path: str, message: Any, kind: object) -> Any:
        self.told.append((path, message))
        if path == "/root/export":
            return RootExported(message.path, "ab" * 32, message.remove)
        exported = getattr(message, "export_path", "")
        until = 1.9e9 if message.overlap_seconds else 0.0
        return KeysReplaced(version=2, pin="ab" * 32, overlap_until=until, here=self.here, exported=exported)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    monkeypatch.setenv("FELLOE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    fake = FakeNode()
    monkeypatch.setattr(OperatorClient, "tell", lambda *arguments: fake.tell(*arguments))
    return fake


def felloe(*arguments: str, stdin: str = "") -> Result:
    done = CliRunner().invoke(create_app(), list(arguments), input=stdin)
    assert SECRET not in done.output + str(done.exception)
    return done


def test_keys_are_replaced_with_an_overlap_or_at_once(node: FakeNode) -> None:
    assert "the old ones are believed until 2030" in felloe("rotate").stdout
    assert "the old ones are void" in felloe("rotate", "--now").stdout
    felloe("rotate", "--overlap", "90m")
    assert [message for _, message in node.told] == [RotateRequest(172_800), RotateRequest(0), RotateRequest(5400)]


def test_an_offline_root_is_read_and_its_passphrase_comes_from_standard_input(node: FakeNode, tmp_path: Path) -> None:
    file = tmp_path / "root.pem"
    file.write_bytes(b"sealed")
    assert felloe("rotate", "--now", "--root", str(file), stdin=SECRET + "\n").exit_code == 0
    assert node.told == [("/network/rotate", RotateRequest(0, SealedRoot(b"sealed", SECRET)))]


def test_a_missing_passphrase_is_an_error_and_nothing_is_told(node: FakeNode, tmp_path: Path) -> None:
    file = tmp_path / "root.pem"
    file.write_bytes(b"sealed")
    done = felloe("rotate", "--root", str(file))
    assert isinstance(done.exception, FelloeError)
    assert done.exception.code == "bad_passphrase"
    assert node.told == []


def test_a_file_that_is_missing_or_no_root_is_named(node: FakeNode, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(20_000))
    for file, word in ((tmp_path / "missing", "cannot be read"), (large, "too large")):
        done = felloe("rotate", "--root", str(file), stdin=SECRET)
        assert word in str(done.exception) and file.name in str(done.exception)
    assert node.told == []


def test_the_root_is_exported_to_an_absolute_path(
    node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = felloe("root", "export", "root.pem", stdin=SECRET + "\n")
    assert "the key is still on this machine, too" in kept.stdout
    removed = felloe("root", "export", "root.pem", "--remove", stdin=SECRET + "\n")
    assert "on this machine no more" in removed.stdout
    path = str(tmp_path / "root.pem")
    assert [message for _, message in node.told] == [
        RootExportRequest(path, SECRET),
        RootExportRequest(path, SECRET, True),
    ]


def test_a_new_root_takes_one_passphrase_to_open_and_one_to_close(node: FakeNode, tmp_path: Path) -> None:
    file = tmp_path / "root.pem"
    file.write_bytes(b"sealed")
    node.here = False
    fresh = str(tmp_path / "next.pem")
    done = felloe("root", "rotate", "--root", str(file), "--export", fresh, stdin="the old passphrase\n" + SECRET)
    assert f"the new root is in {fresh}\n" in done.stdout
    request = RootRotateRequest(30 * 86_400, SealedRoot(b"sealed", "the old passphrase"), fresh, SECRET)
    assert node.told == [("/root/rotate", request)]


def test_a_new_root_that_is_nowhere_else_is_told(node: FakeNode) -> None:
    assert "lies only on this machine: felloe root export FILE" in felloe("root", "rotate", "--now").stdout
    assert node.told == [("/root/rotate", RootRotateRequest(0))]


def test_the_root_is_shown(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    view = RootView(
        network="n" * 26,
        pin="ab" * 32,
        here=True,
        exported_at=0,
        version=3,
        roots=(TrustedRow("ab" * 32, 0, 1.9e9),),
        issuers=(TrustedRow("cd" * 32, 0, 1.9e9), TrustedRow("ef" * 32, 1.8e9, 1.9e9)),
    )
    monkeypatch.setattr(OperatorClient, "ask", lambda *_: view)
    shown = felloe("root", "show").stdout
    assert "ab" * 32 in shown and "on this machine" in shown and "exported" not in shown
    assert "(retiring)" in shown and "version 3" in shown
    assert msgspec.json.decode(felloe("root", "show", "--json").stdout, type=RootView) == view


ASKING = """
from felloe.cli.passphrase import ask_passphrase
print("heard", len(ask_passphrase("for root.pem", twice=True)))
"""


def test_a_typed_passphrase_does_not_show_on_the_terminal() -> None:
    control, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", ASKING], stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    try:
        shown = ""
        for prompt in ("Passphrase for root.pem: ", "Repeat for confirmation: "):
            shown += read_until(control, prompt)
            os.write(control, (SECRET + "\n").encode())
        shown += read_until(control, f"heard {len(SECRET)}")
        assert child.wait(timeout=20) == 0
    finally:
        child.kill()
        child.wait()
        os.close(control)
    assert SECRET not in shown


def read_until(control: int, word: str) -> str:
    """All that the terminal shows up to a word; a test that waits for ever is ended by a hang-up."""
    shown = ""
    while word not in shown:
        assert select.select([control], [], [], 60)[0], shown
        shown += os.read(control, 4096).decode()
    return shown
