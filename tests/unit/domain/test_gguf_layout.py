"""What a model file's front tells of each layer: bytes by kind, and nothing that a hostile file can enlarge."""

import io
from pathlib import Path

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.gguf_layout import GgufLayout, join_layouts, read_layout
from gguf_bytes import ARRAY, BOOL, F32, INT32, Q8_0, UINT32, GgufFile, array, tiny_model

REPOSITORY = Path(__file__).parents[3]
ROW = 64 * 34 // 32


def parse(data: bytes) -> GgufLayout:
    return read_layout(io.BytesIO(data).read, file="m.gguf", file_size=len(data))


def model_with(*tensors: tuple[str, tuple[int, ...]], **changes: tuple[int, object] | None) -> GgufFile:
    """The tiny model with these Q8_0 tensors after its own."""
    file = tiny_model(**changes)
    for name, lengths in tensors:
        size = ROW
        for length in lengths[1:]:
            size *= length
        file.tensors.append((name, lengths, Q8_0, file.data_size))
        file.data_size += -(-size // 32) * 32
    return file


def test_every_byte_of_the_shipped_model_has_its_layer() -> None:
    data = (REPOSITORY / "models/tiny-python/tiny-python-q8_0.gguf").read_bytes()
    layout = parse(data)
    assert layout.tied
    assert len(layout.layers) == 4
    assert len({layer.total for layer in layout.layers}) == 1
    assert all(layer.keys and not layer.recurrent and not layer.experts for layer in layout.layers)
    ends = layout.input_bytes + layout.output_bytes
    assert ends + sum(layer.total for layer in layout.layers) == layout.header.tensor_bytes


def test_tensors_are_told_apart_by_kind() -> None:
    file = model_with(
        ("blk.0.attn_k.weight", (64, 32)),
        ("blk.0.ffn_gate.weight", (64, 128)),
        ("blk.1.ffn_up_exps.weight", (64, 16, 4)),
        ("blk.1.ssm_in.weight", (64, 8)),
        ("blk.1.attn_norm.weight", (64, 1)),
        ("output.weight", (64, 16)),
        ("v.patch_embd.weight", (64, 2)),
    )
    layout = parse(bytes(file))
    first, second = layout.layers
    assert (first.attention, first.feed_forward, first.keys) == (32 * ROW, 128 * ROW, True)
    assert (second.experts, second.recurrent, second.keys) == (64 * ROW, 8 * ROW, False)
    assert (layout.output_bytes, layout.vision_bytes, layout.tied) == (64 * 4 + 16 * ROW, 2 * ROW, False)
    assert (layout.input_bytes, layout.gated) == (16 * ROW, True)


def test_a_gate_within_a_wider_tensor_counts_as_one() -> None:
    assert parse(bytes(model_with(("blk.0.ffn_up.weight", (64, 256))))).gated
    assert not parse(bytes(model_with(("blk.0.ffn_up.weight", (64, 128))))).gated


def test_window_and_latent_lengths_are_read() -> None:
    layout = parse(
        bytes(
            tiny_model(
                llama__attention__sliding_window=(UINT32, 256),
                llama__attention__sliding_window_pattern=(ARRAY, array(BOOL, [1, 0])),
                llama__attention__kv_lora_rank=(UINT32, 32),
            )
        )
    )
    assert (layout.window, layout.window_pattern, layout.latent_rank) == (256, (1, 0), 32)


def test_a_window_for_all_layers_is_a_number() -> None:
    layout = parse(bytes(tiny_model(llama__attention__sliding_window_pattern=(UINT32, 6))))
    assert (layout.window_every, layout.window_pattern) == (6, ())


def test_parts_of_a_sharded_model_add_up() -> None:
    whole = parse(bytes(model_with(("blk.0.attn_k.weight", (64, 32)), ("blk.1.attn_k.weight", (64, 32)))))
    first = parse(bytes(model_with(("blk.0.attn_k.weight", (64, 32)))))
    other = GgufFile(
        metadata=tiny_model().metadata, tensors=[("blk.1.attn_k.weight", (64, 32), Q8_0, 0)], data_size=32 * ROW
    )
    joined = join_layouts(first, [parse(bytes(other))])
    assert joined.layers == whole.layers
    assert joined.input_bytes == whole.input_bytes
    assert joined.header.tensor_bytes == whole.header.tensor_bytes


@pytest.mark.parametrize("name", ["blk.2.attn_k.weight", "blk.9999.attn_k.weight"])
def test_a_layer_beyond_the_last_is_refused(name: str) -> None:
    with pytest.raises(FelloeError, match="has only 2 layers"):
        parse(bytes(model_with((name, (64, 32)))))


@pytest.mark.parametrize("layers", [None, (UINT32, 0)])
def test_layers_of_a_model_that_says_it_has_none_are_refused(layers: tuple[int, object] | None) -> None:
    file = tiny_model(llama__block_count=layers, llama__attention__head_count_kv=(UINT32, 1))
    file.tensors.append(("blk.0.attn_k.weight", (64, 32), Q8_0, file.data_size))
    file.data_size += 32 * ROW
    with pytest.raises(FelloeError, match="has only 0 layers"):
        parse(bytes(file))


def test_a_pattern_of_another_length_is_refused() -> None:
    file = tiny_model(llama__attention__sliding_window_pattern=(ARRAY, array(INT32, [1] * 3)))
    with pytest.raises(FelloeError, match="3 entries for 2 layers"):
        parse(bytes(file))


def test_a_norm_outside_all_layers_goes_with_the_output() -> None:
    file = tiny_model()
    assert ("output_norm.weight", (64,), F32, file.tensors[1][3]) in file.tensors
    assert parse(bytes(file)).output_bytes == 256
