"""Everything of a node that has to do with models where they fit: what the machine has, what the network wants and
plans, what of the plan is loaded here, and which files are kept for others.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from felloe.catalog.store import ModelStore
from felloe.domain.manifest import ManifestFile
from felloe.domain.models import Model
from felloe.domain.plan import Part
from felloe.domain.roster import Roster
from felloe.domain.serving import DEMAND, DemandAnswer
from felloe.engines.backends import ONLY_CPU, backends
from felloe.engines.options import EngineDevice, EngineOptions
from felloe.engines.service import Engines
from felloe.host.budget import driver_name
from felloe.hubs.topics import PLAN, SERVING
from felloe.mesh.membership import Membership
from felloe.mesh.services import HubClient
from felloe.mesh.state import StateFollower
from felloe.node.approvals import NodeApprovals
from felloe.node.config import NodeConfig
from felloe.node.converging import Converging
from felloe.node.converging_rules import held
from felloe.node.home import Home
from felloe.node.machine import MachineWatch
from felloe.node.planned_load import LoadingPorts
from felloe.node.planning import PlanningPorts
from felloe.node.promises import promised
from felloe.node.pulling import Pulling
from felloe.node.shapes import Fronts, Shapes
from felloe.node.spares import SparePorts, Spares
from felloe.node.transfer import Transfer
from felloe.node.wanted import Wanted

_DECIDED_SECONDS = 10.0


class PlacingPorts(Struct, frozen=True, kw_only=True):
    """What placing needs of the node's other parts.

    `rests` tells whether nothing is to begin now, because the node is being drained; `changed` is called when what the
    node says of itself has changed.
    """

    engines: Engines
    store: ModelStore
    transfer: Transfer
    pulling: Pulling
    approvals: NodeApprovals
    hubs: HubClient
    roster: Callable[[], Roster]
    rests: Callable[[], bool]
    changed: Callable[[], None]


class Placing:
    """Owns the parts, wired to each other: `machine`, `converging`, `shapes`, `wanted` and `spares`."""

    def __init__(self, membership: Membership, home: Home, config: NodeConfig, ports: PlacingPorts) -> None:
        self._ports = ports
        self._backends = ONLY_CPU
        self.machine = MachineWatch(
            membership.node,
            membership.name,
            config.hardware.limits(),
            held=lambda: held(ports.engines.replicas()),
            children=ports.engines.process_ids,
            backends=lambda: self._backends,
            changed=ports.changed,
        )
        self.converging = Converging(
            membership.node,
            LoadingPorts(
                engines=ports.engines,
                store=ports.store,
                decided=lambda content: ports.approvals.decided(content, _DECIDED_SECONDS),
                fetch=ports.pulling.bring,
                gate=ports.approvals.check,
                look=self.machine.look,
                told=lambda: self.machine.machine,
                devices=self.devices,
                threads=config.engine.threads,
            ),
            changed=ports.changed,
            rests=ports.rests,
        )
        self.shapes = Shapes(
            home.state / "shapes",
            Fronts(manifest=ports.transfer.manifest, here=self._path_of, fetch=ports.transfer.piece),
        )
        self.wanted = Wanted(lambda question: ports.hubs.ask(DEMAND, question, DemandAnswer))
        self.spares = Spares(
            membership.node,
            config.store.spare_copies,
            SparePorts(
                store=ports.store,
                fetch=ports.pulling.bring,
                approvals=lambda: ports.approvals.known,
                wanted=lambda: self.wanted.models,
                placements=lambda: self.converging.placements,
                roster=ports.roster,
                rests=ports.rests,
            ),
            clock=time.monotonic,
        )
        ports.approvals.on_change(self.converging.approvals_changed)

    @property
    def planning(self) -> PlanningPorts:
        """What this node knows of models, for the plan that it makes while it leads."""
        return PlanningPorts(approvals=lambda: self._ports.approvals.known, shapes=self.shapes)

    def files(self) -> frozenset[str]:
        """The names in the store of what the plan has here and of copies that are needed: clean-up keeps off them."""
        return self.converging.files() | self.spares.files()

    def devices(self) -> tuple[EngineDevice, ...]:
        """What the engines call this machine's devices."""
        gpus = {gpu.id: gpu for gpu in self.machine.hardware.gpus}
        known = ((device, gpus.get(device.id)) for device in self.machine.machine.devices)
        return tuple(
            EngineDevice(device.id, device.kind, "" if gpu is None else driver_name(gpu, device.kind))
            for device, gpu in known
        )

    async def promise(self, model: Model, path: Path, options: EngineOptions) -> tuple[Part, ...]:
        """What a load by hand will probably take up here."""
        return await promised(model, path, options, self.machine.machine, held(self._ports.engines.replicas()))

    async def start(self) -> None:
        """Learn what the engines can compute on."""
        if self.machine.hardware.gpus:
            self._backends = await backends()
            await self.machine.look()

    async def follow(self, state: StateFollower) -> None:
        """Hear from the hubs what is wanted and planned."""
        await state.follow(SERVING, self.wanted.serving_changed)
        await state.follow(PLAN, self.converging.plan_changed)

    async def run(self) -> None:
        """Look at the machine, follow the plan and keep copies, for ever; cancelled, what is loaded stays."""
        await asyncio.gather(self.machine.run(), self.shapes.run(), self.converging.run(), self.spares.run())

    async def close(self) -> None:
        """Let go of the drivers."""
        self.machine.close()

    def _path_of(self, file: ManifestFile) -> Path | None:
        """Where a file lies in the store, when it is there whole."""
        blobs = self._ports.store.blobs
        return blobs.path_of(file.digest) if blobs.size_of(file.digest) == file.size else None
