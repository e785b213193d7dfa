"""What the records of a run must prove: pure checks, each returns what it found broken."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from chaos.records import Collapse, Happening, Intrusion, Memory, Observation, Prompt, Records, Request, Write

DEADLINE_SLACK_SECONDS = 5.0
STARTING_SECONDS = 5.0
SPREADING_SECONDS = 2.0
OUT_AFTER_SECONDS = 1.0
CLEAR_ANYWHERE = frozenset({"overloaded", "rate_limited", "draining"})
"""A node may always say that it has too much to do."""

MOST_MEMORY: dict[str, int] = {"node": 400 << 20, "engine": 400 << 20, "nats-server": 250 << 20}
GROWTH = 1.2
GROWTH_FREE = 16 << 20
GROWTH_SECONDS = 300.0
_OVERLAP = 12
_LONGEST_SHIFT = 400


class Violation(NamedTuple):
    """A broken invariant: which, when (seconds after the run's begin), on which node, and the evidence."""

    rule: str
    time: float
    node: str
    what: str


def check(records: Records, deadline: float) -> list[Violation]:
    """All invariants over a run's records; `deadline` is the program's own, in seconds. Ordered by time."""
    found = [
        *ends_clearly(records.requests, records.happenings, deadline),
        *text_is_right(records.requests, records.prompts),
        *survivors_serve(records.requests, records.happenings),
        *writes_are_kept(records.writes, records.observations),
        *revoked_stay_out(records.intrusions),
        *nodes_stay_up(records.collapses),
        *memory_is_bounded(records.memory),
        *becomes_whole(records.happenings),
    ]
    return sorted((one._replace(time=one.time - records.begin) for one in found), key=lambda one: one.time)


def ends_clearly(requests: Iterable[Request], happenings: Iterable[Happening], deadline: float) -> list[Violation]:
    """Every request ends in an answer or a clear error within its deadline, while its own node's process runs."""
    found: list[Violation] = []
    happened = list(happenings)
    for request in requests:
        late = request.end - request.begin > deadline + DEADLINE_SLACK_SECONDS
        if (request.outcome in ("broken", "hung") or late) and not was_down(request, happened):
            took = f"{request.outcome} {request.code} after {request.end - request.begin:.1f} s: {request.detail}"
            found.append(Violation("ends clearly", request.begin, request.node, took))
    return found


def was_down(request: Request, happenings: Iterable[Happening]) -> bool:
    """Whether the process of the node that was asked was killed or frozen while the request ran."""
    return any(
        request.node in one.down and request.begin <= one.back + STARTING_SECONDS and request.end >= one.begin
        for one in happenings
    )


def text_is_right(requests: Iterable[Request], prompts: Mapping[str, Prompt]) -> list[Violation]:
    """The greedy text of an answer is the undisturbed one; of a stream that failed, its beginning."""
    found: list[Violation] = []
    for request in requests:
        expected = prompts[request.prompt]
        if request.outcome == "answered":
            fault = "" if request.digest == expected.digest else describe_difference(expected.text, request.text)
            if not fault and request.tokens != expected.tokens:
                fault = f"{request.tokens} tokens are counted, not {expected.tokens}"
        else:
            fault = "" if expected.text.startswith(request.text) else describe_difference(expected.text, request.text)
        if fault:
            found.append(Violation("text is right", request.begin, request.node, f"{request.prompt}: {fault}"))
    return found


def describe_difference(expected: str, found: str) -> str:
    """Says whether something came twice, is missing, or other words came."""
    same = next(
        (at for at, (one, other) in enumerate(zip(expected, found, strict=False)) if one != other),
        min(len(expected), len(found)),
    )
    if same == len(found):
        return f"ends after {same} of {len(expected)} characters"
    if same == len(expected):
        return f"goes on after its end with {found[same : same + 30]!r}"
    rest = found[same:]
    for shift in range(1, _LONGEST_SHIFT):
        if shift <= same and _continues(expected[same - shift :], rest):
            return f"{shift} characters come twice at {same}"
        if _continues(expected[same + shift :], rest):
            return f"{shift} characters are missing at {same}"
    return f"other words from character {same}: {rest[:30]!r} instead of {expected[same : same + 30]!r}"


def _continues(expected: str, found: str) -> bool:
    length = min(len(expected), len(found), 4 * _OVERLAP)
    return length >= _OVERLAP and expected[:length] == found[:length]


def survivors_serve(requests: Iterable[Request], happenings: Iterable[Happening]) -> list[Violation]:
    """A node that runs answers: no error but of overload, unless it has no model and no way to one."""
    happened = list(happenings)
    found: list[Violation] = []
    for request in requests:
        if request.outcome not in ("refused", "failed") or request.code in CLEAR_ANYWHERE:
            continue
        alone = any(
            request.node in one.lonely and request.begin <= one.settled and request.end >= one.begin for one in happened
        )
        if not alone and not was_down(request, happened):
            what = f"{request.outcome} {request.code} after {request.end - request.begin:.1f} s: {request.detail}"
            found.append(Violation("survivors serve", request.begin, request.node, what))
    return found


def writes_are_kept(writes: Iterable[Write], observations: Iterable[Observation]) -> list[Violation]:
    """What was acknowledged is seen by every node, and what was taken back is seen by none."""
    asked = list(writes)
    found: list[Violation] = []
    for seen in observations:
        known = [write for write in asked if write.end is not None and write.end <= seen.begin - SPREADING_SECONDS]
        undone = {write.subject for write in asked if write.action.startswith("revoke") and write.begin <= seen.end}
        for write in known:
            present = seen.keys if write.action.endswith("key") else seen.alive
            if write.action in ("key", "join") and write.subject not in present and write.subject not in undone:
                found.append(
                    Violation("writes are kept", seen.end, seen.node, f"{write.action} {write.subject} is lost")
                )
            if write.action.startswith("revoke") and write.subject in present:
                found.append(
                    Violation("writes are kept", seen.end, seen.node, f"{write.action} {write.subject} is undone")
                )
    return found


def revoked_stay_out(intrusions: Iterable[Intrusion]) -> list[Violation]:
    """A revoked node gets no request, and is answered none."""
    return [
        Violation("revoked stay out", one.after, one.node, f"{one.what} {one.after:.1f} s after its revocation")
        for one in intrusions
        if one.after > OUT_AFTER_SECONDS
    ]


def nodes_stay_up(collapses: Iterable[Collapse]) -> list[Violation]:
    """No process ends that was not ended."""
    return [
        Violation("nodes stay up", one.time, one.node, f"ended by itself: {one.words[-1500:]}") for one in collapses
    ]


def memory_is_bounded(samples: Iterable[Memory]) -> list[Violation]:
    """No process passes its role's limit; over a long life, its last quarter is not far above its second one."""
    lives: dict[tuple[str, str, int], list[Memory]] = {}
    for sample in samples:
        lives.setdefault((sample.node, sample.role, sample.process), []).append(sample)
    found: list[Violation] = []
    for (node, role, _), life in lives.items():
        top = max(life, key=lambda sample: sample.size)
        if top.size > MOST_MEMORY.get(role, top.size):
            found.append(Violation("memory is bounded", top.time, node, f"{role} holds {top.size >> 20} MiB"))
        quarter = len(life) // 4
        if quarter and life[-1].time - life[0].time >= GROWTH_SECONDS:
            early = max(sample.size for sample in life[quarter : 2 * quarter])
            late = min(sample.size for sample in life[-quarter:])
            if late > early * GROWTH + GROWTH_FREE:
                grown = f"{role} grew from {early >> 20} to {late >> 20} MiB"
                found.append(Violation("memory is bounded", life[-1].time, node, grown))
    return found


def becomes_whole(happenings: Iterable[Happening]) -> list[Violation]:
    """After every wave all living nodes see each other, serve, and hold the same state, in time."""
    return [
        Violation("becomes whole", one.end, ", ".join(one.targets), f"{one.kind}: not whole again: {one.note}")
        for one in happenings
        if one.converged is None
    ]


def tally(violations: Iterable[Violation]) -> Counter[str]:
    """How many of each rule."""
    return Counter(one.rule for one in violations)
