"""`felloe doctor`"""

import sys

from felloe.cli.client import OperatorClient
from felloe.cli.output import EXIT_FAILED, JsonOption, print_json, print_table
from felloe.console.messages import Status
from felloe.domain.errors import FelloeError
from felloe.node.checks import Finding, run_checks
from felloe.node.config import home_folder
from felloe.node.home import Home


def doctor(json: JsonOption = False) -> None:
    """Check ports, clock, disk, keys and engine, and say what to do."""
    findings: list[Finding] = []
    try:
        status = OperatorClient().ask("/status", Status)
    except FelloeError:
        status = None
    findings += run_checks(Home(home_folder()), running=status is not None)
    findings.append(_node_finding(status))
    if json:
        print_json(findings)
    else:
        rows = [[one.verdict, one.check, one.detail, one.next_step] for one in findings]
        print_table(["", "CHECK", "FOUND", "DO"], rows)
    if any(one.verdict == "failed" for one in findings):
        sys.exit(EXIT_FAILED)


def _node_finding(status: Status | None) -> Finding:
    if status is None:
        return Finding("node", "warning", "no node is running here", "Start it with `felloe up`.")
    if not status.connected:
        return Finding("node", "failed", "the node reaches no hub", "Check the hub and the network between.")
    return Finding("node", "ok", f"{status.name} ({', '.join(status.roles)}) at {status.base_url}")
