"""The shape of a model that exists on paper only: a known kind of transformer, its lengths, and a quantisation's name.

Which tensors a quantisation keeps better than its name says: `llama-quant.cpp` of github.com/ggml-org/llama.cpp.
"""

from typing import NamedTuple

from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.domain.ggml_types import TENSOR_TYPES
from felloe.placement.shape import LayerShape, Shape


class _Mix(NamedTuple):
    """Tensor types by name: most, the better half of values and down projections, the output."""

    base: str
    better: str
    output: str


_MIXES = {
    "F32": _Mix("F32", "F32", "F32"),
    "F16": _Mix("F16", "F16", "F16"),
    "BF16": _Mix("BF16", "BF16", "BF16"),
    "Q8_0": _Mix("Q8_0", "Q8_0", "Q8_0"),
    "Q6_K": _Mix("Q6_K", "Q6_K", "Q6_K"),
    "Q5_K_M": _Mix("Q5_K", "Q6_K", "Q6_K"),
    "Q5_K_S": _Mix("Q5_K", "Q5_K", "Q6_K"),
    "Q4_K_M": _Mix("Q4_K", "Q6_K", "Q6_K"),
    "Q4_K_S": _Mix("Q4_K", "Q4_K", "Q6_K"),
    "Q4_0": _Mix("Q4_0", "Q4_0", "Q6_K"),
    "IQ4_XS": _Mix("IQ4_XS", "IQ4_XS", "Q6_K"),
    "MXFP4_MOE": _Mix("MXFP4", "MXFP4", "Q8_0"),
}
_BITS = {kind.name: 8 * kind.block_bytes / kind.block_elements for kind in TENSOR_TYPES.values()}


class Lengths(Struct, frozen=True):
    """A transformer's lengths, in numbers of elements; 0 for what it has not.

    `window_every`: the last of so many layers sees everything, the others `window` tokens. A mixture has `experts`
    experts of `expert_length`, of which a token passes `experts_used`. `tied`: the embeddings are the output too.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    head_length: int = 0
    window: int = 0
    window_every: int = 0
    experts: int = 0
    experts_used: int = 0
    expert_length: int = 0
    tied: bool = False


def shape_from_parameters(
    lengths: Lengths, *, quantisation: str = "Q4_K_M", context: int = 8192, architecture: str = "llama"
) -> Shape:
    """The shape of a model with these lengths, quantised as llama.cpp would; `context` is what it is made for.

    Raises `bad_config` for a quantisation that is not known here or lengths that no model has.
    """
    mix = _MIXES.get(quantisation.upper())
    if mix is None:
        known = ", ".join(_MIXES)
        raise FelloeError("bad_config", f"quantisation {quantisation!r} is not known on paper; known are {known}")
    _check(lengths)
    head = lengths.head_length or lengths.width // lengths.heads
    layers = tuple(_layer(lengths, mix, at, head) for at in range(lengths.layers))
    words = lengths.vocabulary * lengths.width
    return Shape(
        architecture=architecture,
        quantisation=quantisation.upper(),
        parameters=_parameters(lengths, head),
        context=context,
        width=lengths.width,
        heads=lengths.heads,
        key_length=head,
        value_length=head,
        feed_forward=lengths.feed_forward,
        vocabulary=lengths.vocabulary,
        layers=layers,
        input_bytes=_bytes(words, mix.output if lengths.tied else mix.base),
        output_bytes=_bytes(words, mix.output) + _bytes(lengths.width, "F32"),
        window=lengths.window,
        experts=lengths.experts,
        experts_used=lengths.experts_used,
        expert_length=lengths.expert_length,
        tied_bytes=_bytes(words, mix.output) if lengths.tied else 0,
    )


def _check(lengths: Lengths) -> None:
    needed = ("layers", "width", "heads", "kv_heads", "vocabulary")
    missing = [name for name in needed if getattr(lengths, name) < 1]
    told = [getattr(lengths, name) for name in Lengths.__struct_fields__]
    if missing or min(told) < 0:
        raise FelloeError("bad_config", f"the model's {missing[0] if missing else 'lengths'} must be 1 or more")
    if max(told) > 2**24 or lengths.layers > 4096 or lengths.experts > 4096:
        raise FelloeError("bad_config", "no model has lengths this large; give numbers of elements, layers and heads")
    if lengths.feed_forward < 1 and lengths.experts < 1:
        raise FelloeError("bad_config", "the model's feed_forward must be 1 or more unless it has experts")


def _layer(lengths: Lengths, mix: _Mix, at: int, head: int) -> LayerShape:
    width = lengths.width
    kept = lengths.kv_heads * head
    every = lengths.window_every
    better = mix.better if _is_better(at, lengths.layers) else mix.base
    attention = _bytes(2 * width * lengths.heads * head + width * kept, mix.base) + _bytes(width * kept, better)
    dense = lengths.feed_forward * width
    feed_forward = _bytes(2 * dense, mix.base) + _bytes(dense, better)
    mixed = lengths.experts * lengths.expert_length * width
    experts = _bytes(2 * mixed, mix.base) + _bytes(mixed, better)
    return LayerShape(
        weights=attention + feed_forward + experts + _bytes(2 * width + lengths.experts * width, "F32"),
        experts=experts,
        key=kept,
        value=kept,
        windowed=bool(lengths.window) and (every == 0 or at % every < every - 1),
    )


def _is_better(at: int, layers: int) -> bool:
    """Which layers llama.cpp quantises with more bits in its `_M` mixes."""
    return at < layers // 8 or at >= 7 * layers // 8 or (at - layers // 8) % 3 == 2


def _parameters(lengths: Lengths, head: int) -> int:
    width = lengths.width
    attention = 2 * width * head * (lengths.heads + lengths.kv_heads)
    wide = 3 * width * (lengths.feed_forward + lengths.experts * lengths.expert_length) + lengths.experts * width
    words = lengths.vocabulary * width * (1 if lengths.tied else 2)
    return lengths.layers * (attention + wide + 2 * width) + words + width


def _bytes(elements: int, kind: str) -> int:
    return round(elements * _BITS[kind] / 8)
