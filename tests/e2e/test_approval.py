"""Curators decide what runs: real nodes, the commands that people type, and what a node refuses."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from felloe.cli.output import EXIT_REFUSED
from networks import TINY_MODEL, Network, NodeProcess, wait_for

MODEL = "tiny-python"


def refused(node: NodeProcess, *arguments: str) -> str:
    """What a command says that must be refused."""
    done = node.run(*arguments, check=False)
    assert done.returncode == EXIT_REFUSED, done.stdout + done.stderr
    return done.stderr


def pull(node: NodeProcess) -> str:
    """Have a node pull the model; what it says about the approval."""
    last = node.tell("/models/pull", {"reference": str(TINY_MODEL)}).splitlines()[-1]
    return str(msgspec.json.decode(last)["approval"])


def standings(node: NodeProcess) -> dict[str, str]:
    return {row["name"]: row["standing"] for row in (node.ask("/catalog") or {"rows": []})["rows"]}


def test_a_model_is_loaded_when_it_is_approved_and_unloaded_when_that_is_taken_back(own_network: Network) -> None:
    hub = own_network.hub
    spoke = own_network.add_spoke("spoke", "--model", str(TINY_MODEL))
    wait_for("the spoke's pull to be published", lambda: standings(hub) == {MODEL: "waiting"})
    said = refused(spoke, "load", MODEL)
    assert "not_approved" in said
    assert f"felloe approve {MODEL}" in said
    (this,) = (member for member in spoke.ask("/members") if member["this"])
    assert "not approved" in this["problems"][MODEL]
    assert "not_curator" in refused(spoke, "approve", MODEL)
    assert "approved" in hub.run("approve", MODEL, "--reason", "looked at").stdout
    wait_for("the model to be loaded by itself", lambda: hub.replicas_of(MODEL) == {"spoke"})
    assert [row["approval"]["approved_by"] for row in spoke.ask("/models")] == [["hub"]]
    hub.run("withdraw", MODEL, "--reason", "it leaks")
    wait_for("the model to be unloaded", lambda: hub.replicas_of(MODEL) == set())
    said = refused(spoke, "load", MODEL)
    assert "model_withdrawn" in said
    assert "it leaks" in said
    assert [row["verdict"] for row in hub.ask("/catalog/log")] == ["approve", "withdraw"]


@pytest.fixture(scope="module")
def council(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Three nodes with a curator each, two of whom must agree, and a fourth node without one."""
    built = Network(tmp_path_factory.mktemp("council"))
    try:
        built.start_hub()
        for name in ("bob", "eve"):
            key = built.add_spoke(name).run("curators", "key").stdout.strip()
            assert f"{name} is a curator now" in built.hub.run("curators", "add", key).stdout
        assert "2 of 3" in built.hub.run("curators", "threshold", "2").stdout
        built.add_spoke("last")
        yield built
    finally:
        built.close()


@pytest.mark.slow
def test_two_of_three_curators_decide(council: Network) -> None:
    hub, bob, eve, last = council.nodes
    assert f"felloe approve {MODEL}" in pull(hub), "with two to agree nothing is approved by itself"
    assert "1 of 2; waits for bob, eve" in hub.run("approve", MODEL).stdout
    assert "1 of 2; waits for bob, eve" in hub.run("approve", MODEL).stdout, "saying it twice changes nothing"
    assert standings(last) == {MODEL: "waiting"}
    assert "not_approved" in refused(hub, "load", MODEL)
    assert "every node may load it" in bob.run("approve", MODEL).stdout
    pull(last)
    last.run("load", MODEL)
    hub.run("load", MODEL)
    assert "1 of 2" in eve.run("withdraw", MODEL, "--reason", "it lies").stdout
    assert council.hub.replicas_of(MODEL) == {"hub", "last"}, "one is not enough to take it back"
    assert "withdrawn" in bob.run("withdraw", MODEL, "--reason", "it lies").stdout
    wait_for("every node to unload it", lambda: hub.replicas_of(MODEL) == set())
    for node in (hub, last):
        assert "it lies" in refused(node, "load", MODEL)


@pytest.mark.slow
def test_what_was_decided_holds_once_a_curators_node_is_back(council: Network) -> None:
    hub, bob, eve, _ = council.nodes
    assert "1 of 2" in hub.run("curators", "remove", "eve").stdout
    eve.stop()
    assert "eve is no curator any more" in bob.run("curators", "remove", "eve").stdout
    eve.start("up").wait_until_up()
    assert "not_curator" in refused(eve, "approve", MODEL)
    assert "invalid_value" in bob.run("curators", "remove", "hub", check=False).stderr
    assert {row["name"] for row in json.loads(bob.run("curators", "list", "--json").stdout)["curators"]} == {
        "hub",
        "bob",
    }


@pytest.mark.slow
def test_what_was_tampered_with_is_refused_and_approvals_hold_without_a_hub(own_network: Network) -> None:
    own_network.approve()
    spoke = own_network.add_serving_spoke("spoke")
    own_network.hub.stop()
    spoke.stop()
    spoke.start("up")
    wait_for("the model without a hub", lambda: spoke.replicas_of(MODEL) == {"spoke"})
    spoke.stop()
    (blob,) = (path for path in (spoke.home.models / "blobs").iterdir() if path.suffix != ".chunks")
    _change_last_byte(blob)
    spoke.start("up")
    wait_for("the node", lambda: spoke.ask("/status"))
    wait_for("the reason in the log", lambda: "tampered" in spoke.last_words())
    assert spoke.replicas_of(MODEL) == set()
    own_network.hub.start("up").wait_until_up()
    wait_for("a hub", lambda: (spoke.ask("/status") or {})["connected"])
    pull(spoke)
    spoke.run("load", MODEL)
    spoke.stop()
    (manifest,) = (spoke.home.models / "manifests").iterdir()
    _change_last_byte(manifest)
    spoke.start("up").wait_until_up()
    assert spoke.replicas_of(MODEL) == set()
    assert "manifest" in spoke.last_words()


def _change_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    path.chmod(0o600)
    content[-3] ^= 1
    path.write_bytes(content)
