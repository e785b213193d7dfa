"""Models are placed, loaded on demand, moved and given up by themselves while clients ask; nodes with little memory."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from chaos.nodes import role_of
from networks import TINY_MODEL, Network, NodeProcess, wait_for

ONE_REPLICA = "600MB"
"""Room for one replica of the tiny model, with its process and its caches."""

TOKENS = 24
ENDLESS = {"logit_bias": {"1": -100}}
"""The token that ends a text is forbidden, so that every answer has the same length."""


class Clients:
    """Threads that ask until they are told to stop; each counts what came of its requests."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.texts: dict[str, set[str]] = {}
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def ask(self, node: NodeProcess, model: str) -> None:
        """Ask `node` for `model` again and again, waiting up to a minute for a model that has to be loaded."""
        thread = threading.Thread(target=self._run, args=(node, model))
        thread.start()
        self._threads.append(thread)

    def stop(self) -> None:
        """Let the running requests end."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def answered(self, model: str) -> int:
        """How many requests for `model` were answered, whole."""
        return self.outcomes[f"{model}: answered"]

    def failures(self) -> dict[str, int]:
        """What was not answered, and why."""
        return {outcome: count for outcome, count in self.outcomes.items() if not outcome.endswith(": answered")}

    def _run(self, node: NodeProcess, model: str) -> None:
        with node.client(default_headers={"Prefer": "wait=60"}) as client:
            while not self._stopping.is_set():
                self.outcomes[f"{model}: {self._one(client, model)}"] += 1
                time.sleep(0.05)  # a client that thinks; nobody waits for this

    def _one(self, client: openai.OpenAI, model: str) -> str:
        try:
            chunks = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "Write a parser."}],
                max_tokens=TOKENS,
                temperature=0,
                stream=True,
                extra_body=ENDLESS,
            )
            text, finish = "", None
            for chunk in chunks:
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    finish = choice.finish_reason or finish
        except openai.APIError as error:
            return str(error.code or error)
        self.texts.setdefault(model, set()).add(text)
        return "answered" if finish == "length" else f"ended with {finish}"


def ask(node: NodeProcess, model: str, wait: int = 60) -> str:
    """One answer of a few tokens."""
    said = node.client(default_headers={"Prefer": f"wait={wait}"}).chat.completions.create(
        model=model, messages=[{"role": "user", "content": "x"}], max_tokens=4, temperature=0, extra_body=ENDLESS
    )
    return said.choices[0].finish_reason


def is_answered(node: NodeProcess, model: str) -> bool:
    """Whether a request is answered, and not refused because no node that is known has room."""
    try:
        return ask(node, model) == "length"
    except openai.APIStatusError as error:
        assert error.code == "does_not_fit"
        return False


def pull(network: Network, *models: str) -> None:
    """The same file under several names: as many models."""
    for model in models:
        network.hub.run("pull", str(TINY_MODEL), "--name", model)


def serve(network: Network, *arguments: str) -> None:
    network.hub.run("serve", *arguments, "--slots", "2", "--context", "1024")


def where(network: Network, model: str) -> set[str]:
    """The living nodes on which a model is ready, as the hub sees it."""
    return network.hub.replicas_of(model) & {record["name"] for record in living(network)}


def living(network: Network) -> list[dict[str, Any]]:
    """What the living nodes say of themselves, as the hub hears it."""
    members: list[dict[str, Any]] = network.hub.ask("/members") or []
    return [member["record"] for member in members if member["alive"]]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Network]:
    """A hub and what the test adds, each with memory for one replica."""
    built = Network(tmp_path, hardware={"ram_limit": ONE_REPLICA}, engine={"threads": 1})
    try:
        yield built.start_hub()
    finally:
        built.close()


def test_a_model_is_loaded_when_somebody_asks_and_gives_way_to_the_next_one(fleet: Network) -> None:
    pull(fleet, "first", "second")
    serve(fleet, "first", "second", "--on-demand")
    with pytest.raises(openai.APIStatusError) as caught:
        ask(fleet.hub, "first", wait=0)
    assert (caught.value.status_code, caught.value.code) == (503, "model_loading")
    assert int(caught.value.response.headers["Retry-After"]) >= 1
    assert ask(fleet.hub, "first") == "length"
    assert where(fleet, "first") == {"hub"}
    assert ask(fleet.hub, "second") == "length", "the first one is idle and has to make room"
    wait_for("the first model to be gone", lambda: where(fleet, "first") == set())
    fleet.hub.run("retire", "first", "second")
    wait_for("all models to be gone", lambda: where(fleet, "second") == set())


@pytest.mark.slow
def test_models_find_their_place_while_nodes_come_and_are_killed(fleet: Network) -> None:
    pull(fleet, "steady", "other", "rare", "extra")
    for name in ("spoke-1", "spoke-2"):
        fleet.add_spoke(name)
    serve(fleet, "steady", "--pin", "hub", "--priority", "1")
    serve(fleet, "other", "--priority", "1")
    serve(fleet, "rare", "--on-demand")
    wait_for("both models to serve", lambda: where(fleet, "steady") and where(fleet, "other"), 90)
    killed = next(node for node in fleet.running() if node.name in where(fleet, "other"))
    clients = Clients()
    try:
        for node in fleet.running():
            if node is not killed:
                clients.ask(node, "steady")
        clients.ask(fleet.hub, "other")

        assert ask(fleet.hub, "rare") == "length", "loaded on demand on the third node"
        killed.kill()
        began = time.monotonic()
        wait_for("the model of the killed node to serve elsewhere", lambda: where(fleet, "other") - {killed.name}, 60)
        assert time.monotonic() - began < 30
        served = clients.answered("other")
        wait_for("clients of that model to be answered", lambda: clients.answered("other") > served + 3)
        assert where(fleet, "rare") == set(), "it was the least that could be given up"

        serve(fleet, "extra")
        killed.start("up").wait_until_up()
        wait_for("what had no room to serve on the node that came back", lambda: where(fleet, "extra"), 120)
        assert where(fleet, "steady") == {"hub"}, "nothing had to move for it"
        fleet.add_spoke("spoke-3")
        wait_for("the new node to be reckoned with", lambda: is_answered(fleet.hub, "rare"), 120)
        assert where(fleet, "rare") == {"spoke-3"}
    finally:
        clients.stop()
    assert clients.answered("steady") > 20
    assert clients.failures() == {}
    assert all(len(texts) == 1 for texts in clients.texts.values()), "a resumed answer equals an undisturbed one"


def engines_of(node: NodeProcess) -> list[int]:
    """The process ids of a node's engines."""
    assert node.process is not None
    children = psutil.Process(node.process.pid).children(recursive=True)
    return [child.pid for child in children if role_of(child) == "engine"]


@pytest.mark.slow
def test_a_model_whose_engine_keeps_dying_on_one_node_goes_to_another(fleet: Network) -> None:
    pull(fleet, "fragile")
    spoke = fleet.add_spoke("spoke")
    serve(fleet, "fragile")
    (first,) = wait_for("the model to serve", lambda: where(fleet, "fragile"), 90)
    unlucky = fleet.hub if first == "hub" else spoke
    clients = Clients()
    try:
        clients.ask(fleet.hub, "fragile")
        seen = set[int]()
        deadline = time.monotonic() + 90
        while first in where(fleet, "fragile") or not where(fleet, "fragile"):
            assert time.monotonic() < deadline, "it stays where its engine dies"
            for engine in set(engines_of(unlucky)) - seen:
                seen.add(engine)
                wait_for("the engine to answer", lambda: first in where(fleet, "fragile"))
                os.kill(engine, signal.SIGKILL)
            time.sleep(0.1)
        served = clients.answered("fragile")
        wait_for("clients to be answered by the other node", lambda: clients.answered("fragile") > served + 3)
    finally:
        clients.stop()
    assert len(seen) >= 2
    assert clients.failures() == {}


def holders(network: Network) -> set[str]:
    """The living nodes that say that they hold a model, as the hub sees them."""
    return {record["name"] for record in living(network) if record["holds"]}


@pytest.mark.slow
def test_a_model_serves_elsewhere_when_the_machine_dies_that_alone_had_it_at_first(fleet: Network) -> None:
    pull(fleet, "precious")
    spokes = [fleet.add_spoke(name) for name in ("spoke-1", "spoke-2")]
    serve(fleet, "precious", "--pin", "spoke-1", "--pin", "spoke-2")
    (first,) = wait_for("the model to serve", lambda: where(fleet, "precious"), 90)
    fleet.hub.run("models", "remove", "precious")
    wait_for("one node alone to have it", lambda: holders(fleet) == {first})
    wait_for("a spare copy elsewhere", lambda: holders(fleet) - {first}, 120)
    assert len(holders(fleet)) == 2, "one more, and not two"
    next(spoke for spoke in spokes if spoke.name == first).kill()
    wait_for("the model to serve elsewhere", lambda: where(fleet, "precious") - {first}, 60)
    assert ask(fleet.hub, "precious") == "length"
