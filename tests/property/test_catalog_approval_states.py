"""Three curators, some hubs and a node that is offline now and then: whatever happens, in whatever order, no model is
approved that not enough curators approved, and the node follows without ever going back."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from approval_house import Catalogues, listing, signer
from catalog_hubs import Hubs
from felloe.catalog.approval.decisions import open_decision
from felloe.domain.approval import Approvals, SignedDecision
from felloe.domain.errors import FelloeError

PEOPLE = st.sampled_from(["ann", "bob", "cid"])
MODELS = st.sampled_from(["tiny", "other"])
HUBS = st.integers(0, 1)


class Approving(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.house = Catalogues("ann", "bob", "cid", threshold=2)
        self.hubs = Hubs(self.house, count=2)
        self.node = self.house.trusted(self.folder)
        self.said: list[SignedDecision] = []
        self.run(self.node.take(self.house.bundle))
        self.hubs.trusted = self.node.bundle
        self.seen: Approvals = self.house.approvals

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def decide(self, by: str, verdict: Any, hub: int, **fields: Any) -> None:
        try:
            made = self.run(self.hubs.decide(by, verdict, hub, **fields))
            self.said.append(made)
        except FelloeError as error:
            assert error.code in ("invalid_value", "not_curator"), error
        # The house learns from the hubs only.
        self.house.decisions = list(self.hubs.look().decisions)

    @rule(by=PEOPLE, verdict=st.sampled_from(["approve", "approve", "reject", "withdraw"]), name=MODELS, hub=HUBS)
    def somebody_decides_on_a_model(self, by: str, verdict: str, name: str, hub: int) -> None:
        self.decide(by, verdict, hub, name=name)

    @rule(by=PEOPLE, verdict=st.sampled_from(["add_curator", "remove_curator"]), hub=HUBS)
    def somebody_decides_on_cid(self, by: str, verdict: str, hub: int) -> None:
        self.decide(by, verdict, hub, name="cid", curator=self.house.people["cid"].public_key)

    @rule(by=PEOPLE, threshold=st.integers(1, 3), hub=HUBS)
    def somebody_wants_another_threshold(self, by: str, threshold: int, hub: int) -> None:
        self.decide(by, "set_threshold", hub, threshold=threshold)

    @rule(by=PEOPLE, hub=HUBS)
    def a_curators_node_signs(self, by: str, hub: int) -> None:
        self.run(self.hubs.sign(by, hub=hub))

    @rule()
    def all_curators_nodes_sign(self) -> None:
        self.run(self.hubs.sign("ann", "bob", "cid"))

    @precondition(lambda self: self.house.issuer.public_key == signer(100).public_key)
    @rule()
    def the_hubs_keys_are_replaced(self) -> None:
        self.house.issuer = signer(101)

    @rule(hub=HUBS)
    def a_day_passes(self, hub: int) -> None:
        self.house.now += 3600.0
        self.run(self.hubs.books[hub].tend())

    @rule()
    def the_node_hears_of_it(self) -> None:
        self.hubs.look()
        before = self.node.approvals
        after = self.run(self.node.take(self.house.bundle))
        assert before is not None
        assert (after.root_version, after.targets_version) >= (before.root_version, before.targets_version)

    @invariant()
    def nothing_changes_without_enough_of_them(self) -> None:
        self.hubs.look()
        before, after = self.seen, self.house.approvals
        self.seen = after
        words = [open_decision(one) for one in self.said]
        present = {one.key for one in before.curators}

        def voices(verdict: str, **fields: Any) -> int:
            found = [
                one.by
                for one in words
                if one.verdict == verdict and all(getattr(one, name) == value for name, value in fields.items())
            ]
            return len(present & set(found))

        for content in after.approved.keys() - before.approved.keys():
            assert voices("approve", content=content) >= before.threshold
        for content in before.approved.keys() - after.approved.keys():
            assert voices("withdraw", content=content) >= before.threshold
        if after.threshold != before.threshold:
            assert voices("set_threshold", threshold=after.threshold) >= before.threshold
        for key in present ^ {one.key for one in after.curators}:
            verdict = "remove_curator" if key in present else "add_curator"
            assert voices(verdict, curator=key) >= before.threshold

    def teardown(self) -> None:
        self.the_node_hears_of_it()
        again = self.house.trusted(self.folder)
        assert again.approvals == self.node.approvals
        self.runner.close()
        shutil.rmtree(self.folder)


Approving.TestCase.settings = settings(max_examples=5, stateful_step_count=15, deadline=None)
TestApproving = Approving.TestCase


def test_two_of_three_from_the_pull_to_the_refusal(tmp_path: Path):
    """The whole way: raise the bar to 2 of 3, approve, sign late, load anywhere, withdraw, refuse with the reason."""
    with asyncio.Runner() as runner:
        house = Catalogues("ann", "bob", "cid")
        hubs, node = Hubs(house, count=3), house.trusted(tmp_path)
        tiny = listing("tiny")
        for step in (
            hubs.decide("ann", "set_threshold", threshold=2),
            hubs.sign("ann", "bob"),
            hubs.decide("ann", "approve", hub=1, name="tiny"),
            hubs.sign("ann", "bob", "cid"),
        ):
            runner.run(step)
        assert (house.approvals.threshold, house.approvals.standing(tiny.content)) == (2, "unknown")
        runner.run(hubs.decide("cid", "approve", hub=2, name="tiny"))
        runner.run(hubs.sign("cid"))
        runner.run(hubs.sign("bob", hub=2))
        runner.run(node.take(house.bundle))
        node.check(tiny.content, "tiny", house.now)
        for name in ("bob", "cid"):
            runner.run(hubs.decide(name, "withdraw", name="tiny", reason="licence"))
        runner.run(hubs.sign("ann", "bob"))
        runner.run(node.take(house.bundle))
        for approvals in (node.approvals, house.trusted(tmp_path).approvals):
            assert approvals is not None
            try:
                approvals.check(tiny.content, "tiny", house.now)
            except FelloeError as error:
                assert (error.code, "licence" in error.detail) == ("model_withdrawn", True)
            else:
                raise AssertionError("a withdrawn model may be loaded")
