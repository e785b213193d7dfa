"""Keys that are replaced while the network works, nodes that are sent away, and hubs that come by themselves."""

import json
import time
from pathlib import Path

import pytest
from hubs_house import Load, named, with_three_hubs

from networks import Network, NodeProcess, wait_for

STABLE_SECONDS = 600.0
"""How long nodes must have been up before they become hubs by themselves, and hubs gone before they are replaced."""

PASSPHRASE = "a passphrase of a test\n"


def everyone_sees_everyone(network: Network) -> bool:
    running = network.running()
    names = {node.name for node in running}
    return all(node.sees(alive=names) for node in running)


def trusted(node: NodeProcess) -> int:
    """The version of the trust list that this node holds."""
    return int((node.ask("/root") or {"version": 0})["version"])


@pytest.mark.slow
def test_keys_replaced_at_once_cost_no_request_and_a_node_that_was_away_comes_back(own_network: Network) -> None:
    network = with_three_hubs(own_network)
    away = network.add_spoke("away")
    away.kill()
    asking = [named(network, "empty"), named(network, "hub-b")]
    with Load(asking) as load:
        network.hub.run("rotate", "--now")
        answered = load.answered
        wait_for("more answers", lambda: load.answered > answered + 10 or load.failures)
    assert not load.failures
    wait_for("the new trust list everywhere", lambda: {trusted(node) for node in network.running()} == {2})
    wait_for("all to see all", lambda: everyone_sees_everyone(network))
    away.start("up").wait_until_up()
    wait_for("all to see the one that was away", lambda: everyone_sees_everyone(network))
    made = json.loads(named(network, "hub-c").run("key", "create", "after", "--json").stdout)["id"]
    wait_for("the key", lambda: made in {key["id"] for key in network.hub.ask("/keys")})


@pytest.mark.slow
def test_a_new_root_ends_old_tokens_and_nothing_else(own_network: Network, tmp_path: Path) -> None:
    network = with_three_hubs(own_network)
    away = network.add_spoke("away")
    away.kill()
    token = network.invite()
    before = network.hub.ask("/root")["pin"]
    exported = tmp_path / "root.pem"
    with Load([named(network, "empty")]) as load:
        done = network.hub.run("root", "rotate", "--now", "--export", str(exported), stdin=PASSPHRASE * 2)
        answered = load.answered
        wait_for("more answers", lambda: load.answered > answered + 10 or load.failures)
    assert not load.failures
    assert "open invitations withdrawn: 1" in done.stdout
    assert PASSPHRASE.strip() not in done.stdout + done.stderr
    roots = {node.name: node.ask("/root")["pin"] for node in network.running()}
    assert len(set(roots.values())) == 1 and before not in roots.values(), roots
    away.start("up").wait_until_up()
    wait_for("all to see all", lambda: everyone_sees_everyone(network))
    late = network.prepare_spoke("late")
    refused = late.run("join", "-", stdin=token, check=False)
    assert refused.returncode != 0
    assert "root" in refused.stderr, "it says that the network's root was replaced"
    late.start("join", "-", stdin=network.invite()).wait_until_up()
    wait_for("all to see the new one", lambda: everyone_sees_everyone(network))
    # The root is offline from now on: the file is what replaces the keys.
    network.hub.run("root", "export", str(exported), "--remove", stdin=PASSPHRASE)
    assert network.hub.run("rotate", check=False).returncode != 0
    network.hub.run("rotate", "--root", str(exported), stdin=PASSPHRASE)
    wait_for("the third trust list everywhere", lambda: {trusted(node) for node in network.running()} == {3})


@pytest.mark.slow
def test_a_hub_drains_another_node_and_a_spoke_that_leaves_is_gone_at_once(own_network: Network) -> None:
    network = with_three_hubs(own_network)
    spoke = network.add_serving_spoke("spoke")
    with Load([named(network, "empty")]) as load:
        done = network.hub.run("drain", "spoke", seconds=200)
        assert spoke.process is not None and spoke.process.wait(10) == 0
        answered = load.answered
        wait_for("more answers", lambda: load.answered > answered + 5 or load.failures)
    assert not load.failures
    assert done.stdout.strip() == "spoke: drained and stopped"
    spoke.start("up").wait_until_up()
    wait_for("it to serve again", lambda: "spoke" in network.hub.replicas_of("tiny-python"))
    spoke.run("leave", "--yes")
    assert spoke.process.wait(15) == 0
    assert "spoke" not in {member["record"]["name"] for member in network.hub.ask("/members") if member["alive"]}
    assert not (spoke.home.keys / "node.key").exists()
    spoke.start("join", "-", stdin=network.invite()).wait_until_up()
    wait_for("all to see it under its new key", lambda: everyone_sees_everyone(network))


@pytest.mark.slow
def test_three_hubs_come_by_themselves_and_one_that_is_lost_for_good_is_replaced(own_network: Network) -> None:
    network = own_network
    nodes = [network.hub, *(network.add_spoke(name) for name in ("two", "three", "four"))]
    began = time.monotonic()
    wait_for("three hubs", lambda: len(network.hub.keepers()) == 3, 2 * STABLE_SECONDS)
    assert time.monotonic() - began > STABLE_SECONDS / 2, "nodes that have just come are not trusted with the state"
    hubs = network.hub.keepers()
    kept = json.loads(network.hub.run("key", "create", "kept", "--json").stdout)["id"]
    lost = next(node for node in nodes if node.name in hubs and node is not network.hub)
    lost.kill()
    (spare,) = (node for node in nodes if node.name not in hubs)
    expected = hubs - {lost.name} | {spare.name}
    wait_for("the spare to be a hub", lambda: spare.keepers() == expected, 2 * STABLE_SECONDS)
    assert kept in {key["id"] for key in spare.ask("/keys")}
    lost.start("up").wait_until_up()
    wait_for("it to be a spoke", lambda: lost.ask("/status")["roles"] == ["spoke"], 60)
