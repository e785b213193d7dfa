"""What a model file holds by layer and by kind of tensor, and what its header tells of each layer's memory.

Read from the front of the file only, streamed and bounded as `read_header` reads it.
Source: the GGUF specification, and `llama-arch.cpp` of github.com/ggml-org/llama.cpp for the names of keys and tensors.
"""

import re
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from felloe.domain.gguf import GgufHeader, describe
from felloe.domain.gguf_fields import MAX_HEADER_BYTES, Fields, read_front
from felloe.domain.gguf_reader import Tensor, shown

_BLOCK = re.compile(r"(?:(?:enc|dec)\.)?blk\.(\d{1,4})\.(.+)")
_OUTPUT = ("output.", "output_norm", "cls.", "cls_", "dec.output_norm", "enc.output_norm")
_VISION = ("v.", "mm.", "a.", "resampler.", "model.image")
_KEYS = re.compile(r"attn_(k|kv|qkv|kv_a_mqa|k_b)\.weight")


class LayerTensors(Struct, frozen=True, array_like=True, kw_only=True):
    """Bytes of one repeating layer by kind; `keys` and `recurrent`: it keeps keys and values, or a state, or both."""

    attention: int = 0
    feed_forward: int = 0
    experts: int = 0
    recurrent: int = 0
    other: int = 0
    keys: bool = False

    @property
    def total(self) -> int:
        """All of them."""
        return self.attention + self.feed_forward + self.experts + self.recurrent + self.other


class GgufLayout(Struct, frozen=True, kw_only=True):
    """A model's header, its bytes, and the numbers that decide what a layer keeps for each token; 0: not said.

    `input_bytes` are the embeddings, which llama.cpp leaves in the machine's memory; `output_bytes` what comes after
    the last layer; `tied` says that the embeddings serve as the output too. `window_pattern` has one entry a layer
    where the file says which of them see only the last `window` tokens.
    """

    header: GgufHeader
    layers: tuple[LayerTensors, ...]
    input_bytes: int
    output_bytes: int
    embedding_bytes: int
    vision_bytes: int
    tied: bool
    gated: bool = True
    window: int = 0
    window_pattern: tuple[int, ...] = ()
    window_every: int = 0
    window_key_length: int = 0
    window_value_length: int = 0
    attention_chunk: int = 0
    attention_every: int = 0
    shared_layers: int = 0
    predicting_layers: int = 0
    latent_rank: int = 0
    latent_key_length: int = 0
    rope_length: int = 0
    experts: int = 0
    experts_used: int = 0
    expert_length: int = 0
    shared_expert_length: int = 0
    convolution: int = 0
    inner: int = 0
    state: int = 0
    groups: int = 0
    wkv_head: int = 0
    token_shifts: int = 0
    short_convolution: int = 0


def read_layout(
    read: Callable[[int], bytes],
    *,
    file: str,
    file_size: int | None = None,
    max_header_bytes: int = MAX_HEADER_BYTES,
) -> GgufLayout:
    """Parse what `read(n)` gives (at most n bytes, none at the end) up to the first tensor's data.

    `file` names the file in errors; with `file_size` in bytes, every tensor must lie inside the file.
    Raises `bad_model_file` as `<file>: <field>: <why>`; whatever `read` raises passes through.
    """
    front = read_front(read, file=file, file_size=file_size, max_header_bytes=max_header_bytes)
    header = describe(front)
    layers, rest = _by_layer(front.fields, front.tensors, header.block_count)
    embedding = sum(tensor.size for tensor in rest if tensor.name == "token_embd.weight")
    output = sum(tensor.size for tensor in rest if tensor.name.startswith(_OUTPUT))
    vision = sum(tensor.size for tensor in rest if tensor.name.startswith(_VISION))
    tied = bool(embedding) and not any(tensor.name in ("output.weight", "cls.weight") for tensor in rest)
    layout = GgufLayout(
        header=header,
        layers=layers,
        input_bytes=sum(tensor.size for tensor in rest) - output - vision,
        output_bytes=output,
        embedding_bytes=embedding,
        vision_bytes=vision,
        tied=tied,
        gated=any(_is_gate(tensor, header) for tensor in front.tensors),
    )
    return _with_facts(layout, front.fields)


def join_layouts(first: GgufLayout, rest: Sequence[GgufLayout]) -> GgufLayout:
    """A sharded model as one: the first part says what it is, the bytes of all add up."""
    parts = (first, *rest)
    depth = max(len(part.layers) for part in parts)
    layers = tuple(_joined([part.layers[at] for part in parts if at < len(part.layers)]) for at in range(depth))
    return replace(
        first,
        layers=layers,
        input_bytes=sum(part.input_bytes for part in parts),
        output_bytes=sum(part.output_bytes for part in parts),
        embedding_bytes=sum(part.embedding_bytes for part in parts),
        vision_bytes=sum(part.vision_bytes for part in parts),
        gated=any(part.gated for part in parts),
        tied=any(part.tied for part in parts) and not any(part.output_bytes > part.embedding_bytes for part in parts),
        header=replace(
            first.header,
            parameters=sum(part.header.parameters for part in parts),
            tensor_bytes=sum(part.header.tensor_bytes for part in parts),
            tensor_count=sum(part.header.tensor_count for part in parts),
        ),
    )


def _joined(layers: list[LayerTensors]) -> LayerTensors:
    return LayerTensors(
        attention=sum(layer.attention for layer in layers),
        feed_forward=sum(layer.feed_forward for layer in layers),
        experts=sum(layer.experts for layer in layers),
        recurrent=sum(layer.recurrent for layer in layers),
        other=sum(layer.other for layer in layers),
        keys=any(layer.keys for layer in layers),
    )


def _by_layer(fields: Fields, tensors: list[Tensor], count: int) -> tuple[tuple[LayerTensors, ...], list[Tensor]]:
    """The repeating layers, and the tensors that belong to none."""
    kinds: list[dict[str, int]] = [{} for _ in range(count)]
    keys: set[int] = set()
    rest: list[Tensor] = []
    for tensor in tensors:
        found = _BLOCK.fullmatch(tensor.name)
        if found is None:
            rest.append(tensor)
            continue
        layer = int(found[1])
        if layer >= count:
            fields.fail(f"tensor {shown(tensor.name)}", f"the model has only {count} layers")
        kind = _kind(found[2])
        kinds[layer][kind] = kinds[layer].get(kind, 0) + tensor.size
        if _KEYS.fullmatch(found[2]):
            keys.add(layer)
    return tuple(LayerTensors(**kind, keys=at in keys) for at, kind in enumerate(kinds)), rest


def _is_gate(tensor: Tensor, header: GgufHeader) -> bool:
    """A gate of its own, or one that shares a tensor with the way up, which is then twice as wide."""
    if "ffn_gate" in tensor.name:
        return True
    wide = 2 * max(header.feed_forward, default=0)
    return ".ffn_up" in tensor.name and len(tensor.dimensions) > 1 and tensor.dimensions[1] == wide > 0


def _kind(name: str) -> str:
    if name.startswith(("ssm_", "time_mix", "channel_mix", "shortconv")):
        return "recurrent"
    if "_exps" in name:
        return "experts"
    if name.startswith("attn"):
        return "attention"
    return "feed_forward" if name.startswith("ffn") else "other"


def _with_facts(layout: GgufLayout, fields: Fields) -> GgufLayout:
    header = layout.header
    depth = header.block_count
    prefix = header.architecture

    def number(key: str) -> int:
        name = f"{prefix}.{key}"
        return 0 if fields.is_list(name) else fields.integer(name)

    pattern = f"{prefix}.attention.sliding_window_pattern"
    return replace(
        layout,
        window=number("attention.sliding_window"),
        window_pattern=fields.per_layer(pattern, depth, 0) if fields.is_list(pattern) else (),
        window_every=number("attention.sliding_window_pattern"),
        window_key_length=number("attention.key_length_swa"),
        window_value_length=number("attention.value_length_swa"),
        attention_chunk=number("attention.chunk_size"),
        attention_every=number("full_attention_interval"),
        shared_layers=number("attention.shared_kv_layers"),
        predicting_layers=number("nextn_predict_layers"),
        latent_rank=number("attention.kv_lora_rank"),
        latent_key_length=number("attention.key_length_mla"),
        rope_length=number("rope.dimension_count"),
        experts=number("expert_count"),
        experts_used=number("expert_used_count"),
        expert_length=number("expert_feed_forward_length"),
        shared_expert_length=number("expert_shared_feed_forward_length"),
        convolution=number("ssm.conv_kernel"),
        inner=number("ssm.inner_size"),
        state=number("ssm.state_size"),
        groups=number("ssm.group_count"),
        wkv_head=number("wkv.head_size"),
        token_shifts=number("token_shift_count"),
        short_convolution=number("shortconv.l_cache"),
    )
