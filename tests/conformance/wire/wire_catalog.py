"""What was approved, as every node reads it, and what curators, publishers and hubs say on the way there."""

from typing import Any

import msgspec
from wire_case import Case, longer, more_json, more_named

from approval_house import Catalogues, listing
from felloe.catalog.approval.decisions import open_decision
from felloe.catalog.approval.metadata import pin_of, sign_candidate
from felloe.catalog.approval.tuf_files import verified
from felloe.domain.approval import (
    Bundle,
    CandidateSignature,
    CatalogAnswer,
    DecideQuestion,
    EnvelopeAnswer,
    EnvelopeQuestion,
    LookAnswer,
    LookQuestion,
    Publication,
    PublishAnswer,
    PublishQuestion,
    SignedDecision,
    SignQuestion,
)
from felloe.hubs.records import KeptDecision, KeptPublication, KeptSignature, decode, encode
from felloe.mesh.rotation import found
from felloe.mesh.trust import read

NOW = 1_800_000_000
ENVELOPE = b"a signed manifest"


def _house() -> Catalogues:
    """Two curators; one model approved, one withdrawn, one that waits for the second signature."""
    house = Catalogues("ann", "bob", threshold=2, now=NOW)
    house.approve("tiny", "ann", "bob")
    house.approve("bad", "ann", "bob")
    for name in ("ann", "bob"):
        house.decide(name, "withdraw", name="bad", reason="no licence")
    house.sign("ann", "bob")
    for name in ("ann", "bob"):
        house.decide(name, "approve", name="next")
    return house


def _signature() -> CandidateSignature:
    house = _house()
    wanted = house.candidate()
    assert wanted is not None
    made = sign_candidate(wanted, house.people["ann"])
    assert made is not None
    return made


def _publication() -> Publication:
    return Publication(listing=listing("next"), published_at=NOW)


def _read_bundle(data: bytes) -> Any:
    bundle = Bundle.decode(data)
    return verified(bundle, pin_of(bundle)).approvals()


def _newer_decision(data: bytes) -> bytes:
    """To pass over what a decision says would be to do something else than was decided."""
    signed = msgspec.msgpack.decode(data)
    signed[0] = more_json(signed[0])
    return msgspec.msgpack.encode(signed)


def _of(name: str, value: msgspec.Struct) -> Case:
    kind = type(value)
    return Case(
        f"catalog-{name}",
        lambda: msgspec.msgpack.encode(value),
        lambda data: msgspec.msgpack.decode(data, type=kind),
        grow=more_named,
    )


def _kept(name: str, value: msgspec.Struct) -> Case:
    kind = type(value)
    return Case(f"catalog-{name}.json", lambda: encode(value), lambda data: decode(data, kind), grow=more_json)


DECISION = _house().decisions[-1]

CASES = [
    Case(
        "catalog-trust-list.json", lambda: found(NOW, lambda _: b"p" * 32).trust.encoded, lambda data: read(data).list
    ),
    Case("catalog-bundle", lambda: _house().bundle.encode(), _read_bundle, grow=longer),
    Case(
        "catalog-decision",
        lambda: msgspec.msgpack.encode(DECISION),
        lambda data: open_decision(msgspec.msgpack.decode(data, type=SignedDecision)),
        grow=longer,
        refuse=_newer_decision,
    ),
    _of("publish-question", PublishQuestion(ENVELOPE)),
    _of("publish-answer", PublishAnswer(_publication())),
    _of("decide-question", DecideQuestion(DECISION)),
    _of("sign-question", SignQuestion(_signature())),
    _of("answer", CatalogAnswer(3, 7)),
    _of("look-question", LookQuestion(5)),
    _of("look-answer", LookAnswer((DECISION,), (_publication(),), (_signature(),), 9)),
    _of("envelope-question", EnvelopeQuestion("ab" * 32)),
    _of("envelope-answer", EnvelopeAnswer(ENVELOPE)),
    _kept("publication", KeptPublication(publication=_publication(), envelope=ENVELOPE)),
    _kept("decision-kept", KeptDecision(signed=DECISION, taken_at=1_800_000_000.5)),
    _kept("signature", KeptSignature(signature=_signature())),
]
