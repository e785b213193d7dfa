"""The commands against real nodes, and what they say when something is wrong."""

import json
import socket
from pathlib import Path

import pytest

from networks import TINY_MODEL, Network, wait_for


def test_ps_and_models_show_the_network(network: Network) -> None:
    shown = network.hub.run("ps").stdout
    for node in network.nodes:
        assert node.name in shown
    members = json.loads(network.hub.run("ps", "--json").stdout)
    assert len(members) == 4
    assert all(member["record"]["hardware"]["cores"] >= 1 for member in members)
    models = json.loads(network.nodes[1].run("models", "--json").stdout)
    assert models[0]["replicas"] == {"serving-a": "ready", "serving-b": "ready"}


def test_hardware_shows_the_machine_and_what_its_models_hold(network: Network) -> None:
    spoke = next(node for node in network.nodes if node.name == "serving-a")
    ram = json.loads(spoke.run("hardware", "--json").stdout)["devices"][0]
    assert 0 < ram["held"] < ram["models"] < ram["total"]
    assert network.hub.run("hardware").stdout.splitlines()[0].startswith("hub: ")


def test_chat_streams_an_answer(network: Network) -> None:
    said = network.nodes[1].run("chat", "tiny-python", "Write a function", "--temperature", "0", "--max-tokens", "8")
    assert said.stdout.strip()


def test_doctor_finds_nothing_wrong_with_a_running_node(network: Network) -> None:
    findings = json.loads(network.hub.run("doctor", "--json").stdout)
    assert {finding["check"] for finding in findings} >= {
        "ports",
        "clock",
        "disk",
        "keys",
        "engine",
        "node",
        "catalogue",
    }
    assert not [finding for finding in findings if finding["verdict"] == "failed"]


def test_a_key_of_the_hub_is_valid_everywhere_until_it_is_revoked(network: Network) -> None:
    key = network.hub.run("key", "create", "app").stdout.strip()
    spoke = network.nodes[1]
    wait_for("the key to arrive", lambda: "app" in spoke.run("key", "list").stdout)
    assert key not in network.hub.run("key", "list").stdout
    for node in network.nodes:
        for path in node.home.folder.rglob("*"):
            if path.is_file() and path.suffix != ".gguf":
                assert key.encode() not in path.read_bytes()
    assert spoke.run("key", "revoke", "app", check=False).returncode == 4
    network.hub.run("key", "revoke", "app")
    wait_for("the key to go", lambda: "app" not in spoke.run("key", "list").stdout)


def test_the_home_of_a_running_node_is_not_shared(network: Network) -> None:
    second = network.hub.run("up", check=False)
    assert second.returncode == 1
    assert str(network.hub.process and network.hub.process.pid) in second.stderr
    assert "home_in_use" in second.stderr


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    network = Network(tmp_path)
    for setting, port in (
        ("api", network.hub.api_port),
        ("peer", network.peer["port"]),
        ("mesh", network.peer["mesh_port"]),
    ):
        with socket.create_server(("127.0.0.1", port)):
            failed = network.hub.run("up", check=False)
        assert failed.returncode == 1, setting
        assert str(port) in failed.stderr
        assert "port_taken" in failed.stderr


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    hub = Network(tmp_path).hub
    hub.home.config.write_text("[api]\nprot = 1\n")
    failed = hub.run("up", check=False)
    assert failed.returncode == 1
    assert "prot" in failed.stderr


def test_commands_without_a_node_say_so(tmp_path: Path) -> None:
    hub = Network(tmp_path).hub
    for command in (["ps"], ["models"], ["invite"], ["key", "list"], ["load", "x"], ["chat"]):
        failed = hub.run(*command, check=False)
        assert failed.returncode == 3, command
        assert "felloe up" in failed.stderr


def test_tokens_that_do_not_fit_are_refused(own_network: Network, tmp_path: Path) -> None:
    token = own_network.invite()
    joiner = own_network.prepare_spoke("joiner")
    swapped = token[:-5] + ("a" if token[-5] != "a" else "b") + token[-4:]
    for wrong in ("", "nonsense", token[: len(token) // 2], swapped):
        refused = joiner.run("join", "-", stdin=wrong, check=False)
        assert refused.returncode == 4, wrong
        assert "bad_token" in refused.stderr
    used = own_network.prepare_spoke("first")
    used.run("join", "-", "--no-start", stdin=token)
    refused = joiner.run("join", "-", stdin=token, check=False)
    assert refused.returncode == 4
    assert "token_refused" in refused.stderr
    assert token not in refused.stderr
    again = used.run("join", "-", stdin=own_network.invite(), check=False)
    assert "forbidden" in again.stderr


def test_a_withdrawn_invitation_lets_nobody_in(own_network: Network) -> None:
    created = json.loads(own_network.hub.run("invite", "--json").stdout)
    assert created["id"] in own_network.hub.run("invite", "--list").stdout
    own_network.hub.run("invite", "--withdraw", created["id"])
    refused = own_network.prepare_spoke("joiner").run("join", "-", stdin=created["token"], check=False)
    assert "token_refused" in refused.stderr


def test_a_model_is_pulled_loaded_unloaded_and_removed(own_network: Network) -> None:
    hub = own_network.hub
    pulled = hub.run("pull", str(TINY_MODEL), "--name", "snake")
    assert "snake" in pulled.stdout
    assert "4 slots" in hub.run("load", "snake").stdout
    assert hub.replicas_of("snake") == {"hub"}
    refused = hub.run("models", "--remove", "snake", check=False)
    assert "felloe unload snake" in refused.stderr
    hub.stop()
    hub.start("up").wait_until_up()
    wait_for("the model after a restart", lambda: hub.replicas_of("snake") == {"hub"})
    hub.run("unload", "snake")
    hub.run("models", "--remove", "snake")
    assert "snake" not in hub.run("models").stdout


@pytest.mark.parametrize(
    ("content", "field"), [(b"", "magic"), (b"not a model at all", "magic"), (TINY_MODEL.read_bytes()[:5000], "")]
)
def test_a_bad_model_file_is_refused_and_the_node_stays_up(
    network: Network, tmp_path: Path, content: bytes, field: str
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    refused = network.hub.run("pull", str(path), check=False)
    assert refused.returncode == 1
    assert "bad.gguf" in refused.stderr
    assert field in refused.stderr
    assert network.hub.ask("/status")["connected"]


def test_leaving_deletes_the_keys_and_keeps_the_models(own_network: Network) -> None:
    spoke = own_network.add_serving_spoke("leaver")
    spoke.run("leave", "--yes")
    wait_for("the node to end", lambda: spoke.process is not None and spoke.process.poll() is not None)
    assert list(spoke.home.keys.iterdir()) == []
    assert list(spoke.home.models.rglob("*.gguf"))
    wait_for("the hub to see it", lambda: own_network.hub.sees(alive={"hub"}))
    spoke.start("join", "-", stdin=own_network.invite()).wait_until_up()


def test_the_hub_serves_again_after_a_restart_and_the_spokes_come_back(own_network: Network) -> None:
    spoke = own_network.add_serving_spoke("serving-a")
    key = own_network.hub.run("key", "create", "kept").stdout.strip()
    assert key.startswith("fk-")
    own_network.hub.kill()
    answer = spoke.client().chat.completions.create(
        model="tiny-python", messages=[{"role": "user", "content": "x"}], max_tokens=4
    )
    assert answer.usage is not None, "a spoke without a hub must go on serving its own device"
    own_network.hub.start("up").wait_until_up()
    wait_for("the spoke to be back", lambda: own_network.hub.replicas_of("tiny-python") == {"serving-a"})
    assert "kept" in own_network.hub.run("key", "list").stdout
