"""Enough curators may sign anything; what no decision may hold is no catalogue all the same."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from approval_house import ISSUER, Catalogues, approvals_of, resigned
from felloe.catalog.approval.tuf_files import meta_file
from felloe.domain.approval import Bundle
from felloe.domain.errors import FelloeError


def catalogues() -> Catalogues:
    made = Catalogues("ann")
    made.approve("tiny", "ann")
    made.approve("other", "ann")
    made.decide("ann", "withdraw", name="other", reason="it lies")
    assert made.sign("ann")
    return made


def with_targets(made: Catalogues, change: Callable[[dict[str, Any]], None]) -> Bundle:
    """The targets changed and signed by the curator, the rest by the hubs."""
    targets = resigned(made.bundle.targets, change, made.people["ann"])
    version = made.approvals.targets_version
    entry = meta_file(targets, version).to_dict()
    snapshot = resigned(made.bundle.snapshot, lambda signed: signed["meta"].update({"targets.json": entry}), ISSUER)
    entry = meta_file(snapshot, made.approvals.timestamp_version).to_dict()
    timestamp = resigned(made.bundle.timestamp, lambda signed: signed["meta"].update({"snapshot.json": entry}), ISSUER)
    return replace(made.bundle, targets=targets, snapshot=snapshot, timestamp=timestamp)


def approved_as(**custom: Any) -> Callable[[dict[str, Any]], None]:
    def change(signed: dict[str, Any]) -> None:
        (file,) = signed["targets"].values()
        file["custom"].update(custom)

    return change


def withdrawn_as(**fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(signed: dict[str, Any]) -> None:
        (entry,) = signed["felloe"]["withdrawn"].values()
        entry.update(fields)

    return change


def moved(signed: dict[str, Any]) -> None:
    (file,) = signed["targets"].values()
    signed["targets"] = {"models/../../x.json": file}


def test_the_forger_of_these_tests_is_believed_when_he_changes_nothing() -> None:
    made = catalogues()
    assert approvals_of(with_targets(made, lambda _: None)).approved == made.approvals.approved


@pytest.mark.parametrize(
    "change",
    [
        approved_as(name="a\x00b"),
        approved_as(name="../x"),
        approved_as(name="x" * 10_000),
        approved_as(made_by="nobody"),
        approved_as(architecture="\x1b[2J"),
        approved_as(quantisation="x" * 10_000),
        approved_as(approved_by=["\x1b[2J"]),
        withdrawn_as(name="../x"),
        withdrawn_as(reason="\x1b[2J"),
        moved,
    ],
)
def test_what_no_decision_may_say_makes_no_catalogue(change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(FelloeError) as caught:
        approvals_of(with_targets(catalogues(), change))
    assert (caught.value.code, caught.value.detail.isprintable()) == ("catalog_refused", True)


def test_a_curator_with_an_impossible_name_makes_no_catalogue() -> None:
    made = catalogues()

    def change(signed: dict[str, Any]) -> None:
        names = signed["felloe"]["names"]
        names[next(iter(names))] = "\x1b[2J"

    root = resigned(made.bundle.roots[0], change, made.people["ann"])
    with pytest.raises(FelloeError, match="catalog_refused"):
        approvals_of(replace(made.bundle, roots=(root,)))
