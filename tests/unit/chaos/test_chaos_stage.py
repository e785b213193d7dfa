"""Who is hub and who leads, as the nodes tell it."""

from pathlib import Path
from typing import Any, cast

from chaos.lab import LoopbackLab
from chaos.nodes import ChaosNode
from chaos.stage import Council, Stage


class Teller:
    """A node that answers its owner from a table."""

    def __init__(self, name: str, answers: dict[str, Any], *, lives: bool = True) -> None:
        self.name, self.lives, self._answers = name, lives, answers
        self.serves = self.may_be_hub = True

    async def ask(self, path: str) -> Any:
        return self._answers.get(path)


def row(name: str, *, keeps_state: bool = True, leads: bool = False) -> dict[str, Any]:
    return {"name": name, "keeps_state": keeps_state, "leads": leads}


def stage(tmp_path: Path, abilities: set[str], *tellers: Teller) -> Stage:
    built = Stage(LoopbackLab(tmp_path), frozenset(abilities), count=1, request_seconds=30)
    built.members = {teller.name: cast("ChaosNode", teller) for teller in tellers}
    return built


async def test_a_hub_that_knows_the_leader_is_believed_before_a_spoke(tmp_path: Path) -> None:
    hubs = [row("node-1"), row("node-2"), row("node-3", keeps_state=False)]
    led = [row("node-1"), row("node-2", leads=True), row("node-3", keeps_state=False)]
    built = stage(
        tmp_path,
        {"hubs"},
        Teller("node-3", {"/hubs": {"hubs": hubs}}),
        Teller("node-1", {"/hubs": {"hubs": led}}),
        Teller("node-2", {}, lives=False),
    )
    assert await built.council() == Council(("node-1", "node-2", "node-3"), ("node-1", "node-2"), "node-2")
    assert [node.name for node in await built.writable()] == ["node-1"]


async def test_a_program_without_several_hubs_tells_them_by_role(tmp_path: Path) -> None:
    members = [{"record": {"name": "node-1", "roles": ["hub"]}}, {"record": {"name": "node-2", "roles": ["spoke"]}}]
    built = stage(tmp_path, set(), Teller("node-2", {"/members": members}), Teller("node-1", {}))
    assert await built.council() == Council(("node-1",), ("node-1",), "")


async def test_without_any_answer_there_is_no_hub(tmp_path: Path) -> None:
    built = stage(tmp_path, {"hubs"}, Teller("node-1", {}), Teller("node-2", {}, lives=False))
    assert await built.council() == Council((), (), "")
    assert await built.writable() == []
    assert (await built.scene()).hubs == ()


def member(name: str, started_at: float, *, this: bool = False) -> dict[str, Any]:
    return {"record": {"name": name, "started_at": started_at}, "this": this}


async def test_a_node_that_holds_an_old_record_is_named(tmp_path: Path) -> None:
    own = Teller("node-1", {"/members": [member("node-1", 20.0, this=True), member("node-2", 5.0)]})
    current = Teller("node-2", {"/members": [member("node-1", 20.0), member("node-2", 5.0, this=True)]})
    behind = Teller("node-2", {"/members": [member("node-1", 10.0), member("node-2", 5.0, this=True)]})
    assert await stage(tmp_path, set(), own, current).disagreement() == ""
    assert await stage(tmp_path, set(), own, behind).disagreement() == "node-2 holds an old record of node-1"
