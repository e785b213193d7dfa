"""Where hubs are dialled, for whom, and by whom: pure rules over the set of hubs."""

from collections.abc import Iterable, Sequence

from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoints
from felloe.hubs.records import Hub, HubSet
from felloe.mesh.server_config import Routes


def mesh_urls(endpoints: Endpoints) -> tuple[str, ...]:
    """A hub's message server, as the mesh dials it: one URL a host."""
    return tuple(f"tls://{_bracketed(host)}:{endpoints.mesh}" for host in endpoints.hosts)


def peer_addresses(endpoints: Endpoints) -> tuple[str, ...]:
    """Where a hub takes joins and renewals: `host:port`."""
    return tuple(f"{_bracketed(host)}:{endpoints.peer}" for host in endpoints.hosts)


def all_mesh_urls(hubs: Iterable[Hub]) -> tuple[str, ...]:
    """Every hub's message server."""
    return tuple(url for hub in hubs for url in mesh_urls(hub.endpoints))


def all_peer_addresses(hubs: Iterable[Hub]) -> tuple[str, ...]:
    """Every hub's peer address."""
    return tuple(address for hub in hubs for address in peer_addresses(hub.endpoints))


def message_routes(hubs: Sequence[Hub], this: Hub, host: str) -> Routes:
    """How this hub's message server, which takes routes at `host`, meets the others.

    Alone it is ready for others all the same: that could not be changed while it runs. A server is told one address of
    each other one: of two it would make two routes and close one, again and again.
    """
    others = [hub for hub in hubs if hub.id != this.id]
    return Routes(
        name="felloe-messages",
        host=host,
        port=this.endpoints.route,
        peers=tuple(f"{_bracketed(hub.endpoints.hosts[0])}:{hub.endpoints.route}" for hub in others),
        keys=tuple(hub.public_key for hub in (this, *others)),
    )


def state_routes(hubs: HubSet, keepers: Sequence[NodeId], generation: int, this: Hub, host: str) -> Routes | None:
    """How this hub's state server of a generation meets those of the other `keepers`; None when it keeps it alone."""
    others = [hub for node in keepers if node != this.id and (hub := hubs.find(node)) is not None]
    if len(keepers) < 2:
        return None
    return Routes(
        name=f"felloe-state-{generation}",
        host=host,
        port=state_port(this.endpoints, generation),
        peers=tuple(f"{_bracketed(hub.endpoints.hosts[0])}:{state_port(hub.endpoints, generation)}" for hub in others),
        keys=tuple(hub.public_key for hub in (this, *others)),
    )


def state_port(endpoints: Endpoints, generation: int) -> int:
    """Two generations live side by side during a move, so they take turns with two ports."""
    return endpoints.state + generation % 2


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
