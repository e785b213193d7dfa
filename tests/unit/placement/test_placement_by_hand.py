"""The plan of the example files, against figures that anybody can check with a pencil and the published files."""

from pathlib import Path

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.placement.fleet_file import read_fleet
from felloe.placement.models_file import read_models
from felloe.placement.settings import Settings
from felloe.placement.shape import Shape
from felloe.placement.split import largest_context, split_over

EXAMPLES = Path(__file__).parents[3] / "examples"
DRIVER_BYTES = 450 * 2**20


def no_file(path: Path) -> Shape:
    raise FelloeError("internal", str(path))


HUB, SPOKE_A, _ = read_fleet(EXAMPLES / "fleet.toml").machines
_, FACTS = read_models(EXAMPLES / "models.toml", no_file)
CARDS = [(device, device.memory) for device in HUB.devices]


def shape(name: str) -> Shape:
    return FACTS[ModelName(f"{name}:Q4_K_M")].shape


@pytest.mark.parametrize(
    ("name", "published_gigabytes"),
    [("orchestrator-70b", 42.52), ("chat-8b", 4.92), ("edge-1.5b", 0.986), ("edge-1b", 0.808)],
)
def test_weights_are_those_of_the_published_files(name: str, published_gigabytes: float) -> None:
    """Llama 3 70B and 8B, Qwen 2.5 1.5B and Llama 3.2 1B as Q4_K_M; a file has its header besides its weights."""
    assert shape(name).weights / 1e9 == pytest.approx(published_gigabytes, rel=0.015)


def test_the_cache_of_the_70b_is_80_layers_of_8_heads_of_128_twice_in_two_bytes() -> None:
    parts = split_over(shape("orchestrator-70b"), Settings(context=12_288, slots=1), CARDS)
    assert parts is not None
    assert sum(part.need.kv for part in parts) == 80 * 8 * 128 * 2 * 2 * 12_288
    assert all(part.need.total <= HUB.devices[place].memory for place, part in enumerate(parts))


def test_the_70b_has_the_longest_context_that_whole_layers_allow() -> None:
    """In one piece the cards could hold a little more, but a layer does not lie on two of them."""
    seventy = shape("orchestrator-70b")
    longest = largest_context(seventy, Settings(context=256, slots=1), CARDS, most=131_072)
    assert longest == 12_288
    layer_bytes = max(layer.weights for layer in seventy.layers) + 8 * 128 * 2 * 2 * longest
    parts = split_over(seventy, Settings(context=longest, slots=1), CARDS)
    assert parts is not None
    left = [memory - part.need.total for part, (_, memory) in zip(parts, CARDS, strict=True)][1:]
    assert max(left) < layer_bytes
    assert sum(left) < len(CARDS[1:]) * layer_bytes


def test_no_context_is_so_short_that_spoke_a_holds_three_8b() -> None:
    """Three times the weights that lie on a card and the driver are more than the card, without any cache."""
    eight, card = shape("chat-8b"), SPOKE_A.devices[1]
    least = eight.weights - eight.input_bytes + DRIVER_BYTES
    assert 2 * least < card.memory < 3 * least
