"""What a node knows of the models that are wanted, and what it lists of them."""

import msgspec
import pytest
from msgspec.structs import replace

from felloe.domain.ids import ModelName
from felloe.domain.plan import DesiredModel
from felloe.domain.roster import LoadingReplica, Member
from felloe.domain.serving import DemandAnswer, DemandQuestion, Serving
from felloe.node.edge import listed_models
from felloe.node.wanted import Wanted
from routing_fakes import make_member, make_replica, make_roster, node_id

LARGE = DesiredModel(model=ModelName("large"), context=8192, replicas_min=0)


def told(*models: DesiredModel) -> bytes:
    return msgspec.json.encode(Serving(models=models))


async def answer_loading(question: DemandQuestion) -> DemandAnswer:
    return DemandAnswer("loading", float(len(question.model)))


async def test_a_node_knows_what_a_hub_told_it_last():
    wanted = Wanted(answer_loading)
    assert not wanted.models and not wanted.is_wanted(LARGE.model)
    wanted.serving_changed(told(LARGE))
    assert wanted.models == (LARGE,) and wanted.is_wanted(LARGE.model)
    assert (await wanted.ask_for(LARGE.model)).wait_seconds == 5.0
    wanted.serving_changed(told())
    assert not wanted.is_wanted(LARGE.model)


@pytest.mark.parametrize("value", [b"", b"{", b'{"models": [{}]}', b"[" * 10_000, b"\xff\xfe"])
async def test_what_cannot_be_read_changes_nothing(value: bytes, caplog: pytest.LogCaptureFixture):
    wanted = Wanted(answer_loading)
    wanted.serving_changed(told(LARGE))
    wanted.serving_changed(value)
    assert wanted.models == (LARGE,) and "cannot be read" in caplog.text


def loading(member: Member) -> Member:
    row = LoadingReplica(model=LARGE.model, variant=LARGE.model, stage="fetching")
    return replace(member, record=replace(member.record, loading=(row,)))


@pytest.mark.parametrize(
    ("member", "state"),
    [
        (make_member(node_id(1)), "cold"),
        (make_member(node_id(1), make_replica("large"), alive=False), "cold"),
        (make_member(node_id(1), make_replica("large", state="failed")), "cold"),
        (make_member(node_id(1), make_replica("large", state="starting")), "loading"),
        (loading(make_member(node_id(1))), "loading"),
        (loading(make_member(node_id(1), alive=False)), "cold"),
        (loading(make_member(node_id(1), make_replica("large"))), "ready"),
    ],
)
def test_a_wanted_model_is_listed_once_whatever_becomes_of_it(member: Member, state: str):
    other = make_member(node_id(2), make_replica("a-small-one"))
    rows = listed_models(make_roster(member, other), [LARGE])
    assert [(row.name, row.state) for row in rows] == [("a-small-one", "ready"), ("large", state)]
    assert rows[1].context == (8192 if state != "ready" else make_replica().model.context)
