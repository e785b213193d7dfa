"""Models on paper weigh what their files weigh."""

import pytest
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.placement.paper import Lengths, shape_from_parameters
from placement_shapes import LLAMA_8B, LLAMA_70B, QWEN_1_5B


@pytest.mark.parametrize(
    ("lengths", "quantisation", "bytes_of_the_file"),
    [
        (LLAMA_8B, "Q4_K_M", 4.92e9),
        (LLAMA_70B, "Q4_K_M", 42.52e9),
        (LLAMA_8B, "Q8_0", 8.54e9),
        (QWEN_1_5B, "Q8_0", 1.65e9),
    ],
)
def test_known_models_weigh_what_their_files_weigh(
    lengths: Lengths, quantisation: str, bytes_of_the_file: float
) -> None:
    assert shape_from_parameters(lengths, quantisation=quantisation).weights == pytest.approx(
        bytes_of_the_file, rel=0.01
    )


def test_parameters_are_counted() -> None:
    assert shape_from_parameters(LLAMA_8B).parameters == pytest.approx(8.03e9, rel=0.001)


def test_windows_follow_their_pattern() -> None:
    shape = shape_from_parameters(replace(LLAMA_8B, window=1024, window_every=4))
    assert [layer.windowed for layer in shape.layers[:4]] == [True, True, True, False]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"layers": 0}, "layers must be 1"),
        ({"heads": 0}, "heads must be 1"),
        ({"feed_forward": 0}, "feed_forward"),
        ({"width": 2**30}, "this large"),
        ({"window": -1}, "must be 1 or more"),
    ],
)
def test_lengths_of_no_model_are_refused(changes: dict[str, int], why: str) -> None:
    with pytest.raises(FelloeError, match=why):
        shape_from_parameters(replace(LLAMA_8B, **changes))


def test_an_unknown_quantisation_names_the_known_ones() -> None:
    with pytest.raises(FelloeError, match="Q4_K_M"):
        shape_from_parameters(LLAMA_8B, quantisation="Q4_K_XXL")
