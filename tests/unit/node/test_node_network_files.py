"""A network's keys on disk: whatever fails while they are replaced, a hub has all old ones or all new ones."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from felloe.domain.errors import FelloeError
from felloe.mesh.rotation import Keys, found, rotate, rotate_root
from felloe.mesh.trust import Trust
from felloe.node.config import NodeConfig
from felloe.node.founding import found_network
from felloe.node.home import Home
from felloe.node.network_files import NetworkFiles

NOW = time.time()


class Crash(BaseException):
    """The machine lost its power."""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.prepare()
    return home


def check(files: NetworkFiles, *expected: Keys) -> None:
    """All of one of these, and none of another."""
    authority, trust, root = files.authority(), files.trust(), files.root()
    assert authority is not None
    assert trust is not None
    assert root is not None
    authority.check(trust, NOW)
    assert (authority.to_bytes(), trust, root.pin) in [
        (keys.authority.to_bytes(), keys.trust, keys.root.pin) for keys in expected
    ]


def test_keys_come_back_and_are_private(home: Home) -> None:
    keys = found(NOW)
    NetworkFiles(home).save_keys(keys)
    check(NetworkFiles(home), keys)
    for path in home.keys.iterdir():
        assert path.stat().st_mode & 0o077 == 0


MOVE, SAVE_TRUST = Path.replace, NetworkFiles.save_trust


class Failing(Home):
    """Loses its power after so many changes on disk."""

    def __init__(self, folder: Path, changes: int) -> None:
        super().__init__(folder)
        self.left = changes

    def spend(self) -> None:
        if not self.left:
            raise Crash
        self.left -= 1

    def write_key(self, name: str, secret: bytes) -> None:
        self.spend()
        super().write_key(name, secret)


@pytest.mark.parametrize("replace", [rotate, rotate_root])
@pytest.mark.parametrize("changes", range(5))
def test_a_crash_at_any_step_leaves_all_old_or_all_new(
    home: Home, replace: Callable[[Keys, float, float], Keys], changes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = found(NOW)
    NetworkFiles(home).save_keys(keys)
    for _ in range(3):
        new = replace(keys, NOW, 0)
        failing = Failing(home.folder, changes)

        def spend_and_move(path: Path, target: Path, failing: Failing = failing) -> Path:
            if path.name.startswith("network-root"):
                failing.spend()
            return MOVE(path, target)

        def spend_and_save(files: NetworkFiles, trust: Trust, failing: Failing = failing) -> None:
            failing.spend()
            SAVE_TRUST(files, trust)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", spend_and_move)
            patch.setattr(NetworkFiles, "save_trust", spend_and_save)
            try:
                NetworkFiles(failing).save_keys(new)
            except Crash:
                check(NetworkFiles(home), keys, new)
            else:
                check(NetworkFiles(home), new)
        present = NetworkFiles(home).trust()
        keys = new if present == new.trust else keys


def test_a_root_may_be_kept_elsewhere(home: Home) -> None:
    keys = found(NOW)
    files = NetworkFiles(home)
    files.save_keys(keys)
    files.forget_root()
    assert files.root() is None
    assert files.authority() is not None
    new = rotate_root(keys, NOW, 0)
    files.save_keys(new, keep_root=False)
    assert files.root() is None
    assert files.trust() == new.trust
    assert not [path for path in home.keys.iterdir() if "root" in path.name]


def test_a_spoke_keeps_the_newest_trust_and_no_signing_keys(home: Home) -> None:
    keys = found(NOW)
    files = NetworkFiles(home)
    assert (files.trust(), files.authority(), files.root()) == (None, None, None)
    files.save_trust(keys.trust)
    assert files.trust() == keys.trust
    assert files.authority() is None


def test_a_hub_that_is_one_no_more_keeps_its_trust(home: Home) -> None:
    keys = found(NOW)
    files = NetworkFiles(home)
    files.save_authority(keys.authority, keys.trust)
    files.forget_authority()
    files.forget_authority()
    assert (files.authority(), files.trust()) == (None, keys.trust)


@pytest.mark.parametrize("name", ["network-keys.json", "network-root.pem", "trust.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff", b'{"authority": "", "trust": ""}'])
def test_a_damaged_file_is_named_and_not_quoted(home: Home, name: str, content: bytes) -> None:
    files = NetworkFiles(home)
    files.save_keys(found(NOW))
    path = (home.state if name == "trust.json" else home.keys) / name
    path.write_bytes(content)
    with pytest.raises(FelloeError, match=name) as damaged:
        files.authority()
        files.trust()
        files.root()
    assert damaged.value.code == "bad_state"


def test_a_founded_network_has_everything_that_a_hub_needs(home: Home) -> None:
    files = NetworkFiles(home)
    membership = found_network(files, NodeConfig(), "attic")
    authority, trust, root, credential = files.authority(), files.trust(), files.root(), files.credential()
    assert authority is not None
    assert trust is not None
    assert root is not None
    assert credential is not None
    assert membership.network == trust.network == root.network == authority.network
    assert files.membership() == membership
    authority.check(trust, time.time())
    files.forget_network()
    assert list(home.keys.iterdir()) == []
    assert files.trust() is None
