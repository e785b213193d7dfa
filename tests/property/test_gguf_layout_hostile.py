"""Whatever a file's front says, it is read or refused, and what is read can be priced and sent."""

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import decode, encode

from felloe.domain.errors import FelloeError
from felloe.domain.fleet import RAM, Device
from felloe.domain.gguf_layout import read_layout
from felloe.placement.memory import Share, price
from felloe.placement.settings import Settings
from felloe.placement.shape import Shape, shape_of
from gguf_bytes import ARRAY, BOOL, Q8_0, UINT32, array, tiny_model

_RAM = Device(id=RAM, kind="cpu", memory=0)
_NUMBERS = st.sampled_from((0, 1, 2, 3, 255, 4096, 2**16, 2**24, 2**31 - 1, 2**32 - 1))
_KEYS = (
    "attention.sliding_window", "attention.sliding_window_pattern", "attention.key_length", "attention.value_length",
    "attention.kv_lora_rank", "attention.key_length_mla", "attention.shared_kv_layers", "attention.key_length_swa",
    "attention.head_count", "attention.head_count_kv", "block_count", "embedding_length", "expert_count",
    "expert_used_count", "expert_feed_forward_length", "feed_forward_length", "nextn_predict_layers",
    "rope.dimension_count", "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count",
    "wkv.head_size", "token_shift_count", "shortconv.l_cache",
)  # fmt: skip
_NAMES = (
    "blk.0.attn_k.weight",
    "blk.1.ssm_in.weight",
    "blk.0.ffn_up_exps.weight",
    "blk.3.attn_k.weight",
    "v.x",
    "output.weight",
)


def outcome(data: bytes) -> Shape | None:
    """The shape, or None where the file is refused; anything else that is raised fails the test."""
    try:
        shape = shape_of(read_layout(io.BytesIO(data).read, file="m.gguf", file_size=len(data)))
    except FelloeError as error:
        assert error.code == "bad_model_file"
        return None
    assert decode(encode(shape), type=Shape) == shape
    (need,) = price(shape, Settings(context=2**20, slots=64), [Share(device=_RAM, layers=shape.units)])
    assert 0 <= need.total < 2**63
    return shape


@settings(deadline=None, max_examples=150)
@given(
    numbers=st.dictionaries(st.sampled_from(_KEYS), _NUMBERS, max_size=8),
    names=st.lists(st.sampled_from(_NAMES), max_size=4, unique=True),
    architecture=st.sampled_from(("llama", "gemma3", "deepseek2", "mamba", "rwkv7", "llama4", "bert", "x")),
    pattern=st.none() | st.lists(st.integers(0, 1), max_size=4),
)
def test_odd_numbers_are_priced_or_refused(
    numbers: dict[str, int], names: list[str], architecture: str, pattern: list[int] | None
) -> None:
    file = tiny_model()
    file.metadata = {key.replace("llama.", f"{architecture}."): entry for key, entry in file.metadata.items()} | {
        f"{architecture}.{key}": (UINT32, number) for key, number in numbers.items()
    }
    file.metadata["general.architecture"] = (8, architecture)
    if pattern is not None:
        file.metadata[f"{architecture}.attention.sliding_window_pattern"] = (ARRAY, array(BOOL, list(pattern)))
    for name in names:
        file.tensors.append((name, (64, 32), Q8_0, file.data_size))
        file.data_size += 64 * 34
    outcome(bytes(file))


@settings(deadline=None, max_examples=100)
@given(at=st.integers(0, len(tiny_model().header()) - 1), value=st.integers(0, 255))
def test_a_changed_byte_is_survived(at: int, value: int) -> None:
    data = bytearray(bytes(tiny_model()))
    data[at] = value
    outcome(bytes(data))
