"""What `felloe hubs`, `promote`, `demote`, `revoke` and `leave` say, by what the node tells them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from felloe.cli.client import OperatorClient
from felloe.cli.main import create_app
from felloe.console.hub_messages import ChangeStep, Consequence, HubRow, HubsRequest, HubsView, Removal
from felloe.console.messages import NameRequest
from felloe.domain.errors import FelloeError

VIEW = HubsView(
    hubs=(
        HubRow(
            id="a" * 26,
            name="attic",
            addresses=("10.0.0.1:8471", "attic.lan:8471"),
            alive=True,
            ready=True,
            keeps_state=True,
            leads=True,
            this=True,
        ),
        HubRow(
            id="b" * 26,
            name="cellar",
            addresses=(),
            alive=False,
            ready=False,
            keeps_state=False,
            leads=False,
            this=False,
        ),
    ),
    wanted=0,
    generation=4,
    survives="cannot survive the loss of attic: promote another node",
    writable=True,
    moving_to=("attic", "cellar"),
)


class FakeNode:
    """Answers by path, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.answers: dict[str, Any] = {"/hubs": VIEW, "/hubs/wanted": VIEW}
        self.error: FelloeError | None = None

    def ask(self, _: OperatorClient, path: str, kind: object) -> Any:
        return self.answers[path]

    def tell(self, _: OperatorClient, path: str, message: object, kind: object) -> Any:
        self.told.append((path, message))
        return self.answers[path]

    def follow(self, _: OperatorClient, path: str, message: object, kind: object) -> Iterator[ChangeStep]:
        self.told.append((path, message))
        yield ChangeStep(says="trying the ports of [attic]")
        if self.error is not None:
            raise self.error
        yield ChangeStep(ended=True)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    monkeypatch.setenv("FELLOE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    fake = FakeNode()
    for name in ("ask", "tell", "follow"):
        method = getattr(fake, name)
        monkeypatch.setattr(OperatorClient, name, lambda *arguments, method=method: method(*arguments))
    return fake


def felloe(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(create_app(), list(arguments), input=stdin)


def test_hubs_shows_who_leads_and_what_the_network_survives(node: FakeNode) -> None:
    shown = felloe("hubs").stdout
    lines = [line.split() for line in shown.splitlines()]
    assert lines[1] == ["attic", "*", "aaaaaaaa", "10.0.0.1:8471", "up", "yes", "yes"]
    assert lines[2] == ["cellar", "bbbbbbbb", "-", "gone", "no"]
    assert "wanted: auto; generation 4 of the state" in shown
    assert "the state moves to attic, cellar" in shown
    assert "the network cannot survive the loss of attic: promote another node" in shown
    assert node.told == []


def test_hubs_for_programs_is_json(node: FakeNode) -> None:
    assert msgspec.json.decode(felloe("hubs", "--json").stdout, type=HubsView) == VIEW


@pytest.mark.parametrize(("word", "count"), [("auto", 0), ("1", 1), ("3", 3), ("5", 5)])
def test_the_number_of_hubs_is_set(node: FakeNode, word: str, count: int) -> None:
    assert felloe("hubs", word).exit_code == 0
    assert node.told == [("/hubs/wanted", HubsRequest(count))]


@pytest.mark.parametrize("word", ["2", "many", "-1"])
def test_another_number_of_hubs_is_wrong_usage(node: FakeNode, word: str) -> None:
    assert felloe("hubs", word).exit_code == 2
    assert node.told == []


def test_a_promotion_shows_its_steps_and_its_end(node: FakeNode) -> None:
    done = felloe("promote", "attic")
    assert node.told == [("/hubs/promote", NameRequest("attic"))]
    assert done.stderr == "trying the ports of [attic]\n"
    assert done.stdout == "attic is a hub\n"


def test_a_promotion_for_programs_is_lines_of_json(node: FakeNode) -> None:
    lines = felloe("promote", "attic", "--json").stdout.splitlines()
    assert [msgspec.json.decode(line, type=ChangeStep) for line in lines] == [
        ChangeStep(says="trying the ports of [attic]"),
        ChangeStep(ended=True),
    ]


def test_a_promotion_that_fails_says_no_success(node: FakeNode) -> None:
    node.error = FelloeError("node_unreachable", "attic cannot be dialled")
    done = felloe("promote", "attic")
    assert isinstance(done.exception, FelloeError)
    assert done.stdout == ""


def consequence(*, asks: bool) -> Consequence:
    return Consequence(id="a" * 26, name="attic", sentence="Without attic all is lost.", asks=asks)


def test_a_risky_demotion_asks_first(node: FakeNode) -> None:
    node.answers["/hubs/demotion"] = consequence(asks=True)
    refused = felloe("demote", "attic", stdin="n\n")
    assert (refused.exit_code, [path for path, _ in node.told]) == (1, ["/hubs/demotion"])
    assert "Without attic all is lost. Go on?" in refused.stderr
    assert felloe("demote", "attic", stdin="y\n").stdout == "attic is a spoke\n"
    assert [path for path, _ in node.told[1:]] == ["/hubs/demotion", "/hubs/demote"]


def test_a_safe_demotion_or_a_sure_owner_is_not_asked(node: FakeNode) -> None:
    node.answers["/hubs/demotion"] = consequence(asks=False)
    assert felloe("demote", "attic").exit_code == 0
    assert felloe("demote", "attic", "--yes").exit_code == 0
    assert [path for path, _ in node.told] == ["/hubs/demotion", "/hubs/demote", "/hubs/demote"]


def removal(*, was_hub: bool) -> Removal:
    return Removal(id="a" * 26, name="attic", role="spoke", joined_at=1.8e9, revoked_at=1.9e9, was_hub=was_hub)


def test_a_removal_shows_the_member_and_what_a_stolen_hub_asks_for(node: FakeNode) -> None:
    node.answers |= {"/members/revocation": consequence(asks=True), "/members/revoke": removal(was_hub=True)}
    assert felloe("revoke", "attic", stdin="n\n").exit_code == 1
    assert [path for path, _ in node.told] == ["/members/revocation"]
    done = felloe("revoke", "attic", "--yes")
    assert "a" * 26 in done.stdout and "2030" in done.stdout
    assert "it held the network's signing keys: run `felloe rotate --now`" in done.stderr
    node.answers["/members/revoke"] = removal(was_hub=False)
    assert felloe("revoke", "attic", "-y").stderr == ""
    assert msgspec.json.decode(felloe("revoke", "attic", "-y", "--json").stdout, type=Removal) == removal(was_hub=False)


def test_leaving_says_what_it_means_before_and_what_the_hubs_know_after(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[bool] = []

    def leave_network(folder: Path, *, force: bool) -> str:
        left.append(force)
        return "no hub was told (connection refused); run `felloe revoke attic` on a hub"

    monkeypatch.setattr("felloe.node.departure.describe", lambda folder, *, force: "This node leaves.")
    monkeypatch.setattr("felloe.node.departure.leave_network", leave_network)
    assert "This node leaves. Go on?" in felloe("leave", stdin="n\n").output
    assert left == []
    assert "run `felloe revoke attic` on a hub" in felloe("leave", "--yes", "--force").stdout
    assert left == [True]
