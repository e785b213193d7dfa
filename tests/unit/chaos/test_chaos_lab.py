"""Namespaces are a network of their own, and nothing of them is left."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import lab
from chaos.lab import LoopbackLab, NamespaceLab, Place
from networks import wait_for

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not Path("/dev/net/tun").exists(),
    reason="namespaces need root on Linux and /dev/net/tun",
)
PORT = 9000


@pytest.fixture
def built(tmp_path: Path) -> Iterator[NamespaceLab]:
    laboratory = NamespaceLab(tmp_path / "lab", seed=1)
    try:
        yield laboratory
    finally:
        laboratory.close()


@pytest.fixture
def listening(built: NamespaceLab) -> Iterator[tuple[NamespaceLab, Place, Place]]:
    """Two places, and a server in the second one."""
    asker, server = built.add("asker"), built.add("server")
    command = [*server.prefix, sys.executable, "-m", "http.server", str(PORT), "--directory", str(server.home)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for("the server", lambda: reaches(asker, server.address))
        yield built, asker, server
    finally:
        process.kill()
        process.wait()


def reaches(place: Place, address: str) -> bool:
    script = f"import socket; socket.create_connection(('{address}', {PORT}), timeout=0.4)"
    return (
        subprocess.run([*place.prefix, sys.executable, "-c", script], capture_output=True, check=False).returncode == 0
    )


def test_links_are_cut_and_mended(listening: tuple[NamespaceLab, Place, Place]) -> None:
    built, asker, server = listening
    built.spoil([("server", "asker")], loss=1.0)
    assert not reaches(asker, server.address)
    built.spoil([("server", "asker")])
    assert reaches(asker, server.address)


def test_a_place_moves_to_another_address(listening: tuple[NamespaceLab, Place, Place]) -> None:
    built, asker, server = listening
    moved = built.move("server")
    assert moved != server.address
    assert reaches(asker, moved)
    assert not reaches(asker, server.address)


def test_each_place_has_a_small_disk_of_its_own(built: NamespaceLab) -> None:
    places = [built.add("one"), built.add("two")]
    sizes = {os.statvfs(place.home).f_blocks * os.statvfs(place.home).f_frsize for place in places}
    assert sizes == {lab.DISK_BYTES}
    assert len({place.home.stat().st_dev for place in places}) == 2


def test_closing_removes_namespaces_and_mounts(tmp_path: Path) -> None:
    laboratory = NamespaceLab(tmp_path / "lab", seed=1)
    home = laboratory.add("one").home
    assert list(lab.NAMESPACES.glob(f"{lab.PREFIX}-{os.getpid()}-*"))
    laboratory.close()
    assert not list(lab.NAMESPACES.glob(f"{lab.PREFIX}-{os.getpid()}-*"))
    assert not home.is_mount()


def test_sweeping_spares_a_run_that_lives(built: NamespaceLab) -> None:
    built.add("one")
    assert f"{lab.PREFIX}-{os.getpid()}-" not in lab.sweep()
    assert list(lab.NAMESPACES.glob(f"{lab.PREFIX}-{os.getpid()}-*"))


def test_loopback_places_have_ports_of_their_own(tmp_path: Path) -> None:
    laboratory = LoopbackLab(tmp_path)
    ports = [
        value
        for place in (laboratory.add("one"), laboratory.add("two"))
        for value in (
            place.settings["api"]["port"],
            place.settings["peer"]["port"],
            place.settings["peer"]["mesh_port"],
        )
    ]
    assert len(set(ports)) == 6
