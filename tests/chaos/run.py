"""A whole run: build the network, load it, let the waves come, judge what was noted."""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from chaos import schedule
from chaos.clients import MODEL, Clients, undisturbed
from chaos.faults import CUTS_OFF, TAKES_DOWN, Scenery, Undo, apply
from chaos.guests import watch_revocation
from chaos.invariants import Violation, check
from chaos.lab import Lab, LoopbackLab, open_lab
from chaos.load import Order
from chaos.nodes import ChaosNode
from chaos.records import Happening, Prompt, Records
from chaos.report import render
from chaos.schedule import Fault, Scene
from chaos.scribe import Scribe
from chaos.stage import Stage, program_abilities
from chaos.watch import Watch

REQUEST_SECONDS = 30.0
PATIENCE_SECONDS = 60.0
CLIENTS = 2
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 2.5
BASELINE_SECONDS = 8.0
RESCUE_SECONDS = 60.0
PRELOADS = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `kinds` empty means all that are possible here; `loopback` goes without namespaces."""

    seconds: float
    seed: int
    nodes: int = 5
    kinds: frozenset[str] = frozenset()
    clients: int = CLIENTS
    loopback: bool = False


class Result(msgspec.Struct, frozen=True):
    """What came of a run."""

    records: Records
    violations: list[Violation]
    report: str


def faketime_library() -> Path | None:
    """libfaketime as Debian's package puts it, or where FELLOE_CHAOS_FAKETIME says."""
    named = os.environ.get("FELLOE_CHAOS_FAKETIME")
    return next((Path(path) for path in ([named] if named else PRELOADS) if Path(path).is_file()), None)


class Run:
    """One run; `say` prints progress."""

    def __init__(self, plan: Plan, lab: Lab, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        preload = faketime_library()
        self._abilities = program_abilities() | lab.abilities | (frozenset({"clock"}) if preload else frozenset[str]())
        self._stage = Stage(lab, self._abilities, plan.nodes, REQUEST_SECONDS)
        self._stage.preload = preload
        self._scribe = Scribe(self._stage, plan.seed)
        now = time.monotonic()
        self.records = Records(
            seed=plan.seed, begin=now, end=now, serving=frozenset(), prompts={}, writes=self._scribe.writes
        )
        self._watch = Watch(self._stage, self.records)
        self._clients: list[Clients] = []

    async def run(self, missing_ability: str) -> Result:
        """From the first process to the last; everything is ended, also when it is cancelled."""
        records = self.records
        records.left_out = self._left_out(missing_ability)
        background: list[asyncio.Task[None]] = []
        try:
            self._say("founding the network")
            await self._stage.build()
            serving = [node for node in self._stage.members.values() if node.serves]
            records.serving = self._stage.serving
            self._say(f"{len(self._stage.members)} nodes are up; asking for undisturbed answers")
            prompts = await undisturbed(serving[-2:], self._plan.seed, PATIENCE_SECONDS)
            records.prompts = {prompt.name: prompt for prompt in prompts}
            background = [asyncio.create_task(self._watch.run()), asyncio.create_task(self._scribe.run())]
            records.begin = time.monotonic()
            for node in tuple(self._stage.members.values()):
                await self._load(node, prompts)
            await asyncio.sleep(BASELINE_SECONDS)
            await self._waves(prompts, background)
            records.end = time.monotonic()
            await asyncio.gather(*(clients.stop(PATIENCE_SECONDS) for clients in self._clients))
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*(clients.stop(0.1) for clients in self._clients), return_exceptions=True)
            self._stage.close()
        violations = check(records, REQUEST_SECONDS)
        setting = f"{self._plan.nodes} nodes with a model and one without, {self._plan.clients} clients on each"
        return Result(records, violations, render(records, violations, setting))

    def _left_out(self, missing_ability: str) -> dict[str, str]:
        reasons = {"links": missing_ability, "disk": missing_ability, "address": missing_ability}
        reasons["clock"] = "the Debian package libfaketime is not installed"
        return {
            kind: "; ".join(sorted({reasons.get(one) or f"this program has no `{one}`" for one in missing}))
            for kind, missing in schedule.left_out(self._abilities).items()
        }

    async def _load(self, node: ChaosNode, prompts: list[Prompt]) -> Clients:
        order = Order(
            node=node.name,
            base_url=node.base_url,
            model=MODEL,
            prompts=prompts,
            clients=self._plan.clients,
            seed=self._plan.seed,
            patience=PATIENCE_SECONDS,
            shortest_pause=SHORTEST_PAUSE,
            longest_pause=LONGEST_PAUSE,
        )
        clients = Clients(node, order, self.records.requests.append)
        await clients.start()
        self._clients.append(clients)
        return clients

    async def _waves(self, prompts: list[Prompt], background: Collection[asyncio.Task[None]]) -> None:
        kinds = self._plan.kinds or frozenset(schedule.possible(self._abilities))
        last = self.records.begin + self._plan.seconds - schedule.SETTLE_SECONDS
        for wave in schedule.waves(self._plan.seed, kinds):
            if time.monotonic() + max(fault.end for fault in wave) > last:
                return
            for task in background:
                if task.done():
                    task.result()
            for clients in self._clients:
                clients.check()
            if not await self._wave(wave, prompts):
                return

    async def _wave(self, wave: tuple[Fault, ...], prompts: list[Prompt]) -> bool:
        """One wave, and the quiet time after it; what is not whole then is started anew. False: it cannot go on."""
        scene = await self._stage.scene()
        scene = scene._replace(
            serving=scene.serving - schedule.spared_engines(self.records.happenings, time.monotonic())
        )
        begun = time.monotonic()
        taken: set[str] = set()
        running: list[asyncio.Task[Happening]] = []
        async with asyncio.TaskGroup() as group:
            for fault in wave:
                if targets := schedule.targets(fault, scene, taken):
                    taken |= set(targets)
                    running.append(group.create_task(self._fault(fault, targets, scene, begun, prompts)))
        happened = [task.result() for task in running]
        if not happened:
            return True
        ended = max(one.end for one in happened)
        converged, waited = await self._watch.whole(ended, schedule.SETTLE_SECONDS)
        settled = time.monotonic()
        self.records.observations.extend(await self._watch.observe())
        for one in happened:
            note = "; ".join([one.note, *waited] if one.note else waited)
            done = msgspec.structs.replace(one, settled=settled, converged=converged, note=note)
            self.records.happenings.append(done)
        names = "; ".join(f"{one.kind} on {', '.join(one.targets)} for {one.end - one.begin:.1f} s" for one in happened)
        state = f"whole again after {converged:.1f} s" if converged is not None else f"NOT WHOLE: {'; '.join(waited)}"
        at = settled - self.records.begin
        self._say(f"{at:6.1f} s  {names}: {state}; {len(self.records.requests)} requests so far")
        return converged is not None or await self._rescue()

    async def _fault(
        self, fault: Fault, targets: tuple[str, ...], scene: Scene, begun: float, prompts: list[Prompt]
    ) -> Happening:
        await asyncio.sleep(begun + fault.begin - time.monotonic())
        begin = time.monotonic()
        if fault.kind == "node revoked":
            return await self._revocation(fault, prompts)
        down = frozenset(targets) if fault.kind in TAKES_DOWN else frozenset[str]()
        self._watch.expected_down |= down
        undo: Undo | None = None
        try:
            undo = await apply(Scenery(self._stage, self._scribe), fault, targets)
            await asyncio.sleep(fault.duration)
        finally:
            if undo is not None:
                await undo()
        self._watch.expected_down -= down
        end = time.monotonic()
        back = await self._back(down)
        return Happening(
            kind=fault.kind,
            targets=targets,
            begin=begin,
            end=end,
            back=back,
            settled=end,
            converged=None,
            down=down,
            lonely=self._lonely(fault.kind, targets, scene),
        )

    async def _back(self, down: Collection[str]) -> float:
        """When the nodes that were down answer their owner again, or have had time enough."""
        deadline = time.monotonic() + schedule.SETTLE_SECONDS
        for name in down:
            while time.monotonic() < deadline and await self._stage.members[name].ask("/status") is None:
                await asyncio.sleep(0.1)
        return time.monotonic()

    def _lonely(self, kind: str, targets: tuple[str, ...], scene: Scene) -> frozenset[str]:
        if kind not in CUTS_OFF:
            return frozenset()
        without = set(self._stage.members) - self._stage.serving
        return frozenset(without if set(scene.hubs) <= set(targets) else without & set(targets))

    async def _revocation(self, fault: Fault, prompts: list[Prompt]) -> Happening:
        begin = time.monotonic()
        guest = await self._stage.newcomer()
        clients = await self._load(guest, prompts)
        note = await watch_revocation(self._stage, guest, clients, self.records, fault.duration)
        end = time.monotonic()
        return Happening(
            kind=fault.kind,
            targets=(guest.name,),
            begin=begin,
            end=end,
            back=end,
            settled=end,
            converged=None,
            down=frozenset({guest.name}),
            note=note,
        )

    async def _rescue(self) -> bool:
        """Start anew every node whose view is not whole, so that the next fault meets a whole network, if it helps."""
        for node in tuple(self._stage.members.values()):
            if not node.lives or await self._stage.unlike(node):
                node.kill()
                node.start("up")
        rescued, waited = await self._watch.whole(time.monotonic(), RESCUE_SECONDS)
        if rescued is None:
            self._say(f"not whole even after restarts, so this is the end: {'; '.join(waited)}")
        return rescued is not None


async def run_chaos(plan: Plan, folder: Path, say: Callable[[str], None], keep: Path | None = None) -> Result:
    """Run in the best laboratory there is; it is removed whatever happens. `keep` gets the nodes' logs."""
    lab, missing = (LoopbackLab(folder), "it was asked for so") if plan.loopback else open_lab(folder, plan.seed)
    if missing:
        say(f"without namespaces, because {missing}: processes and signals alone")
    try:
        return await Run(plan, lab, say).run(missing)
    finally:
        if keep is not None:
            keep_logs(lab, keep)
        lab.close()


def keep_logs(lab: Lab, folder: Path) -> None:
    """Copy what the nodes logged, as far as they came to log."""
    for place in lab.places.values():
        with contextlib.suppress(OSError):
            shutil.copytree(place.home / "logs", folder / place.name, dirs_exist_ok=True)
            shutil.copy(place.home / "terminal.log", folder / place.name)
