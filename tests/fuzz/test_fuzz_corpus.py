"""What a fuzzer once found interesting is refused with a name or taken whole, for ever."""

import pytest

from fuzz.surface import CORPUS, MOST_INPUT_BYTES, kept, try_input
from fuzz.surfaces import SURFACES


@pytest.mark.parametrize("name", SURFACES)
def test_every_kept_input_is_refused_by_name_or_taken_whole(name: str) -> None:
    surface = SURFACES[name]
    for path in kept(surface):
        try_input(surface, path.read_bytes())


@pytest.mark.parametrize("name", SURFACES)
def test_what_a_fuzzer_begins_with_is_partly_taken(name: str) -> None:
    surface = SURFACES[name]
    places = [try_input(surface, seed) for seed in surface.seeds()]
    assert any(place.startswith("taken") for place in places)


def test_the_kept_inputs_are_small_and_each_belongs_to_a_surface() -> None:
    paths = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in paths} <= set(SURFACES)
    sizes = [path.stat().st_size for path in paths]
    assert (len(sizes) <= 200, max(sizes) <= MOST_INPUT_BYTES, sum(sizes) < 300_000) == (True, True, True)
