"""Leaving a network: the node stops, a hub is told, then its key, its credential and everything of the network go."""

import asyncio
import time
from pathlib import Path

import httpx

from felloe.catalog.approval.curator_key import CuratorKey
from felloe.catalog.approval.trusted import TrustedCatalog
from felloe.domain.errors import FelloeError
from felloe.host.files import HomeLock
from felloe.hubs.records import HUBS, HubSet, decode
from felloe.hubs.saved_state import SAVED_NAME, read_saved
from felloe.mesh.join_client import leave
from felloe.mesh.membership import Membership
from felloe.node.home import Home
from felloe.node.network_files import NetworkFiles

_STOP_SECONDS = 20.0
_TELL_SECONDS = 15.0


def describe(folder: Path, *, force: bool = False) -> str:
    """What leaving means for the node of this home.

    Raises `bad_state` when it is in no network, and without `force` `wrong_node` on a hub that is not the only one, or
    when nobody could approve a model any more.
    """
    home = Home(folder)
    files = NetworkFiles(home)
    membership = _membership(files, folder)
    if membership.role != "hub":
        return (
            f"This node leaves network {membership.network}; to come back it needs a new invitation."
            f"{_curators_loss(files, home, force=force)}"
        )
    others = _other_hubs(files, home, membership)
    if not others:
        return (
            f"This node is the only hub of network {membership.network}: leaving ENDS the network for every node, "
            "and its keys are deleted."
        )
    if not force:
        raise FelloeError(
            "wrong_node",
            f"this node is a hub; let the others take over first: `felloe demote {membership.name}` "
            f"on {' or '.join(others)}, then leave (--force leaves at once)",
        )
    return (
        f"This node is a hub, and {', '.join(others)} will miss it: they keep it as a hub that is down until "
        f"`felloe revoke {membership.name}` is run on one of them."
    )


def leave_network(folder: Path, *, force: bool = False) -> str:
    """Stop the node if it runs, tell a hub, then delete its membership and keys; a sentence on what the hubs know.

    Raises as `describe`, and `forbidden` with nothing deleted when the hubs refuse, for instance because they are about
    to make this node a hub.
    """
    home = Home(folder)
    describe(folder, force=force)
    _stop_if_running(home)
    with lock_when_free(home):
        files = NetworkFiles(home)
        membership = _membership(files, folder)
        told = "" if membership.role == "hub" else _tell_hub(files, membership, force=force)
        files.forget_network()
    return told


def _membership(files: NetworkFiles, folder: Path) -> Membership:
    membership = files.membership()
    if membership is None:
        raise FelloeError("bad_state", f"the node in {folder} belongs to no network")
    return membership


def _curators_loss(files: NetworkFiles, home: Home, *, force: bool) -> str:
    """A sentence on what goes with the curator's key of this node; empty where there is none that counts."""
    key, trust = CuratorKey.load(files.curator_key_path), files.trust()
    if key is None or trust is None:
        return ""
    catalog = TrustedCatalog(home.catalog, trust.catalog)
    catalog.open()
    known = catalog.approvals
    if known is None or known.curator(key.public_key) is None:
        return ""
    if len(known.curators) <= known.threshold and not force:
        raise FelloeError(
            "wrong_node",
            f"{known.threshold} curators must agree, and without the key of this node too few are left: nothing could "
            "be approved any more; `felloe curators add` somebody first (--force leaves at once)",
        )
    return " Its curator's key is deleted, too."


def _other_hubs(files: NetworkFiles, home: Home, membership: Membership) -> list[str]:
    """The names of the other hubs, by the copy of the state that a hub keeps up to date."""
    saved = read_saved(files.read_state(SAVED_NAME), home.state / SAVED_NAME)
    entry = None if saved is None else saved.entries.get(HUBS)
    if entry is None or entry.value is None:
        return []
    hubs = decode(entry.value, HubSet)
    return sorted(hub.name for hub in hubs.hubs if hub.id != membership.node)


def _tell_hub(files: NetworkFiles, membership: Membership, *, force: bool) -> str:
    """Have a hub remove this node from the members; leaving does not depend on it."""

    async def tell() -> None:
        trust = files.trust()
        if trust is None:
            raise FelloeError("bad_state", "its trust list is missing")
        async with asyncio.timeout(_TELL_SECONDS):
            await leave(membership, trust, files.node_key(), now=time.time)

    try:
        asyncio.run(tell())
    except TimeoutError:
        reason = f"no hub answered in {_TELL_SECONDS:.0f} s"
    except FelloeError as error:
        if error.code == "forbidden" and not force:
            detail = f"the hubs refuse it: {error.detail}. Nothing was deleted; --force leaves all the same"
            raise FelloeError("forbidden", detail) from error
        reason = error.detail
    else:
        return "the hubs have removed it from the members"
    return f"no hub was told ({reason}); run `felloe revoke {membership.name}` on a hub"


def _stop_if_running(home: Home) -> None:
    if not home.operator_socket.exists():
        return
    transport = httpx.HTTPTransport(uds=str(home.operator_socket))
    try:
        with httpx.Client(transport=transport, base_url="http://felloe", timeout=10) as client:
            client.post("/stop")
    except httpx.TransportError:
        return  # nothing listens, so nothing runs


def lock_when_free(home: Home) -> HomeLock:
    """The home's lock, not held, once its node has ended. Raises `home_in_use` when it does not within 20 s."""
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
