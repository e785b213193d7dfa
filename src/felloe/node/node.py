"""One node: which parts it has, how they are wired, in which order they start and stop."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from felloe import __version__
from felloe.catalog.approval.trusted import TrustedCatalog
from felloe.catalog.sources.service import Sources
from felloe.catalog.store import ModelStore
from felloe.console.operator import create_operator_app
from felloe.domain.errors import FelloeError
from felloe.domain.roster import NodeRecord
from felloe.engines.service import Engines
from felloe.gateway.keys import ApiKeys
from felloe.hubs.probe import TrialListener, TrialRequest
from felloe.hubs.topics import KEYS
from felloe.mesh.certificates import hub_tls_name
from felloe.mesh.connection import Connection
from felloe.mesh.exchange import Exchange
from felloe.mesh.membership import Membership
from felloe.mesh.roster_service import RosterService
from felloe.mesh.services import HubClient, NodeCommands
from felloe.mesh.state import StateFollower
from felloe.node.approvals import NodeApprovals
from felloe.node.catalog_reader import BookReader
from felloe.node.commands import DRAIN, DrainCommand, DrainOrder
from felloe.node.config import NodeConfig
from felloe.node.curating import Curating
from felloe.node.draining import Draining
from felloe.node.edge import create_gateway
from felloe.node.founding import endpoints
from felloe.node.home import Home
from felloe.node.http_server import NodeServer, listen_on_path
from felloe.node.hub import TRIAL, Hub, HubPlace
from felloe.node.hub_role import HubRole
from felloe.node.identity import Identity
from felloe.node.isolation import Isolation, answers_over_https
from felloe.node.loading import Loading
from felloe.node.network_files import NetworkFiles
from felloe.node.operations import NodeOperations
from felloe.node.placing import Placing, PlacingPorts
from felloe.node.pulling import Pulling
from felloe.node.record import record_of
from felloe.node.stopping import safely
from felloe.node.transfer import Transfer
from felloe.node.upstreams import Upstreams
from felloe.privacy.sealing import SealingKeys, seal
from felloe.routing.admission import Admission
from felloe.routing.answering import AnsweringService
from felloe.routing.demand import Demand
from felloe.routing.remote import RemoteAnswers
from felloe.routing.router import Router

logger = logging.getLogger(__name__)

_HOUSEKEEPING_SECONDS = 10.0
_GRACE_SECONDS = 1.5
_SETTLING_SECONDS = 3.0
_HUB_START_SECONDS = 3600.0


class Node:
    """Built by `create`, brought up by `start`, ended by `stop`. Owns every part and nothing of their state."""

    def __init__(self, home: Home, config: NodeConfig, files: NetworkFiles, membership: Membership) -> None:
        self.home = home
        self.config = config
        self.started_at = time.time()
        self._began = time.monotonic()
        self._has_loaded = False
        self.stopping = asyncio.Event()
        self.failure: FelloeError | None = None
        self.endpoints = endpoints(config.peer)
        self.identity = Identity(files, membership, self.endpoints)
        self.connection = Connection(
            membership.nats_urls,
            membership.node,
            login=self.identity.user_login,
            tls=self.identity.tls,
            server_name=hub_tls_name(membership.network),
        )
        self.sealing = SealingKeys()
        self.store = ModelStore(
            home.models,
            self.identity.node_key,
            quota=config.store.quota,
            loaded=lambda: self.loading.wanted() | self.placing.files(),
        )
        self.approvals = NodeApprovals(TrustedCatalog(home.catalog, self.identity.trust.catalog))
        hubs = HubClient(self.connection)
        self.curating = Curating(
            hubs,
            self.approvals,
            self.store,
            BookReader(hubs, self.approvals, lambda: self.identity.trust),
            files.curator_key_path,
            approve_pulls=config.catalog.approve_pulls,
        )
        self.engines = Engines(
            state_folder=home.operator_socket.parent,
            log_folder=home.logs,
            clock=time.monotonic,
            crashes_path=home.state / "engine-crashes.json",
        )
        sources = Sources(config.sources, self.store, agent=f"felloe/{__version__}")
        self.transfer = Transfer(
            config,
            self.identity,
            self.connection,
            self.store,
            self.approvals.catalog,
            home.state / "peers-banned.json",
            roster=lambda: self.roster.snapshot(),
            is_busy=lambda: any(self.admission.load().active.values()),
            may_ask=lambda node: node not in self.roster.banned,
            changed=self._tell_of_self,
        )
        self.pulling = Pulling(sources, self.store, self.curating.arrived, self.transfer.pull)
        self.placing = Placing(
            membership,
            home,
            config,
            PlacingPorts(
                engines=self.engines,
                store=self.store,
                transfer=self.transfer,
                pulling=self.pulling,
                approvals=self.approvals,
                hubs=hubs,
                roster=lambda: self.roster.snapshot(),
                rests=lambda: self.admission.load().draining,
                changed=self._tell_of_self,
            ),
        )
        self.loading = Loading(
            home.state / "loaded.json",
            self.store,
            self.engines,
            config.engine,
            pull=self.pulling.take,
            gate=self.approvals.check,
            planned=self.placing.converging,
            devices=self.placing.devices,
            promise=self.placing.promise,
        )
        self.upstreams = Upstreams(home.state / "upstreams.json", self.engines, config.upstreams)
        self.admission = Admission(self.engines, queue_limit=config.engine.queue)
        self.roster = RosterService(self.connection, record_of(self), sign=self.identity.node_key.sign)
        self.exchange = Exchange(self.connection, membership.node)
        self.state = StateFollower(self.connection)
        self.commands = NodeCommands(self.connection)
        self.trial = TrialListener(config.peer.host, self.endpoints)
        self.role = HubRole(
            HubPlace(home, config.peer, self.endpoints, secrets.token_hex(16)),
            self.identity,
            self.connection,
            self.roster,
            self.exchange,
            self.state,
            changed=self._tell_of_self,
            trusted=lambda: self.approvals.catalog.bundle,
            planning=self.placing.planning,
        )
        self.isolation = Isolation(
            self.connection,
            hubs=lambda: self.role.hubs_to_choose,
            roster=self.roster.snapshot,
            answers=lambda hub: answers_over_https(hub, self.identity.trust),
            clock=time.monotonic,
        )
        self.router = Router(
            self.roster,
            self.admission,
            RemoteAnswers(self.exchange, seal),
            demand=Demand(self.placing.wanted),
            load_wait_seconds=config.api.load_wait_seconds,
            settled=self._is_settled,
        )
        self.keys = ApiKeys(home.state / "api-keys.json")
        self.gateway = create_gateway(self)
        self.draining = Draining(self.admission, self.gateway, self.exchange, self.roster, stop=self.stopping.set)
        self._operator: NodeServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._wire()

    def _wire(self) -> None:
        """Who tells whom."""
        self.exchange.serve(AnsweringService(self.sealing, self.admission).handle)
        self.roster.on_loss(self.exchange.node_lost)
        self.roster.on_move(self.exchange.node_moved)
        # A server drops a connection when the credential it came with runs out; better to move in a quiet moment.
        self.identity.keeper.on_change(lambda _: self.connection.move_when_quiet())
        self.roster.on_double(self._yield_to_twin)
        self.connection.on_refusal(self.identity.note_refused)
        self.engines.on_change(self._replicas_changed)
        self.approvals.on_change(self.loading.approvals_changed)
        self.approvals.on_change(self._tell_of_self)
        self.identity.on_trust(self.curating.look_again)
        self.connection.on_up(self.curating.look_again)
        self.admission.on_speed(self._tell_of_self)
        self.admission.on_change(lambda: self.roster.set_load(self.admission.load))

    async def start(self, models: list[str], say: Callable[[str], None]) -> None:
        """Bring up everything; raises when this node cannot serve its own machine.

        A spoke that reaches no hub starts all the same and keeps dialling. `models` are files or names to load on top
        of what is configured and kept.
        """
        await self.store.open()
        for problem in self.store.problems():
            logger.warning("%s", problem)
        keeper = self.identity.keeper
        if self.hub is not None and not keeper.holds_for(_HUB_START_SECONDS):
            await keeper.renew_now()
        await self.role.start_servers()
        await self.connection.start(wait_seconds=15.0 if self.hub is not None else None)
        await self.exchange.start()
        await self.transfer.start()
        await self.placing.start()
        self._tell_of_self()
        await self.roster.start()
        await self.role.start_services()
        if self.config.peer.hub:
            await self.commands.serve(TRIAL, TrialRequest, self.trial.on_request)
        await self.commands.serve(DRAIN, DrainOrder, DrainCommand(self.draining).on_request)
        await self.state.follow(KEYS, self.keys.network_changed)
        await self.placing.follow(self.state)
        await self.approvals.start(self.state)
        await self.curating.start(self.state)
        await self.gateway.start()
        await self._start_operator()
        self._spawn(keeper.run(), "credential")
        self._spawn(self.role.run(), "role")
        self._spawn(self.isolation.run(), "isolation")
        self._spawn(self.approvals.run(), "approvals")
        self._spawn(self.curating.run(), "curating")
        self._spawn(self.loading.run(), "loading")
        self._spawn(self.placing.run(), "placing")
        self._spawn(self.transfer.run(), "transfer")
        self._spawn(self._keep_house(), "housekeeping")
        self._spawn(self._load(models, say), "models")

    async def stop(self) -> None:
        """End in order: no new requests, running ones get a moment, then the children and the connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        steps: list[Callable[[], Awaitable[object]]] = [
            self.draining.close,
            partial(self.gateway.stop, _GRACE_SECONDS),
            self.router.close,
            self._drain,
            self.exchange.close,
            self.transfer.stop,
            self.state.close,
            self.commands.close,
            self.engines.close,
            self.placing.close,
            self.roster.close,
            self.role.stop,
            self.connection.close,
            self.role.stop_servers,
        ]
        if self._operator is not None:
            steps.append(self._operator.stop)
        for step in steps:
            await safely(step)
        self.home.operator_socket.unlink(missing_ok=True)

    async def _drain(self) -> None:
        """Send what waits here elsewhere, and let what runs for other nodes end in a moment or go on elsewhere."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS):
                await self.admission.drain()

    @property
    def membership(self) -> Membership:
        """What this node knows of its network now."""
        return self.identity.membership

    @property
    def hub(self) -> Hub | None:
        """What makes this node a hub, while it is one."""
        return self.role.hub

    def _is_settled(self) -> bool:
        """Whether this node has had the time to load its models and to hear of the others'."""
        return self._has_loaded and time.monotonic() - self._began > _SETTLING_SECONDS

    def _yield_to_twin(self, other: NodeRecord) -> None:
        """Somebody else runs with this node's key: whoever came later stops."""
        if other.started_at < self.started_at and self.failure is None:
            where = f"{other.name}, started {time.ctime(other.started_at)}"
            self.failure = FelloeError("already_running", f"another node runs with this node's key: {where}")
            self.stopping.set()

    def _tell_of_self(self) -> None:
        self.roster.set_record(record_of(self))

    def _replicas_changed(self) -> None:
        self.admission.replicas_changed()
        self._tell_of_self()

    async def _load(self, models: list[str], say: Callable[[str], None]) -> None:
        await self.upstreams.attach_all()
        await self.loading.load_all(self.config.models)
        await self.loading.take_and_load_all(models, say)
        self._has_loaded = True

    async def _keep_house(self) -> None:
        """New sealing keys when they are due, and what is free on this machine."""
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            self.sealing.rotate_if_due()
            self._tell_of_self()

    async def _start_operator(self) -> None:
        socket = listen_on_path(self.home.operator_socket)
        self._operator = NodeServer(create_operator_app(NodeOperations(self)), socket)
        await self._operator.start()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work, name=name))
