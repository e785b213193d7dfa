"""Nodes of neighbouring versions serve each other; one of a version too far away is shown and asked nothing."""

import os
from pathlib import Path

import openai
import pytest

from felloe import __version__
from felloe.domain.versions import parse
from networks import Network, NodeProcess, wait_for

MODEL = "tiny-python"


def version(minor: int) -> str:
    own = parse(__version__)
    assert own is not None
    return f"{own.major}.{own.minor + minor}.0"


def become(node: NodeProcess, version: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start `node` anew as a program that says it has this version."""
    node.stop()
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(f"import felloe\n\nfelloe.__version__ = {version!r}\n")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", path)
        node.start("up").wait_until_up()


def shown_version(node: NodeProcess, name: str) -> str:
    members = {member["record"]["name"]: member for member in node.ask("/members") or []}
    return str(members[name]["record"]["version"]) if name in members else ""


def ask(node: NodeProcess) -> str | None:
    with node.client() as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Write"}], max_tokens=4
        )
    return answer.choices[0].finish_reason


def test_the_next_version_is_asked_and_the_one_after_it_only_shown(
    own_network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = own_network.hub
    serving = own_network.add_serving_spoke("serving")

    become(serving, version(1), tmp_path / "next", monkeypatch)
    wait_for("the next version", lambda: shown_version(hub, "serving") == version(1))
    wait_for("its model", lambda: hub.replicas_of(MODEL) == {"serving"})
    assert ask(hub) == "length"
    assert "too" not in hub.run("ps").stdout

    become(serving, version(2), tmp_path / "far", monkeypatch)
    wait_for("the version after it", lambda: shown_version(hub, "serving") == version(2))
    wait_for("its model", lambda: hub.replicas_of(MODEL) == {"serving"})
    with pytest.raises(openai.APIStatusError) as refused:
        ask(hub)
    assert refused.value.code == "no_replica"
    assert f"version {version(2)}: too new" in hub.run("ps").stdout
    assert f"version {__version__}: too old" in serving.run("ps").stdout
    with hub.client() as client:
        assert MODEL not in {model.id for model in client.models.list()}
    assert ask(serving) == "length", "it goes on serving its own device"
