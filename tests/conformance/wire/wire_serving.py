"""What the network is to serve: the wish, the plan that nodes follow, the call for a model that is not loaded."""

import msgspec
from wire_case import Case, longer, more_json

from felloe.domain.ids import ContentId, ModelName, NodeId
from felloe.domain.plan import DesiredModel, Need, Part, Placement, Plan, Refusal
from felloe.domain.serving import DemandAnswer, DemandQuestion, NetworkPlan, Serving, decode_plan, decode_serving

_MODEL = ModelName("tiny-python")
_DESIRED = DesiredModel(
    model=_MODEL,
    variants=(_MODEL, ModelName("tiny-python-q4")),
    replicas_min=0,
    replicas_max=2,
    priority=1,
    demand=2.0,
    context=4096,
    context_least=1024,
    slots=2,
    kv_type="q8_0",
    pins=("hub-a/gpu0",),
    offload=True,
    idle_seconds=600.0,
)
_PLACEMENT = Placement(
    model=_MODEL,
    variant=_MODEL,
    node=NodeId("a" * 26),
    parts=(
        Part(device="ram", layers=0, need=Need(weights=1, compute=2, overhead=3)),
        Part(device="gpu0", layers=5, need=Need(weights=4_000_000, kv=2_097_152, compute=1_000_000, overhead=500_000)),
    ),
    context=4096,
    slots=2,
    kv_type="q8_0",
    content=ContentId("0" * 64),
)
_PLAN = Plan(
    placements=(_PLACEMENT,),
    refusals=(Refusal(model=_MODEL, missing=1, reason="no room", where="hub-a", short_bytes=7, nearest="less"),),
    value=1.0,
    bound=1.5,
    seconds=0.25,
    number=7,
)


def _array(name: str, message: msgspec.Struct) -> Case:
    kind = type(message)
    return Case(
        name,
        lambda: msgspec.msgpack.encode(message),
        lambda data: msgspec.msgpack.decode(data, type=kind),
        grow=longer,
    )


CASES = [
    Case("serving.json", lambda: msgspec.json.encode(Serving(models=(_DESIRED,))), decode_serving, grow=more_json),
    Case(
        "plan.json",
        lambda: msgspec.json.encode(NetworkPlan(plan=_PLAN, term=3, made_at=1_790_000_000.5)),
        decode_plan,
        grow=more_json,
    ),
    _array("demand-question", DemandQuestion(_MODEL)),
    _array("demand-answer", DemandAnswer("loading", 12.5, "")),
]
