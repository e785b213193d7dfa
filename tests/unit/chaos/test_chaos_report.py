"""The table: which fault a request met, what went wrong there, how long clients waited."""

import math

from chaos import report
from chaos.invariants import Violation
from chaos.records import Happening, Outcome, Prompt, Records, Request


def request(begin: float, *, node: str = "node-2", outcome: Outcome = "answered", code: str = "") -> Request:
    return Request(
        node=node, prompt="p", stream=True, begin=begin, end=begin + 1, outcome=outcome, first=begin + 0.25, code=code
    )


KILLED = Happening(
    kind="node killed",
    targets=("node-1",),
    begin=10,
    end=12,
    back=14,
    settled=16,
    converged=4.0,
    down=frozenset({"node-1"}),
)
CUT = Happening(
    kind="link cut", targets=("node-3",), begin=30, end=40, back=40, settled=70, converged=None, note="node-3 is deaf"
)
RECORDS = Records(
    seed=42,
    begin=0,
    end=80,
    serving=frozenset(),
    prompts={"p": Prompt("p", "?", 1, True)},
    requests=[
        request(1),
        request(11),
        request(11, node="node-1", outcome="broken", code="no_connection"),
        request(35, outcome="refused", code="no_replica"),
        request(36, outcome="refused", code="no_replica"),
    ],
    happenings=[KILLED, CUT],
    left_out={"clock jumps": "no libfaketime"},
)


def row(name: str) -> list[str]:
    (line,) = [line for line in report.faults_table(RECORDS).splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_request_counts_for_the_fault_it_met_or_for_none() -> None:
    assert row(report.QUIET)[1:5] == ["-", "1", "1", "none"]
    assert row("node killed")[1:5] == ["1", "1", "1", "none"]
    assert row("link cut")[1:5] == ["1", "2", "0", "2 refused no_replica"]


def test_errors_of_a_node_that_was_down_stand_apart() -> None:
    assert row("node killed")[6] == "1 broken no_connection"


def test_pauses_are_in_milliseconds_and_include_the_first_token() -> None:
    assert row("node killed")[5] == "250 / 250"


def test_recovery_is_shown_and_a_network_that_stayed_broken_is_named() -> None:
    assert row("node killed")[7] == "4.0 / 4.0"
    assert "not in time" in row("link cut")[7]


def test_every_row_has_as_many_cells_as_the_head() -> None:
    assert len({line.count("|") for line in report.faults_table(RECORDS).splitlines()}) == 1


def test_quantiles_are_of_the_nearest_rank() -> None:
    assert report.quantile([3, 1, 2], 0.5) == 2
    assert report.quantile([1, 2, 3, 4], 0.99) == 4
    assert math.isnan(report.quantile([], 0.5))


def test_the_report_names_seed_invariants_what_was_left_out_and_the_evidence() -> None:
    violations = [Violation("text is right", 3.2, "node-2", "p: 4 characters come twice at 10")] * 30
    text = report.render(RECORDS, violations, "two nodes")
    assert "seed 42, 80 s, two nodes" in text
    assert "| text is right | 30 |" in text
    assert "| writes are kept | never |" in text
    assert "clock jumps (no libfaketime)" in text
    assert "4 characters come twice" in text
    assert "(30 times)" in text


def test_evidence_of_many_sorts_is_cut_short_and_says_so() -> None:
    words = [chr(ord("a") + number) for number in range(25)]
    shown = report.evidence([Violation("text is right", 1.0, "node-1", word) for word in words])
    assert len(shown) == 21
    assert shown[-1] == "- and 5 other sorts"
