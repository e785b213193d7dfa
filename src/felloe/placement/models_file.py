"""Models on paper: what is wanted of the fleet, written in a TOML file.

[[shape]]
name = "8b"
layers = 32
width = 4096
...

[[model]]
name = "chat-8b"
shape = "8b"                          # or gguf = ["best.gguf", "smaller.gguf"], beside this file
quantisations = ["Q8_0", "Q4_K_M"]    # best first
context = 8192
"""

from collections.abc import Callable
from pathlib import Path

from msgspec import Struct, field

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName, is_model_name
from felloe.domain.plan import DesiredModel, KvType
from felloe.domain.serving import check_numbers
from felloe.placement.facts import ModelFacts
from felloe.placement.paper import Lengths, shape_from_parameters
from felloe.placement.shape import Shape
from felloe.placement.toml_file import bad, read_toml

_MOST_MODELS = 1000
_MOST_VARIANTS = 16

Wanted = tuple[tuple[DesiredModel, ...], dict[ModelName, ModelFacts]]


class _NamedLengths(Lengths, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model's lengths under a name. `context` is what it was made for, in tokens."""

    name: str
    feed_forward: int = 0
    context: int = 8192
    architecture: str = "llama"


class _Model(Struct, forbid_unknown_fields=True):
    """What is wanted; fields as in `DesiredModel`. `replicas` stands for both its least and its most."""

    name: str
    shape: str = ""
    gguf: list[str] = field(default_factory=list[str])
    quantisations: list[str] = field(default_factory=lambda: ["Q4_K_M"])
    replicas: int = 1
    replicas_min: int | None = None
    replicas_max: int | None = None
    priority: int = 0
    demand: float = 1.0
    context: int = 0
    context_least: int = 0
    slots: int = 4
    kv_type: KvType = "f16"
    pins: list[str] = field(default_factory=list[str])
    offload: bool = False


class _File(Struct, forbid_unknown_fields=True):
    model: list[_Model]
    shape: list[_NamedLengths] = field(default_factory=list[_NamedLengths])


def read_models(path: Path, shape_of_file: Callable[[Path], Shape]) -> Wanted:
    """What the file wants, and the facts of its variants by their names; `shape_of_file` reads a GGUF file's header.

    Raises `bad_plan_file`, which names the model and what is wrong with it, and what `shape_of_file` raises.
    """
    content = read_toml(path, _File)
    if not 0 < len(content.model) <= _MOST_MODELS:
        raise bad(path, f"must hold from 1 to {_MOST_MODELS} models")
    lengths = {entry.name: entry for entry in content.shape}
    if len(lengths) < len(content.shape):
        raise bad(path, "two [[shape]]s have the same name; each needs one of its own")
    desired: list[DesiredModel] = []
    facts: dict[ModelName, ModelFacts] = {}
    for entry in content.model:
        if not is_model_name(entry.name):
            raise bad(path, f"{entry.name[:128]!r} cannot be a model's name")
        if any(entry.name == other.model for other in desired):
            raise bad(path, f"the model {entry.name} is there twice; say all that is wanted of it once")
        variants = _variants(path, entry, lengths, shape_of_file)
        facts.update({name: ModelFacts(shape=shape) for name, shape in variants.items()})
        desired.append(_desired(path, entry, tuple(variants)))
    return tuple(desired), facts


def _variants(
    path: Path, entry: _Model, lengths: dict[str, _NamedLengths], shape_of_file: Callable[[Path], Shape]
) -> dict[ModelName, Shape]:
    """The shapes of the model's variants, best first."""
    count = len(entry.gguf) if entry.gguf else len(entry.quantisations)
    if bool(entry.shape) == bool(entry.gguf) or not 0 < count <= _MOST_VARIANTS:
        raise bad(path, f"model {entry.name}: give it either `shape` or `gguf`, in at most {_MOST_VARIANTS} variants")
    if entry.gguf:
        return {ModelName(f"{entry.name}:{Path(name).stem}"): shape_of_file(path.parent / name) for name in entry.gguf}
    if entry.shape not in lengths:
        raise bad(path, f"model {entry.name}: no [[shape]] of this file is called {entry.shape!r}")
    chosen = lengths[entry.shape]
    try:
        return {
            ModelName(f"{entry.name}:{quantisation}"): shape_from_parameters(
                chosen, quantisation=quantisation, context=chosen.context, architecture=chosen.architecture
            )
            for quantisation in entry.quantisations
        }
    except FelloeError as error:
        raise bad(path, f"model {entry.name}: {error.detail}") from error


def _desired(path: Path, entry: _Model, variants: tuple[ModelName, ...]) -> DesiredModel:
    least = entry.replicas if entry.replicas_min is None else entry.replicas_min
    desired = DesiredModel(
        model=ModelName(entry.name),
        variants=variants,
        replicas_min=least,
        replicas_max=max(least, entry.replicas) if entry.replicas_max is None else entry.replicas_max,
        priority=entry.priority,
        demand=entry.demand,
        context=entry.context,
        context_least=entry.context_least,
        slots=entry.slots,
        kv_type=entry.kv_type,
        pins=tuple(entry.pins),
        offload=entry.offload,
    )
    try:
        check_numbers(desired)
    except FelloeError as error:
        raise bad(path, f"model {entry.name}: {error.detail}") from error
    return desired
