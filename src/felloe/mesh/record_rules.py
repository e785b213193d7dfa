"""What a node may say of its machine, its replicas and its plan: bounds that honest nodes never reach."""

import math

from felloe.domain.fleet_rules import MOST_DEVICES, check_machine
from felloe.domain.ids import is_content_id, is_model_name
from felloe.domain.plan import Part
from felloe.domain.roster import LoadFailure, LoadingReplica, NodeRecord, Replica
from felloe.domain.sizes import MOST_BYTES

MOST_LOADING = 32
MOST_FAILURES = 16

_MOST_COUNT = 1_000_000
_MOST_LAYERS = 100_000
_MOST_SPEED = 1e6
_MOST_SECONDS = 1e9
_MOST_TIME = 1e11
_MOST_NUMBER = 1 << 53


def impossible(record: NodeRecord) -> str:
    """What in a record no honest node says, in a few words; empty when there is nothing of it."""
    if record.machine is not None and (record.machine.id != record.id or check_machine(record.machine)):
        return "bad machine"
    if not all(map(_is_replica, record.replicas)):
        return "bad replica"
    if len(record.loading) > MOST_LOADING or not all(map(_is_loading, record.loading)):
        return "bad progress"
    if len(record.failures) > MOST_FAILURES or not all(map(_is_failure, record.failures)):
        return "bad failure"
    return "" if 0 <= record.plan < _MOST_NUMBER else "bad plan"


def _is_replica(replica: Replica) -> bool:
    return (
        is_model_name(replica.model.name)
        and 0 <= replica.slots <= _MOST_COUNT
        and replica.context >= 0
        and len(replica.parts) <= MOST_DEVICES
        and all(map(_is_part, replica.parts))
        and (not replica.variant or is_model_name(replica.variant))
        and (not replica.content or is_content_id(replica.content))
        and _is_number(replica.speed, _MOST_SPEED)
    )


def _is_part(part: Part) -> bool:
    need = part.need
    sizes = (need.weights, need.kv, need.compute, need.overhead)
    return 0 <= part.layers <= _MOST_LAYERS and all(0 <= size <= MOST_BYTES for size in sizes)


def _is_loading(loading: LoadingReplica) -> bool:
    sizes = (loading.done, loading.total)
    return (
        is_model_name(loading.model)
        and is_model_name(loading.variant)
        and all(0 <= size <= MOST_BYTES for size in sizes)
        and _is_number(loading.ready_in, _MOST_SECONDS)
    )


def _is_failure(failure: LoadFailure) -> bool:
    return (
        is_model_name(failure.model)
        and is_model_name(failure.variant)
        and (not failure.content or is_content_id(failure.content))
        and max(len(failure.devices), len(failure.short)) <= MOST_DEVICES
        and all(0 <= size <= MOST_BYTES for size in failure.short.values())
        and 0 < failure.times <= _MOST_COUNT
        and _is_number(failure.at, _MOST_TIME)
        and _is_number(failure.retry_in, _MOST_SECONDS)
    )


def _is_number(value: float, most: float) -> bool:
    return math.isfinite(value) and 0 <= value <= most
