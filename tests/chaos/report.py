"""The table of a run, in Markdown: pure."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from chaos.invariants import Violation, tally
from chaos.records import Happening, Records, Request

QUIET = "no fault"
SEVERAL = " + "
RULES = (
    "ends clearly",
    "text is right",
    "survivors serve",
    "writes are kept",
    "revoked stay out",
    "nodes stay up",
    "memory is bounded",
    "becomes whole",
)
_SHOWN = 20


def quantile(values: Sequence[float], part: float) -> float:
    """The nearest-rank quantile; NaN of nothing."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)] if values else math.nan


def by_fault(requests: Iterable[Request], happenings: Sequence[Happening]) -> dict[str, list[Request]]:
    """Each request under every fault whose time, the recovery included, it met; the rest under QUIET."""
    rows: dict[str, list[Request]] = defaultdict(list)
    for request in requests:
        met = {one.kind for one in happenings if request.begin <= one.settled and request.end >= one.begin}
        for kind in met or {QUIET}:
            rows[kind].append(request)
    return rows


def faults_table(records: Records) -> str:
    """One row a fault. Pauses are those of streams on nodes whose process was not killed or frozen, in ms."""
    rows = by_fault(records.requests, records.happenings)
    lines = [
        "| fault | times | requests | answered | errors | pause p50 / p99, ms | errors where down | whole after, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kinds = [QUIET, *sorted(rows.keys() - {QUIET})]
    return "\n".join(lines + [_row(kind, records.happenings, rows.get(kind, [])) for kind in kinds])


def _row(kind: str, happenings: Sequence[Happening], requests: Sequence[Request]) -> str:
    happened = [one for one in happenings if one.kind == kind]
    down = [
        request
        for request in requests
        if any(
            request.node in one.down and request.begin <= one.settled and request.end >= one.begin for one in happenings
        )
    ]
    up = [request for request in requests if request not in down]
    pauses = [request.pause * 1e3 for request in up if request.stream and request.first is not None]
    converged = [one.converged for one in happened if one.converged is not None]
    whole = f"{quantile(converged, 0.5):.1f} / {max(converged):.1f}" if converged else "-"
    never = len(happened) - len(converged)
    return " | ".join(
        (
            f"| {kind}",
            str(len(happened)) if happened else "-",
            str(len(up)),
            str(sum(request.outcome == "answered" for request in up)),
            _errors(up) or "none",
            f"{quantile(pauses, 0.5):.0f} / {quantile(pauses, 0.99):.0f}" if pauses else "-",
            _errors(down) or "-",
            f"{whole}{f', {never} x not in time' if never else ''} |",
        )
    )


def _errors(requests: Iterable[Request]) -> str:
    counts = Counter(
        f"{request.outcome} {request.code}".strip() for request in requests if request.outcome != "answered"
    )
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def invariants_table(violations: Sequence[Violation]) -> str:
    """One row an invariant."""
    counts = tally(violations)
    lines = ["| invariant | broken |", "|---|---|"]
    return "\n".join(lines + [f"| {rule} | {counts[rule] or 'never'} |" for rule in RULES])


def memory_table(records: Records) -> str:
    """The highest resident memory by role."""
    peaks: dict[str, int] = {}
    for sample in records.memory:
        peaks[sample.role] = max(peaks.get(sample.role, 0), sample.size)
    lines = ["| process | highest RSS, MiB |", "|---|---|"]
    return "\n".join(lines + [f"| {role} | {peaks[role] >> 20} |" for role in sorted(peaks)])


def render(records: Records, violations: Sequence[Violation], setting: str) -> str:
    """The whole report."""
    acknowledged = sum(write.end is not None for write in records.writes)
    parts = [
        f"**Chaos, seed {records.seed}, {records.end - records.begin:.0f} s, {setting}**",
        f"{len(records.requests)} requests, {len(records.happenings)} faults, {len(records.writes)} writes of which "
        f"{acknowledged} were acknowledged, {len(records.prompts)} prompts with a known answer.",
        faults_table(records),
        invariants_table(violations),
        memory_table(records),
    ]
    if records.left_out:
        parts.append(
            "Left out: " + "; ".join(f"{kind} ({why})" for kind, why in sorted(records.left_out.items())) + "."
        )
    if violations:
        parts.append("\n".join(["Broken:", "", *evidence(violations)]))
    return "\n\n".join(parts) + "\n"


def evidence(violations: Sequence[Violation]) -> list[str]:
    """The first of each sort of violation, with how often it came; sorts differ in more than their figures."""
    sorts: dict[tuple[str, str, str], list[Violation]] = defaultdict(list)
    for one in violations:
        sorts[one.rule, one.node, re.sub(r"[\d.]+", "#", one.what)].append(one)
    shown = [
        f"- {same[0].time:.1f} s, {same[0].node}: {same[0].rule}: {same[0].what}"
        + (f" ({len(same)} times)" if len(same) > 1 else "")
        for same in list(sorts.values())[:_SHOWN]
    ]
    return shown + ([f"- and {len(sorts) - _SHOWN} other sorts"] if len(sorts) > _SHOWN else [])
