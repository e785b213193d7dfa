"""Runs a node in the foreground: home, lock, network, signals, first words and last."""

import asyncio
import gc
import logging
import signal
import sys
import time
from pathlib import Path

import uvloop

from felloe import __version__
from felloe.domain.errors import FelloeError
from felloe.host.files import HomeLock
from felloe.mesh.join_client import join
from felloe.mesh.membership import Membership
from felloe.node.config import NodeConfig, load_config
from felloe.node.founding import found_network, node_name
from felloe.node.home import Home
from felloe.node.logs import start_logging
from felloe.node.network_files import NetworkFiles
from felloe.node.node import Node

logger = logging.getLogger(__name__)

_YOUNG_OBJECTS = 20_000


def run_node(folder: Path, *, name: str, models: list[str]) -> None:
    """Start the node of this home and serve until Ctrl-C, SIGTERM or `felloe leave`; found a network if it has none."""
    home = Home(folder)
    config = load_config(folder)
    home.prepare()
    with HomeLock(home.lock):
        start_logging(home.logs, config.log_level)
        files = NetworkFiles(home)
        membership = files.membership() or found_network(files, config, node_name(config, name))
        uvloop.run(_serve(home, config, files, membership, models))


def join_network(folder: Path, token: str, name: str) -> Membership:
    """Make this home a member of the token's network. Raises when it is a member of one already."""
    home = Home(folder)
    config = load_config(folder)
    home.prepare()
    with HomeLock(home.lock):
        files = NetworkFiles(home)
        present = files.membership()
        if present is not None:
            raise FelloeError("forbidden", f"this node is a member of network {present.network}; `felloe leave` first")
        welcomed = asyncio.run(
            join(token, files.node_key(), name=node_name(config, name), version=__version__, now=time.time)
        )
        files.save_credential(welcomed.credential)
        files.save_trust(welcomed.trust)
        files.save_membership(welcomed.membership)
        return welcomed.membership


async def _serve(
    home: Home, config: NodeConfig, files: NetworkFiles, membership: Membership, models: list[str]
) -> None:
    node = Node(home, config, files, membership)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, node.stopping.set)
    try:
        await node.start(models, _say)
        _calm_collector()
        _say(_first_words(node))
        await node.stopping.wait()
        logger.info("stopping")
        if node.failure is not None:
            raise node.failure
    finally:
        await node.stop()


def _calm_collector() -> None:
    """Look for reference cycles seldom: what a node holds for long is there by now, and a stream makes none."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 50)


def _first_words(node: Node) -> str:
    membership = node.membership
    lines = [
        f"{membership.role} {membership.name} ({membership.node}) of network {membership.network}",
        f"API: {node.gateway.base_url}",
    ]
    if node.hub is not None:
        lines.append("let a machine join: felloe invite")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
