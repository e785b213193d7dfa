"""`felloe doctor`"""

import sys
import time

from felloe.cli.client import OperatorClient
from felloe.cli.output import EXIT_FAILED, JsonOption, moment, print_json, print_table
from felloe.console.catalog_messages import CatalogView
from felloe.console.hub_messages import HubsView
from felloe.console.messages import Status
from felloe.domain.errors import FelloeError
from felloe.node.config import home_folder
from felloe.node.findings import Finding
from felloe.node.home import Home


def doctor(json: JsonOption = False) -> None:
    """Check ports, clock, disk, keys, engine, hubs and catalogue, and say what to do."""
    # Imported here, as they know the whole node: other commands should not wait for that.
    from felloe.node.checks import run_checks

    findings: list[Finding] = []
    client = OperatorClient()
    try:
        status = client.ask("/status", Status)
    except FelloeError:
        status = None
    findings += run_checks(Home(home_folder()), running=status is not None)
    findings.append(_node_finding(status))
    if status is not None:
        findings += [_hubs_finding(client), _catalog_finding(client)]
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
        detail = f"the node reaches no hub: it serves this machine only since {moment(status.alone_since)}"
        return Finding("node", "failed", detail, "Check the hubs and the network between.")
    return Finding("node", "ok", f"{status.name} ({', '.join(status.roles)}) at {status.base_url}")


def _hubs_finding(client: OperatorClient) -> Finding:
    from felloe.node.hub_checks import hubs_finding

    try:
        return hubs_finding(client.ask("/hubs", HubsView))
    except FelloeError as error:
        return Finding("hubs", "warning", error.detail, error.spec.next_step)


def _catalog_finding(client: OperatorClient) -> Finding:
    from felloe.node.hub_checks import catalog_finding

    try:
        return catalog_finding(client.ask("/catalog", CatalogView), time.time())
    except FelloeError as error:
        return Finding("catalogue", "warning", error.detail, error.spec.next_step)
