"""A newcomer that is revoked while it serves and asks: what it still gets afterwards is an intrusion."""

import asyncio
import time

import httpx

from chaos.clients import Clients
from chaos.nodes import ChaosNode, OperatorRefusal
from chaos.records import Intrusion, Records, Write
from chaos.stage import Stage

POLL_SECONDS = 0.1
SERVING_SECONDS = 4.0
REVOKE_SECONDS = 20.0


async def watch_revocation(stage: Stage, guest: ChaosNode, clients: Clients, records: Records, seconds: float) -> str:
    """Let it serve, revoke it through a living node, watch it for `seconds`, end it; returns what went wrong."""
    records.writes.append(Write(action="join", subject=guest.name, begin=time.monotonic(), end=time.monotonic()))
    await asyncio.sleep(SERVING_SECONDS)
    # Its own clients would load it from within: after they ended, all that it does came from others.
    await clients.stop(SERVING_SECONDS)
    owner = await stage.writer()
    begin = time.monotonic()
    try:
        await owner.tell("/members/revoke", {"name": guest.name}, REVOKE_SECONDS)
    except (OperatorRefusal, httpx.HTTPError) as error:
        return f"{guest.name} was not revoked: {type(error).__name__} {error}"
    acknowledged = time.monotonic()
    stage.dismiss(guest)
    records.writes.append(Write(action="revoke node", subject=guest.name, begin=begin, end=acknowledged))
    while (after := time.monotonic() - acknowledged) < seconds:
        for what in await _doings(stage, guest):
            records.intrusions.append(Intrusion(node=guest.name, after=after, what=what))
        await asyncio.sleep(POLL_SECONDS)
    guest.stop()
    return ""


async def _doings(stage: Stage, guest: ChaosNode) -> list[str]:
    """What shows that the guest still takes part: it answers others, is connected, or is seen alive."""
    found: list[str] = []
    status, members = await guest.ask("/status"), await guest.ask("/members") or []
    if status and status["connected"]:
        found.append("is connected")
    if any(sum(member["load"][0].values()) for member in members if member["this"] and member["load"]):
        found.append("answers a request")
    for node in tuple(stage.members.values()):
        seen = [member["record"]["name"] for member in await node.ask("/members") or [] if member["alive"]]
        found += [f"is alive for {node.name}"] * (guest.name in seen)
    return found
