"""Models go from node to node: pulled on one, loaded on another."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from big_model import write_big_model
from networks import TINY_MODEL, Network, NodeProcess, wait_for

LIAR = Path(__file__).parent / "liar.py"
NOWHERE = "127.0.0.9"
MEBIBYTE = 1 << 20


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    network = Network(tmp_path, transfer={"download_rate": 60 * MEBIBYTE})
    network.start_hub()
    try:
        yield network
    finally:
        network.close()


def add(network: Network, name: str, **settings: str) -> NodeProcess:
    node = network.prepare_spoke(name, **settings)
    return node.start("join", "-", stdin=network.invite()).wait_until_up()


def pull(node: NodeProcess, reference: str, **request: str) -> None:
    last = json.loads(node.tell("/models/pull", {"reference": reference} | request, seconds=300).splitlines()[-1])
    assert "error" not in last, last


def load(node: NodeProcess, name: str) -> None:
    node.tell("/models/load", {"name": name, "context": 256, "slots": 1}, seconds=300)


def blob_of(node: NodeProcess) -> Path:
    return max((node.home.models / "blobs").glob("*"), key=lambda path: path.stat().st_size)


def came(node: NodeProcess) -> float:
    """The share of what is on its way to this node that is there."""
    own = next((member for member in node.ask("/members") or () if member["record"]["name"] == node.name), None)
    pulls = (own or {}).get("pulls")
    return pulls[0]["done"] / max(1, pulls[0]["total"]) if pulls else 0.0


def test_what_one_node_pulled_another_loads_and_repairs_from_it(network: Network, tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    model.write_bytes(TINY_MODEL.read_bytes() + bytes(9 * MEBIBYTE))
    attic = add(network, "attic")
    pull(network.hub, str(model), name="tiny")
    attic.run("load", "tiny")
    assert attic.replicas_of("tiny") == {"attic"}

    blob = blob_of(attic)
    blob.chmod(0o600)
    with blob.open("r+b") as stream:
        stream.seek(5 * MEBIBYTE)
        stream.write(b"rot")
    (verified,) = json.loads(attic.tell("/models/verify", {"name": "tiny"}).splitlines()[-1])["models"]
    assert (verified["damaged"][0]["bad_chunks"], verified["repaired"]) == ([1], True)
    assert blob.read_bytes() == model.read_bytes()


@pytest.mark.slow
def test_a_node_that_cannot_be_dialled_gives_its_models_over_the_mesh(network: Network, tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    model.write_bytes(TINY_MODEL.read_bytes() + bytes(20 * MEBIBYTE))
    cellar, attic = add(network, "cellar", advertise=NOWHERE), add(network, "attic")
    pull(network.hub, str(model), name="tiny")
    load(cellar, "tiny")
    network.hub.run("models", "remove", "tiny")
    load(attic, "tiny")
    assert "asked over the mesh" in (attic.home.logs / "node.log").read_text()
    assert "asked over the mesh" not in (cellar.home.logs / "node.log").read_text()

    for node in (cellar, attic):
        node.tell("/models/unload", {"name": "tiny", "drain_seconds": 0})
        node.run("models", "remove", "tiny")
    wait_for("nobody to hold it", lambda: not any(row["record"].get("holds") for row in attic.ask("/members") or [1]))
    assert f"pull it from {model}" in attic.run("pull", "tiny", check=False).stderr.replace("\n", " ")


@pytest.mark.slow
def test_a_gigabyte_arrives_though_one_node_is_killed_and_another_lies(network: Network, tmp_path: Path) -> None:
    big = tmp_path / "big.gguf"
    write_big_model(big, layers=19)
    assert big.stat().st_size > 10**9
    hub, cellar, attic = network.hub, add(network, "cellar"), add(network, "attic")
    pull(hub, str(big), name="big")
    pull(cellar, "big")
    cellar.stop()
    cellar.program = (str(LIAR),)
    cellar.start("up").wait_until_up()
    wait_for("the attic to know two that have it", lambda: len(holders(attic)) == 2)

    with ThreadPoolExecutor(1) as executor:
        loading = executor.submit(load, attic, "big")
        wait_for("half of it to be there", lambda: loading.done() or came(attic) > 0.4)
        hub.kill()
        before = came(attic)
        assert before < 0.9
        hub.start("up").wait_until_up()
        loading.result()
    assert blob_of(attic).read_bytes() == big.read_bytes()
    banned = json.loads((attic.home.state / "peers-banned.json").read_text())
    assert list(banned) == [record_of(attic, "cellar")["id"]]
    wait_for("the hub to see it served", lambda: hub.replicas_of("big") == {"attic"})


def record_of(node: NodeProcess, name: str) -> dict[str, object]:
    return next(row["record"] for row in node.ask("/members") if row["record"]["name"] == name)


def holders(node: NodeProcess) -> list[str]:
    members = node.ask("/members") or []
    return [row["record"]["name"] for row in members if row["alive"] and row["record"].get("holds")]
