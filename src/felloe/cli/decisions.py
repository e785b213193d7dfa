"""How a curator's decision is sent and shown, whatever it is about."""

from felloe.cli.client import OperatorClient
from felloe.cli.output import print_json, say
from felloe.console.catalog_messages import CuratorRequest, Decided, DecideRequest


def decide(request: DecideRequest | CuratorRequest, *, json: bool) -> None:
    """Have the node decide with its curator key, and say what came of it."""
    path = "/catalog/decide" if isinstance(request, DecideRequest) else "/curators/change"
    decided = OperatorClient().tell(path, request, Decided)
    print_json(decided) if json else say(decided.sentence)
