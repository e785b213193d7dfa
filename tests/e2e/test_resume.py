"""A replica that dies, freezes or is cut off in mid-answer costs its client a pause, not the answer."""

import signal
import threading
from collections.abc import Callable

import openai
import pytest

from networks import Network, NodeProcess, wait_for

MODEL = "tiny-python"
LENGTH = 600
QUESTION = [{"role": "user", "content": "Write a class that keeps a list of files and reads them"}]


def ask(node: NodeProcess, on_token: Callable[[int], None] = lambda _: None) -> str:
    """The whole greedy answer; `on_token` is told how many chunks have come."""
    stream = node.client().chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_tokens=LENGTH,
        stream=True,
        extra_body={"logit_bias": {"1": -100}},
    )
    text = ""
    for number, chunk in enumerate(stream):
        on_token(number)
        text += chunk.choices[0].delta.content or ""
    return text


def active_on(node: NodeProcess, names: set[str]) -> str | None:
    """The serving node that is answering now, as `node` sees it."""
    for member in node.ask("/members") or []:
        if member["record"]["name"] in names and sum(member["load"][0].values()):
            return str(member["record"]["name"])
    return None


def interrupt_once(network: Network, asked: NodeProcess, interrupt: Callable[[NodeProcess], None]) -> str:
    """Ask; as soon as the answer streams, interrupt the node that gives it; return the text."""
    serving = {node.name: node for node in network.nodes if node.name.startswith("serving")}
    streaming = threading.Event()
    hit: list[str] = []

    def strike() -> None:
        streaming.wait(30)
        name = wait_for("the answering node", lambda: active_on(asked, set(serving)), 5)
        hit.append(name)
        interrupt(serving[name])

    striker = threading.Thread(target=strike)
    striker.start()
    text = ask(asked, lambda number: streaming.set() if number >= 5 else None)
    striker.join()
    assert hit
    return text


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, id="killed"), pytest.param(signal.SIGSTOP, id="frozen", marks=pytest.mark.slow)],
)
def test_the_answer_goes_on_where_it_stopped(own_network: Network, number: signal.Signals) -> None:
    empty = own_network.add_spoke("empty")
    own_network.add_serving_spoke("serving-a")
    own_network.add_serving_spoke("serving-b")
    undisturbed = ask(empty)
    assert interrupt_once(own_network, empty, lambda node: node.signal(number)) == undisturbed


def test_without_another_replica_the_stream_ends_with_an_error(own_network: Network) -> None:
    empty = own_network.add_spoke("empty")
    own_network.add_serving_spoke("serving-a")
    with pytest.raises(openai.APIError) as lost:
        interrupt_once(own_network, empty, lambda node: node.signal(signal.SIGKILL))
    assert lost.value.code in ("replica_lost", "no_replica")


def test_a_killed_node_is_known_dead_within_a_second_and_a_frozen_one_within_six(own_network: Network) -> None:
    killed, frozen = own_network.add_spoke("killed"), own_network.add_spoke("frozen")
    everyone = {"hub", "killed", "frozen"}
    wait_for("all to be seen", lambda: own_network.hub.sees(alive=everyone))
    killed.kill()
    wait_for("the killed node to be gone", lambda: own_network.hub.sees(alive={"hub", "frozen"}), 1.0)
    frozen.signal(signal.SIGSTOP)
    wait_for("the frozen node to be gone", lambda: own_network.hub.sees(alive={"hub"}), 6.0)
    frozen.signal(signal.SIGCONT)
    wait_for("the thawed node to be back", lambda: own_network.hub.sees(alive={"hub", "frozen"}), 20.0)


@pytest.mark.slow
def test_fifty_killed_replicas_cost_no_answer(own_network: Network) -> None:
    """Each round kills the replica that is answering, then brings it back."""
    empty = own_network.add_spoke("empty")
    serving = {name: own_network.add_serving_spoke(name) for name in ("serving-a", "serving-b")}
    undisturbed = ask(empty)

    def kill_and_restart(node: NodeProcess) -> None:
        node.kill()
        node.start("up")

    for number in range(50):
        assert interrupt_once(own_network, empty, kill_and_restart) == undisturbed, f"round {number}"
        wait_for("both to serve again", lambda: empty.replicas_of(MODEL) == set(serving))
