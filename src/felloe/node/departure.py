"""Leaving a network: the node stops, then forgets its key, its credential and everything of the network."""

import time
from pathlib import Path

import httpx

from felloe.domain.errors import FelloeError
from felloe.host.files import HomeLock
from felloe.node.home import Home
from felloe.node.network_files import NetworkFiles

_STOP_SECONDS = 20.0


def describe(folder: Path) -> str:
    """What leaving means for the node of this home. Raises `bad_state` when it is in no network."""
    membership = NetworkFiles(Home(folder)).membership()
    if membership is None:
        raise FelloeError("bad_state", f"the node in {folder} belongs to no network")
    if membership.role == "hub":
        return (
            f"This node is the hub of network {membership.network}: leaving ENDS the network for every node, "
            "and its keys are deleted."
        )
    return f"This node leaves network {membership.network}; to come back it needs a new invitation."


def leave_network(folder: Path) -> None:
    """Stop the node if it runs, then delete its membership and keys."""
    home = Home(folder)
    describe(folder)
    _stop_if_running(home)
    with _lock_when_free(home):
        NetworkFiles(home).forget_network()


def _stop_if_running(home: Home) -> None:
    transport = httpx.HTTPTransport(uds=str(home.operator_socket))
    try:
        with httpx.Client(transport=transport, base_url="http://felloe", timeout=10) as client:
            client.post("/stop")
    except httpx.TransportError:
        return  # nothing listens, so nothing runs


def _lock_when_free(home: Home) -> HomeLock:
    lock = HomeLock(home.lock)
    deadline = time.monotonic() + _STOP_SECONDS
    while True:
        try:
            lock.acquire()
        except FelloeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            lock.release()
            return HomeLock(home.lock)
