"""What a hub tells a single node to do, and what the node answers."""

from collections.abc import Callable
from typing import Any

import msgspec
from wire_case import Case, longer, more_named

from felloe.domain.ids import ModelName
from felloe.hubs.probe import TrialAnswer, TrialRequest
from felloe.node.commands import DrainOrder, DrainState


def _message(name: str, message: Any, grow: Callable[[bytes], bytes]) -> Case:
    kind = type(message)
    return Case(
        f"command-{name}",
        lambda: msgspec.msgpack.encode(message),
        lambda data: msgspec.msgpack.decode(data, type=kind),
        grow=grow,
    )


CASES = [
    _message("trial", TrialRequest(secret=bytes(range(32))), more_named),
    _message("trial-over", TrialRequest(secret=bytes(range(32)), over=True), more_named),
    _message("trial-answer", TrialAnswer(failures={8473: "Address already in use"}), more_named),
    _message("drain", DrainOrder(300.0), longer),
    _message("drain-look", DrainOrder(), longer),
    _message("drain-state", DrainState(3, (ModelName("tiny-python"),)), longer),
]
