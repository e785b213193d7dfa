"""A home's folders are private, its secrets are refused once others can read them, its socket paths stay short."""

import os
from pathlib import Path

import pytest

from felloe.domain.errors import FelloeError
from felloe.node.home import Home
from felloe.node.network_files import NetworkFiles


def test_folders_are_private(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.prepare()
    for folder in (home.folder, home.keys, home.state, home.logs, home.models):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_secret_is_written_private_and_refused_when_others_can_read_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.prepare()
    home.write_key("a.key", b"secret")
    path = home.keys / "a.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert home.read_key("a.key") == b"secret"
    path.chmod(0o640)
    with pytest.raises(FelloeError, match=r"a\.key"):
        home.read_key("a.key")


def test_a_long_home_gets_a_short_socket_in_a_folder_of_its_own(tmp_path: Path) -> None:
    home = Home(tmp_path / ("x" * 120))
    home.prepare()
    path = home.operator_socket
    assert len(str(path).encode()) <= 100
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.parent.stat().st_uid == os.getuid()
    assert Home(tmp_path / ("y" * 120)).operator_socket != path
    path.parent.rmdir()


def test_a_damaged_key_is_named(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.prepare()
    home.write_key("node.key", b"-----BEGIN PRIVATE KEY-----\nnonsense")
    with pytest.raises(FelloeError, match=r"node\.key") as damaged:
        NetworkFiles(home).node_key()
    assert damaged.value.code == "bad_state"


def test_the_node_key_is_made_once(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.prepare()
    files = NetworkFiles(home)
    assert files.node_key().public_key() == files.node_key().public_key()
    assert (home.keys / "node.key").stat().st_mode & 0o077 == 0


def test_a_damaged_membership_is_named(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.prepare()
    (home.state / "membership.json").write_text("{")
    with pytest.raises(FelloeError, match=r"membership\.json"):
        NetworkFiles(home).membership()
