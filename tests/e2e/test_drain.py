"""A node that drains finishes what it runs, takes nothing new, and ends well; nobody's request fails for it."""

import json
import re
import threading

import httpx
import openai
import pytest

from networks import Network, NodeProcess, wait_for

MODEL = "tiny-python"
LENGTH = 1000
LONGEST = 3900
"""Tokens, nearly what the tiny model's context holds."""
SERVING = ("serving-a", "serving-b")


class LongAnswer(threading.Thread):
    """A long answer that a client of `node` reads; `begun` once it streams, `tokens` and `failure` at its end."""

    def __init__(self, node: NodeProcess, length: int = LENGTH) -> None:
        super().__init__(name=f"answer over {node.name}", daemon=True)
        self._node = node
        self._length = length
        self.begun = threading.Event()
        self._enough = threading.Event()
        self.chunks = self.tokens = 0
        self.failure: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            stream = self._node.client().chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "Write a class that keeps a list of files and reads them"}],
                temperature=0,
                max_tokens=self._length,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"logit_bias": {"1": -100}},
            )
            for chunk in stream:
                self.chunks += 1
                if chunk.usage is not None:
                    self.tokens = chunk.usage.completion_tokens
                if self.chunks > 5:
                    self.begun.set()
                if self._enough.is_set():
                    stream.close()
                    return
        except Exception as error:
            self.failure = error
        finally:
            self.begun.set()

    def stop(self) -> None:
        """Read no further."""
        self._enough.set()
        self.join(60)


class Questions(threading.Thread):
    """Short questions to `node`, a few a second, until `stop`."""

    def __init__(self, node: NodeProcess) -> None:
        super().__init__(name=f"questions to {node.name}", daemon=True)
        self._node = node
        self._stopping = threading.Event()
        self.answered = 0
        self.failures: list[Exception] = []
        self.start()

    def run(self) -> None:
        client = self._node.client()
        while not self._stopping.wait(0.2):
            try:
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Write"}], max_tokens=4, temperature=0
                )
                self.answered += 1
            except openai.APIError as error:
                self.failures.append(error)

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)


def answering(answer: LongAnswer, candidates: list[NodeProcess]) -> NodeProcess | None:
    """Which of `candidates` says that it is answering."""
    assert answer.failure is None and answer.is_alive(), f"it ended too early: {answer.failure!r}"
    for node in candidates:
        if any(member["this"] and sum(member["load"][0].values()) for member in node.ask("/members") or []):
            return node
    return None


def resumed(node: NodeProcess) -> int:
    """How many answers of `node`'s clients had to go on at another replica."""
    shown = httpx.get(node.base_url.removesuffix("/v1") + "/metrics").text
    found = re.search(r"^felloe_answers_resumed (\d+)", shown, re.MULTILINE)
    assert found is not None, shown
    return int(found[1])


def is_draining(asked: NodeProcess, name: str) -> bool:
    return any(member["record"]["name"] == name and member["load"][2] for member in asked.ask("/members") or [])


@pytest.mark.slow
def test_a_drained_node_finishes_its_answer_and_nobody_notices(own_network: Network) -> None:
    asker = own_network.add_spoke("asker")
    serving = [own_network.add_serving_spoke(name) for name in SERVING]
    answer = LongAnswer(asker)
    answer.begun.wait(60)
    drained = wait_for("the answering node", lambda: answering(answer, serving), 10)
    other = next(node for node in serving if node is not drained)
    questions = [Questions(node) for node in (asker, own_network.hub, other)]
    command = drained.run("drain", "--json", check=False, seconds=250)
    answer.join(60)
    for asking in questions:
        asking.stop()

    assert command.returncode == 0, command.stderr
    steps = [json.loads(line) for line in command.stdout.splitlines()]
    assert any(step.get("running") for step in steps), "it must have waited for the answer"
    assert steps[-1] == {"ended": True}
    assert drained.process is not None and drained.process.wait(10) == 0
    assert answer.failure is None and answer.tokens == LENGTH
    assert resumed(asker) == 0, "the node stopped before its answer had ended"
    for asking in questions:
        assert asking.failures == []
        assert asking.answered > 0

    drained.start("up").wait_until_up()
    wait_for("the drained node to serve again", lambda: asker.replicas_of(MODEL) == set(SERVING))
    assert not is_draining(asker, drained.name)


@pytest.mark.slow
def test_while_it_drains_its_own_clients_are_answered_by_other_nodes(own_network: Network) -> None:
    asker = own_network.add_spoke("asker")
    first, second = (own_network.add_serving_spoke(name) for name in SERVING)
    own = LongAnswer(first, length=LONGEST)
    own.begun.wait(60)
    draining = threading.Thread(target=lambda: first.run("drain", check=False, seconds=250), daemon=True)
    draining.start()
    wait_for("the drain to be told", lambda: is_draining(asker, first.name), 30)
    questions = Questions(first)
    wait_for("some answers from elsewhere", lambda: questions.answered >= 3 or questions.failures, 30)
    assert questions.failures == []
    questions.stop()
    assert first.process is not None and first.process.poll() is None, "it waits for its own client's answer"
    own.stop()
    assert own.failure is None
    draining.join(60)
    assert first.process.wait(10) == 0
    wait_for("the other to be alone", lambda: second.replicas_of(MODEL) == {second.name}, 10)


@pytest.mark.slow
def test_after_its_time_the_rest_goes_on_elsewhere(own_network: Network) -> None:
    asker = own_network.add_spoke("asker")
    serving = [own_network.add_serving_spoke(name) for name in SERVING]
    answer = LongAnswer(asker)
    answer.begun.wait(60)
    drained = wait_for("the answering node", lambda: answering(answer, serving), 10)
    command = drained.run("drain", "--timeout", "0", check=False)
    assert command.returncode == 0, command.stderr
    assert drained.process is not None and drained.process.wait(10) == 0
    answer.join(120)
    assert answer.failure is None and answer.tokens == LENGTH
    assert resumed(asker) == 1


def test_a_drain_of_another_node_or_for_no_time_is_refused(network: Network) -> None:
    asked, other = network.nodes[2], network.nodes[3]
    elsewhere = asked.run("drain", other.name, check=False)
    assert elsewhere.returncode == 4
    assert "from a hub" in elsewhere.stderr
    nobody = asked.run("drain", "nobody", check=False)
    assert nobody.returncode == 1 and "not_found" in nobody.stderr
    endless = asked.run("drain", "--timeout", "-1", check=False)
    assert endless.returncode == 1 and "invalid_value" in endless.stderr
    assert asked.ask("/status")["connected"]


@pytest.mark.slow
def test_a_drain_says_which_models_nobody_else_serves(own_network: Network) -> None:
    spoke = own_network.add_serving_spoke("serving-a")
    drained = spoke.run("drain", spoke.name, check=False)
    assert drained.returncode == 0
    assert f"no other node serves {MODEL}" in drained.stderr
    assert "drained and stopped" in drained.stdout


@pytest.mark.slow
def test_nodes_drained_and_started_in_turn_cost_no_request(own_network: Network) -> None:
    """A rolling upgrade: the load never stops, each serving node is drained and started anew, twice."""
    asker = own_network.add_spoke("asker")
    serving = [own_network.add_serving_spoke(name) for name in SERVING]
    questions = [Questions(node) for node in (asker, own_network.hub)]
    for node in [*serving, *serving]:
        assert node.run("drain", check=False).returncode == 0
        assert node.process is not None and node.process.wait(10) == 0
        node.start("up").wait_until_up()
        wait_for("both to serve", lambda: all(n.replicas_of(MODEL) == set(SERVING) for n in (asker, own_network.hub)))
    for asking in questions:
        asking.stop()
        assert asking.failures == []
        assert asking.answered > 0
