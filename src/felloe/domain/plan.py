"""What is wanted of the network, and the plan that answers it: which replicas run where, and why others do not."""

from typing import Literal

from msgspec import Struct

from felloe.domain.ids import ContentId, ModelName, NodeId

KvType = Literal["f16", "q8_0", "q4_0"]


class DesiredModel(Struct, frozen=True, kw_only=True):
    """What an owner wants served.

    `model` is the name that requests use. `variants` are the models that may stand for it, best first (quantisations of
    one model); empty: only `model` itself. `replicas_min` of 0: loaded when somebody asks. `priority`: a higher one is
    served before all lower ones. `demand` weighs models of one priority against each other. `context` in tokens for one
    slot is what is wanted, 0 for the model's own up to 8,192; `context_least` is what it may shrink to where memory is
    short, 0: not at all. `pins` name machines (`spoke-a`) or devices (`hub/gpu0`) of which each replica uses no other.
    `offload` allows layers of a model in `ram` although the machine has GPUs. `idle_seconds` without a request unload
    replicas above `replicas_min`; 0: never.
    """

    model: ModelName
    variants: tuple[ModelName, ...] = ()
    replicas_min: int = 1
    replicas_max: int = 1
    priority: int = 0
    demand: float = 1.0
    context: int = 0
    context_least: int = 0
    slots: int = 4
    kv_type: KvType = "f16"
    pins: tuple[str, ...] = ()
    offload: bool = False
    idle_seconds: float = 0.0


class Need(Struct, frozen=True, kw_only=True):
    """Bytes on one device, by what they are for."""

    weights: int = 0
    kv: int = 0
    compute: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.kv + self.compute + self.overhead


class Part(Struct, frozen=True, kw_only=True):
    """What of a replica lies on one device; `layers` counts its repeating layers, and one more for the output."""

    device: str
    layers: int
    need: Need


class Placement(Struct, frozen=True, kw_only=True):
    """One replica: `variant` loaded as `model` on `node`, over `parts`. `context` is one slot's, in tokens.

    `content` names the approved files, empty on paper.
    """

    model: ModelName
    variant: ModelName
    node: NodeId
    parts: tuple[Part, ...]
    context: int
    slots: int
    kv_type: KvType = "f16"
    content: ContentId | Literal[""] = ""


class Refusal(Struct, frozen=True, kw_only=True):
    """Why something wanted is not in the plan: `missing` replicas, what is short and what would fit, in words.

    `short_bytes` is how much more memory at `where` (a machine or device) would have been enough; 0 when no amount
    would, or memory is not the reason.
    """

    model: ModelName
    missing: int
    reason: str
    where: str = ""
    short_bytes: int = 0
    nearest: str = ""


class Plan(Struct, frozen=True, kw_only=True):
    """What is to run. `number` grows with each plan that the leader writes; 0 on paper.

    `value` is the demand-weighted quality served, `bound` the most that any plan could have: their distance is the
    optimality gap. `seconds` is what the search took.
    """

    placements: tuple[Placement, ...]
    refusals: tuple[Refusal, ...] = ()
    value: float = 0.0
    bound: float = 0.0
    seconds: float = 0.0
    number: int = 0

    @property
    def gap(self) -> float:
        """How far from the best the plan may be, as a share of the bound; 0: it is the best."""
        return 0.0 if self.bound <= 0 else max(0.0, 1 - self.value / self.bound)
