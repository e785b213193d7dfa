"""The recipe: everything that decides what a trained model is, in one validated TOML file."""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

QUANTIZATIONS = ("f16", "q8_0")
_Q8_BLOCK = 32

_Section = TypeVar("_Section")


class RecipeError(ValueError):
    """The recipe's author made a mistake; the message names the key and what it should be."""


@dataclass(frozen=True)
class ModelCard:
    """What the model calls itself in its GGUF header."""

    name: str
    description: str
    license: str


@dataclass(frozen=True)
class CorpusChoice:
    """Which files of the Python standard library are read, and how they are split."""

    exclude: tuple[str, ...]
    """Folder names, or paths relative to the library ending in `/`, that are left out."""
    minimum_characters: int
    held_out_one_in: int
    """One file of this many is kept for evaluation, chosen by the hash of its path."""


@dataclass(frozen=True)
class NetworkShape:
    """The size of a Llama network; `context` is what the exported model admits, in tokens."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    feed_forward: int
    context: int
    rope_base: float
    norm_epsilon: float

    @property
    def head_width(self) -> int:
        """Elements of one attention head."""
        return self.width // self.heads


@dataclass(frozen=True)
class TrainingPlan:
    """The schedule, counted in steps so that a slow machine trains the same model as a fast one."""

    seed: int
    threads: int
    """Part of the recipe because the order of additions, and so the result, depends on it."""
    steps: int
    batch: int
    window: int
    """Tokens that one example holds."""
    peak_rate: float
    warmup_steps: int
    decay_fraction: float
    """The last part of the steps, in which the learning rate falls to zero."""
    weight_decay: float
    gradient_clip: float


@dataclass(frozen=True)
class Recipe:
    """A whole recipe; `quantization` is the type of the exported matrices."""

    model: ModelCard
    corpus: CorpusChoice
    network: NetworkShape
    training: TrainingPlan
    quantization: str


def load_recipe(path: Path) -> Recipe:
    """Read and validate the TOML file at `path`; raises RecipeError."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    return parse_recipe(tables)


def parse_recipe(tables: dict[str, Any]) -> Recipe:
    """Turn parsed TOML into a Recipe; raises RecipeError that names every unknown or missing key."""
    _refuse_wrong_keys("the recipe", set(tables), {"model", "corpus", "network", "training", "export"})
    export = _table(tables, "export")
    _refuse_wrong_keys("[export]", set(export), {"quantization"})
    recipe = Recipe(
        model=_section(ModelCard, tables, "model"),
        corpus=_section(CorpusChoice, tables, "corpus"),
        network=_section(NetworkShape, tables, "network"),
        training=_section(TrainingPlan, tables, "training"),
        quantization=_text("[export] quantization", export["quantization"]),
    )
    _check_network(recipe.network, recipe.quantization)
    _check_training(recipe.training, recipe.network)
    if recipe.corpus.held_out_one_in < 2:
        raise RecipeError("[corpus] held_out_one_in must be 2 or more, or nothing is left to train on")
    return recipe


def _table(tables: dict[str, Any], name: str) -> dict[str, Any]:
    table = tables[name]
    if not isinstance(table, dict):
        raise RecipeError(f"{name} must be a table: write [{name}]")
    return cast("dict[str, Any]", table)


def _section(kind: type[_Section], tables: dict[str, Any], name: str) -> _Section:
    table = _table(tables, name)
    declared = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    _refuse_wrong_keys(f"[{name}]", set(table), set(declared))
    return kind(**{key: _READERS[declared[key]](f"[{name}] {key}", value) for key, value in table.items()})


def _refuse_wrong_keys(place: str, given: set[str], expected: set[str]) -> None:
    unknown, missing = sorted(given - expected), sorted(expected - given)
    complaints = [f"unknown key {', '.join(unknown)}"] if unknown else []
    complaints += [f"missing key {', '.join(missing)}"] if missing else []
    if complaints:
        raise RecipeError(f"{place}: {'; '.join(complaints)}")


def _text(place: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RecipeError(f"{place} must be a text that is not empty, not {value!r}")
    return value


def _count(place: str, value: object) -> int:
    # `True` is an int in Python and would pass for 1.
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RecipeError(f"{place} must be a whole number of 0 or more, not {value!r}")
    return value


def _number(place: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise RecipeError(f"{place} must be a number of 0 or more, not {value!r}")
    return float(value)


def _texts(place: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise RecipeError(f"{place} must be a list of texts, not {value!r}")
    return tuple(_text(place, item) for item in cast("list[object]", value))


_READERS: dict[Any, Any] = {str: _text, int: _count, float: _number, tuple[str, ...]: _texts}


def _check_network(shape: NetworkShape, quantization: str) -> None:
    if quantization not in QUANTIZATIONS:
        raise RecipeError(f"[export] quantization must be one of {', '.join(QUANTIZATIONS)}")
    sizes = ("vocabulary", "width", "layers", "heads", "key_value_heads", "feed_forward", "context")
    for key in sizes:
        if getattr(shape, key) < 1:
            raise RecipeError(f"[network] {key} must be 1 or more")
    if shape.width % shape.heads or shape.head_width % 2:
        raise RecipeError("[network] width must be a multiple of twice the heads: rotation works on pairs")
    if shape.heads % shape.key_value_heads:
        raise RecipeError("[network] heads must be a multiple of key_value_heads")
    # 256 single bytes come before any merge, and the special tokens before those.
    if shape.vocabulary < 300:
        raise RecipeError("[network] vocabulary must be 300 or more")
    if quantization == "q8_0" and (shape.width % _Q8_BLOCK or shape.feed_forward % _Q8_BLOCK):
        raise RecipeError(f"[network] width and feed_forward must be multiples of {_Q8_BLOCK} for q8_0")


def _check_training(plan: TrainingPlan, shape: NetworkShape) -> None:
    for key in ("threads", "steps", "batch", "window"):
        if getattr(plan, key) < 1:
            raise RecipeError(f"[training] {key} must be 1 or more")
    if not 0 <= plan.decay_fraction <= 1:
        raise RecipeError("[training] decay_fraction must lie between 0 and 1")
    if plan.window > shape.context:
        raise RecipeError("[training] window must not exceed [network] context")
