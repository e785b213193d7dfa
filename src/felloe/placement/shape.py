"""A model as a plan sees it: what each layer weighs, and what it keeps for each token. Small enough to send."""

from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.domain.gguf_layout import GgufLayout, LayerTensors

_WINDOW_EVERY = {
    "afmoe": 4,
    "cohere2": 4,
    "exaone4": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "llama4": 4,
    "olmo2": 4,
    "plamo3": 8,
    "smallthinker": 4,
}
"""Of how many layers the last one sees everything, where the file does not say it; by llama.cpp's loaders."""

_WINDOW_DENSE_FIRST = ("smallthinker",)
_CHUNK_TOKENS = 8192
_SHARED_LAYERS_FROM = {"gemma3n": 20}
_WITHOUT_CACHE = (
    "bert",
    "gemma-embedding",
    "jina-bert-v2",
    "jina-bert-v3",
    "modern-bert",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
)
_PARALLEL = ("cohere2", "command-r", "gptneox", "phi2", "falcon", "stablelm")
_STATE_BYTES = 4
_MOST_LENGTH = 2**24
_MOST_CACHE = 2**20
_MOST_STATE_BYTES = 2**34
_MOST_WEIGHTS = 2**50


class LayerShape(Struct, frozen=True, array_like=True, kw_only=True):
    """One repeating layer: its `weights` in bytes, of which `experts` are experts.

    `key` and `value` count the numbers kept for each token, 0 without such a cache; `windowed`: of the last tokens
    only. `state` is the bytes kept for each request however long it is.
    """

    weights: int
    experts: int = 0
    key: int = 0
    value: int = 0
    windowed: bool = False
    state: int = 0


class Shape(Struct, frozen=True, kw_only=True):
    """A model's bytes by layer and the lengths that decide what computing with it takes.

    `input_bytes` (embeddings) lie in the machine's memory, wherever the layers are; `output_bytes` lie with the last
    layer: `tied_bytes` of them are the embeddings once more, which need no second place where both lie in one memory.
    `context` is what the model was made for, in tokens, 0: unknown. `window` is what windowed layers see.
    `feed_forward` is the widest layer's, `expert_length` and `experts_used` what one token passes of a mixture.
    `gated`: the feed-forward step has a gate beside it; `parallel`: it runs beside attention, not after it. `latent` is
    the rank of latent attention, `rope_length` what it keeps beside that; `inner` is the width of recurrent layers.
    """

    architecture: str
    quantisation: str
    parameters: int
    context: int
    width: int
    heads: int
    key_length: int
    value_length: int
    feed_forward: int
    vocabulary: int
    layers: tuple[LayerShape, ...]
    input_bytes: int
    output_bytes: int
    window: int = 0
    experts: int = 0
    experts_used: int = 0
    expert_length: int = 0
    gated: bool = True
    parallel: bool = False
    latent: int = 0
    rope_length: int = 0
    inner: int = 0
    tied_bytes: int = 0
    projector_bytes: int = 0

    @property
    def units(self) -> int:
        """What can be put on devices: the repeating layers, and the output."""
        return len(self.layers) + 1

    @property
    def weights(self) -> int:
        """Bytes of all tensors of the file, each counted once."""
        ends = self.input_bytes + self.output_bytes - self.tied_bytes
        return ends + sum(layer.weights for layer in self.layers) + self.projector_bytes


def shape_of(layout: GgufLayout, *, projector_bytes: int = 0) -> Shape:
    """The shape of a model file; `projector_bytes` are the tensors of a vision projector beside it.

    Raises `bad_model_file` when the header's lengths are those of no model.
    """
    header = layout.header
    windowed = _windowed(layout)
    cached = _cached(layout)
    layers = tuple(
        _layer(layout, at, tensors, windowed=windowed[at], cached=cached[at])
        for at, tensors in enumerate(layout.layers)
    )
    shape = Shape(
        architecture=header.architecture,
        quantisation=header.quantisation,
        parameters=header.parameters,
        context=header.context,
        width=header.embedding_length,
        heads=header.heads,
        key_length=header.key_length,
        value_length=header.value_length,
        feed_forward=max(header.feed_forward, default=0),
        vocabulary=header.vocabulary,
        layers=layers,
        input_bytes=layout.input_bytes,
        output_bytes=layout.output_bytes + (layout.embedding_bytes if layout.tied else 0),
        window=_window(layout) if any(windowed) else 0,
        experts=layout.experts,
        experts_used=layout.experts_used,
        expert_length=layout.expert_length,
        gated=layout.gated,
        parallel=header.architecture in _PARALLEL,
        latent=layout.latent_rank if layout.latent_key_length else 0,
        rope_length=layout.rope_length,
        inner=layout.inner or (header.embedding_length if layout.wkv_head else 0),
        tied_bytes=layout.embedding_bytes if layout.tied else 0,
        projector_bytes=layout.vision_bytes + projector_bytes,
    )
    _check(shape)
    return shape


def _check(shape: Shape) -> None:
    """Sums of what is let through stay far below what a message can hold."""
    lengths = {
        "width": shape.width,
        "heads": shape.heads,
        "key length": shape.key_length,
        "feed-forward length": shape.feed_forward,
        "vocabulary": shape.vocabulary,
        "experts": max(shape.experts, shape.experts_used),
        "expert length": shape.expert_length,
        "latent length": shape.latent + shape.rope_length,
        "inner length": shape.inner,
        "window": shape.window,
    }
    for name, length in lengths.items():
        if length > _MOST_LENGTH:
            raise FelloeError("bad_model_file", f"the header's {name} of {length} is that of no model")
    for layer in shape.layers:
        if layer.key + layer.value > _MOST_CACHE or layer.state > _MOST_STATE_BYTES:
            raise FelloeError("bad_model_file", "by its header a layer keeps more for a token than that of any model")
    if shape.weights > _MOST_WEIGHTS:
        raise FelloeError("bad_model_file", f"by its header the model has {shape.weights} bytes, more than any has")


def _layer(layout: GgufLayout, at: int, tensors: LayerTensors, *, windowed: bool, cached: bool) -> LayerShape:
    key, value = _kept(layout, at, windowed=windowed) if cached else (0, 0)
    return LayerShape(
        weights=tensors.total,
        experts=tensors.experts,
        key=key,
        value=value,
        windowed=windowed and cached,
        state=_state(layout) if tensors.recurrent else 0,
    )


def _kept(layout: GgufLayout, at: int, *, windowed: bool) -> tuple[int, int]:
    """How many numbers of keys and of values the cache keeps for a token in this layer."""
    header = layout.header
    if layout.latent_rank and layout.latent_key_length:
        # Multi-head latent attention: one compressed row serves all heads, and the values are part of it.
        return layout.latent_rank + layout.rope_length, 0
    key = (layout.window_key_length if windowed else 0) or header.key_length
    value = (layout.window_value_length if windowed else 0) or header.value_length
    return header.kv_heads[at] * key, header.kv_heads[at] * value


def _state(layout: GgufLayout) -> int:
    """Bytes that a recurrent layer keeps for each request (`n_embd_r` and `n_embd_s` of llama-hparams.cpp)."""
    width = layout.header.embedding_length
    if layout.wkv_head:
        return _STATE_BYTES * width * (layout.token_shifts + layout.wkv_head)
    if layout.short_convolution:
        return _STATE_BYTES * width * (layout.short_convolution - 1)
    shifted = max(0, layout.convolution - 1) * (layout.inner + 2 * layout.groups * layout.state)
    return _STATE_BYTES * (shifted + layout.state * layout.inner)


def _cached(layout: GgufLayout) -> list[bool]:
    """Which layers keep keys and values."""
    if layout.header.architecture in _WITHOUT_CACHE:
        return [False] * len(layout.layers)
    own = len(layout.layers) - layout.predicting_layers
    if layout.shared_layers:
        own -= layout.shared_layers
    own = min(own, _SHARED_LAYERS_FROM.get(layout.header.architecture, own))
    return [tensors.keys and at < own for at, tensors in enumerate(layout.layers)]


def _window(layout: GgufLayout) -> int:
    if layout.header.architecture == "llama4":
        return layout.attention_chunk or _CHUNK_TOKENS
    return layout.window


def _windowed(layout: GgufLayout) -> list[bool]:
    """Which layers see only the last tokens."""
    depth = len(layout.layers)
    architecture = layout.header.architecture
    if not _window(layout):
        return [False] * depth
    if layout.window_pattern:
        return [bool(each) for each in layout.window_pattern]
    every = layout.window_every or _WINDOW_EVERY.get(architecture, 1)
    if architecture in _WINDOW_DENSE_FIRST:
        return [at % every != 0 for at in range(depth)]
    return [at % every < every - 1 for at in range(depth)]
