"""What a node says of itself to the network: its parts, put into one record."""

from typing import TYPE_CHECKING

from felloe import __version__
from felloe.domain.roster import NodeRecord

if TYPE_CHECKING:
    from felloe.node.node import Node


def record_of(node: "Node") -> NodeRecord:
    """The record of a node as it is now; whoever tells it dates and signs it."""
    placing, membership = node.placing, node.membership
    return NodeRecord(
        id=membership.node,
        name=membership.name,
        roles=(membership.role,),
        version=__version__,
        public_key=node.identity.public_key,
        sealing_config=node.sealing.config,
        hardware=placing.machine.hardware,
        replicas=placing.converging.mark(node.admission.replicas()),
        started_at=node.started_at,
        issued_at=0,
        endpoints=node.endpoints if node.config.peer.hub else None,
        transfer=node.transfer.place,
        holds=node.transfer.holds(),
        machine=placing.machine.machine,
        loading=placing.converging.loading(),
        failures=placing.converging.failures(),
        plan=placing.converging.number,
    )
