"""Decisions as signed bytes: made on a curator's node, believed nowhere before the signature was seen to fit."""

from collections.abc import Iterable
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from felloe.catalog.approval.rules import made_at
from felloe.domain.approval import (
    MOST_DECISION_BYTES,
    Approvals,
    Decision,
    SignedDecision,
    Verdict,
    check_decision,
)
from felloe.domain.errors import FelloeError
from felloe.domain.ports import StatementSigner

_CONTEXT = b"felloe decision 1\0"


def new_decision(
    approvals: Approvals,
    by: bytes,
    verdict: Verdict,
    now: float,
    earlier: Iterable[SignedDecision] = (),
    **fields: Any,
) -> Decision:
    """What a curator (raw key `by`) says of the catalogue that `approvals` is; `fields` as the verdict needs them.

    `earlier` are the decisions that hubs keep. Raises `not_curator`, `invalid_value` for fields that do not fit.
    """
    if approvals.curator(by) is None:
        raise FelloeError("not_curator", "this node's key is not one of the catalogue's curators")
    own = [one for one in opened(earlier) if one.by == by]
    try:
        decision = Decision(
            catalog=approvals.catalog,
            verdict=verdict,
            by=by,
            seen_root=approvals.root_version,
            seen_targets=approvals.targets_version,
            made_at=made_at(now, own),
            **fields,
        )
        # Constructing checks no bounds; reading does.
        decision = msgspec.json.decode(msgspec.json.encode(decision), type=Decision)
    except (TypeError, msgspec.MsgspecError) as error:
        raise FelloeError("invalid_value", f"decision: {error}") from error
    check_decision(decision)
    return decision


def sign_decision(decision: Decision, curator: StatementSigner) -> SignedDecision:
    """The decision as hubs take it."""
    body = msgspec.json.encode(decision)
    return SignedDecision(body, curator.sign(_CONTEXT + body))


def open_decision(signed: SignedDecision) -> Decision:
    """What somebody decided, who holds the key that it names. Raises `catalog_refused`."""
    if len(signed.body) > MOST_DECISION_BYTES:
        raise FelloeError("catalog_refused", f"a decision has at most {MOST_DECISION_BYTES} bytes")
    try:
        decision = msgspec.json.decode(signed.body, type=Decision)
        Ed25519PublicKey.from_public_bytes(decision.by).verify(signed.signature, _CONTEXT + signed.body)
        check_decision(decision)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise FelloeError("catalog_refused", "what was offered is no decision") from error
    except InvalidSignature as error:
        raise FelloeError("catalog_refused", "the decision is not signed by the curator that it names") from error
    except FelloeError as error:
        raise FelloeError("catalog_refused", error.detail) from error
    return decision


def opened(signed: Iterable[SignedDecision]) -> list[Decision]:
    """Those that are properly signed; the others say nothing."""
    decisions: list[Decision] = []
    for one in signed:
        try:
            decisions.append(open_decision(one))
        except FelloeError:
            continue
    return decisions
