"""What `felloe doctor` says about hubs: the root key, the clock beside theirs, this node as one, how many there are,
and whether they renew the catalogue.
"""

import asyncio
import ipaddress
import time

from felloe.console.catalog_messages import CatalogView
from felloe.console.hub_messages import HubsView
from felloe.domain.errors import CATALOGUE, FelloeError
from felloe.hubs.addresses import peer_addresses
from felloe.mesh.join_client import ask_time
from felloe.mesh.join_token import parse_address
from felloe.mesh.membership import Membership
from felloe.mesh.trust import Trust
from felloe.node.config import NodeConfig, PeerConfig
from felloe.node.findings import Finding, can_listen
from felloe.node.founding import endpoints
from felloe.node.home import Home
from felloe.node.network_files import NetworkFiles
from felloe.node.root_operations import export_note

SKEW_SECONDS = 30.0
_CLOCK_SECONDS = 8.0
_MOST_ASKED = 8
_RENEWAL_DAYS = 3.0


def root_finding(home: Home) -> Finding:
    """Whether the network's root key could be lost with this machine."""
    files = NetworkFiles(home)
    root, note = files.root(), export_note(files)
    if root is None:
        return Finding("root key", "ok", "not on this machine")
    if note is None or note.pin != root.pin.hex():
        step = "Write it to a file that is kept elsewhere: felloe root export FILE"
        return Finding("root key", "warning", "the network's root key lies only on this machine", step)
    day = time.strftime("%Y-%m-%d", time.gmtime(note.at))
    return Finding(
        "root key", "ok", f"exported on {day}, and kept here; `felloe root export --remove` takes it offline"
    )


def clock_finding(home: Home, config: NodeConfig) -> Finding:
    """This machine's clock beside that of another hub."""
    files = NetworkFiles(home)
    membership, trust = files.membership(), files.trust()
    if membership is None or trust is None:
        return Finding("hub's clock", "ok", "this node belongs to no network yet")
    own = set(peer_addresses(endpoints(config.peer)))
    others = [address for address in membership.hubs if address not in own or membership.role != "hub"]
    if not others:
        return Finding("hub's clock", "ok", "there is no other hub to compare with")
    try:
        skew = asyncio.run(_skew(membership, trust, others[:_MOST_ASKED]))
    except FelloeError as error:
        return Finding("hub's clock", "warning", f"no hub told its time: {error.detail}", error.spec.next_step)
    if abs(skew) > SKEW_SECONDS:
        side = "ahead of" if skew > 0 else "behind"
        step = "Set the clocks of both machines; turn on NTP."
        return Finding("hub's clock", "warning", f"this clock is {abs(skew):.0f} s {side} a hub's", step)
    return Finding("hub's clock", "ok", f"within {SKEW_SECONDS:.0f} s of a hub's")


async def _skew(membership: Membership, trust: Trust, addresses: list[str]) -> float:
    """Seconds that this clock is ahead of the first hub that answers."""
    asked = [asyncio.ensure_future(_skew_at(address, trust)) for address in addresses]
    failure = FelloeError("network_unreachable", f"no hub answered in {_CLOCK_SECONDS:.0f} s")
    try:
        for answer in asyncio.as_completed(asked, timeout=_CLOCK_SECONDS):
            try:
                return await answer
            except FelloeError as error:
                failure = error
    except TimeoutError:
        pass
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    raise failure


async def _skew_at(address: str, trust: Trust) -> float:
    try:
        hub = parse_address(address)
    except ValueError as error:
        raise FelloeError("bad_state", f"{address} is no address of a hub") from error
    begun = time.time()
    told = await ask_time(hub, trust, now=time.time)
    # The hub cuts its time to whole seconds, somewhere between the question and the answer.
    return (begun + time.time()) / 2 - (told + 0.5)


def hub_ports_finding(home: Home, config: NodeConfig, *, running: bool) -> Finding:
    """Whether this node could become a hub, as far as can be seen from here."""
    peer = config.peer
    ports = _hub_ports(peer)
    listed = ", ".join(f"{name} {port}" for name, port in ports.items())
    if not peer.hub:
        return Finding("hub ports", "ok", "this node is set to be no hub (peer.hub)")
    membership = NetworkFiles(home).membership()
    if running and membership is not None and membership.role == "hub":
        return Finding("hub ports", "ok", f"{listed} (this node is a hub)")
    taken = [f"{name} {port}" for name, port in ports.items() if port and not can_listen(peer.host, port)]
    if taken:
        step = "Stop the other program, choose other ports in config.toml, or set peer.hub to false."
        if membership is not None and membership.role == "hub":
            return Finding("hub ports", "failed", f"taken: {', '.join(taken)}", step)
        return Finding("hub ports", "warning", f"this node could not become a hub, taken: {', '.join(taken)}", step)
    hosts = endpoints(peer).hosts
    if all(_is_loopback(host) for host in hosts):
        step = "Set peer.host and peer.advertise so that others can dial this node, or peer.hub to false."
        return Finding("hub ports", "warning", f"only this machine itself can dial {', '.join(hosts)}", step)
    return Finding("hub ports", "ok", f"free: {listed}; `felloe promote` tries them from another hub")


def _hub_ports(peer: PeerConfig) -> dict[str, int]:
    after = peer.state_port + 1 if peer.state_port else 0
    return {
        "peer.port": peer.port,
        "peer.mesh_port": peer.mesh_port,
        "peer.route_port": peer.route_port,
        "peer.state_port": peer.state_port,
        "the port after it": after,
    }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def catalog_finding(view: CatalogView, now: float) -> Finding:
    """How long models may still be loaded by what is known of their approval; `now` in Unix seconds."""
    days = (view.expires_at - now) / 86_400
    detail = "; ".join((f"{len(view.rows)} models, good for {max(0.0, days):.1f} days", *view.notes))
    if days <= 0:
        return Finding("catalogue", "failed", detail, CATALOGUE["catalog_expired"].next_step)
    if days < _RENEWAL_DAYS:
        step = "Hubs renew it daily: see that this node reaches one, and that their clocks are right."
        return Finding("catalogue", "warning", detail, step)
    return Finding("catalogue", "warning" if view.notes else "ok", detail)


def hubs_finding(view: HubsView) -> Finding:
    """What the network survives."""
    count = len(view.hubs)
    detail = f"{count} hub{'' if count == 1 else 's'}; the network {view.survives}"
    if not view.writable:
        return Finding("hubs", "failed", detail, "Start the missing hubs, or see docs/hubs.md.")
    if count == 2:
        return Finding("hubs", "warning", detail, "Promote a third node: felloe promote NODE")
    down = [hub.name for hub in view.hubs if not hub.alive]
    if down:
        return Finding("hubs", "warning", f"{detail}; down: {', '.join(down)}", "Start them, or demote them.")
    return Finding("hubs", "ok", detail)
