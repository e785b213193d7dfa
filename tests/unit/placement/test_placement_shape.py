"""What a model keeps for each token, by what its header says of its layers."""

import io

import pytest
from msgspec.msgpack import decode, encode
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.gguf_layout import GgufLayout, LayerTensors, read_layout
from felloe.placement.shape import Shape, shape_of
from gguf_bytes import STRING, tiny_model


def layout(architecture: str = "llama", layers: int = 6, **changes: object) -> GgufLayout:
    data = bytes(tiny_model(general__architecture=(STRING, "llama")))
    plain = read_layout(io.BytesIO(data).read, file="m.gguf", file_size=len(data))
    header = replace(
        plain.header, architecture=architecture, kv_heads=(2,) * layers, block_count=layers, key_length=64,
        value_length=32, embedding_length=512,
    )  # fmt: skip
    tensors = (LayerTensors(attention=1000, feed_forward=3000, keys=True),) * layers
    return replace(plain, header=header, layers=tensors, **changes)


def windowed(shape: Shape) -> list[bool]:
    return [layer.windowed for layer in shape.layers]


def test_grouped_queries_keep_keys_and_values_of_the_few_heads() -> None:
    assert {(layer.key, layer.value) for layer in shape_of(layout()).layers} == {(128, 64)}


def test_latent_attention_keeps_one_row_for_all_heads() -> None:
    latent = shape_of(layout("deepseek2", latent_rank=512, latent_key_length=192, rope_length=64))
    assert {(layer.key, layer.value) for layer in latent.layers} == {(576, 0)}


def test_latent_weights_in_an_old_file_keep_what_its_heads_say() -> None:
    assert shape_of(layout("deepseek2", latent_rank=512, rope_length=64)).layers[0].key == 128


@pytest.mark.parametrize(
    ("architecture", "pattern"),
    [
        ("gemma3", [True, True, True, True, True, False]),
        ("gemma2", [True, False, True, False, True, False]),
        ("smallthinker", [False, True, True, True, False, True]),
        ("llama", [False] * 6),
    ],
)
def test_which_layers_see_only_the_last_tokens_is_known_by_architecture(architecture: str, pattern: list[bool]) -> None:
    assert windowed(shape_of(layout(architecture, window=1024))) == pattern


def test_the_files_own_pattern_comes_first() -> None:
    told = shape_of(layout("gemma3", window=1024, window_pattern=(0, 1, 0, 1, 0, 1)))
    assert windowed(told) == [False, True] * 3
    assert windowed(shape_of(layout("other", window=1024, window_every=3))) == [True, True, False] * 2


def test_without_a_window_nothing_is_windowed() -> None:
    shape = shape_of(layout("gemma3"))
    assert (windowed(shape), shape.window) == ([False] * 6, 0)


def test_layers_that_use_anothers_cache_keep_none() -> None:
    assert [bool(layer.key) for layer in shape_of(layout(shared_layers=2)).layers] == [True] * 4 + [False] * 2


def test_a_recurrent_layer_keeps_a_state_instead() -> None:
    mixed = layout(convolution=4, inner=1024, state=16, groups=0)
    mixed = replace(mixed, layers=(LayerTensors(recurrent=10, keys=False), *mixed.layers[1:]))
    first, second, *_ = shape_of(mixed).layers
    assert (first.key, first.state) == (0, 4 * (3 * 1024 + 16 * 1024))
    assert (second.key, second.state) == (128, 0)


def test_a_tied_output_weighs_once_in_one_memory() -> None:
    shape = shape_of(layout())
    assert shape.tied_bytes == shape.input_bytes
    assert shape.weights == shape.input_bytes + 256 + 6 * 4000


def test_a_shape_is_small_enough_to_send() -> None:
    shape = shape_of(layout(layers=80))
    assert len(encode(shape)) < 4096
    assert decode(encode(shape), type=Shape) == shape


@pytest.mark.parametrize(
    "changes",
    [{"inner": 2**30}, {"window": 2**31 - 1, "window_every": 2}, {"latent_rank": 2**30, "latent_key_length": 1}],
)
def test_lengths_of_no_model_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(FelloeError) as caught:
        shape_of(layout(**changes))
    assert caught.value.code == "bad_model_file"


def test_a_cache_beyond_all_bounds_is_refused() -> None:
    plain = layout()
    with pytest.raises(FelloeError, match="keeps more for a token"):
        shape_of(replace(plain, header=replace(plain.header, kv_heads=(2**31 - 1,) * 6)))
