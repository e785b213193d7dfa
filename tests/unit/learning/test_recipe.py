from pathlib import Path
from typing import Any

import pytest

from felloe.learning.recipe import RecipeError, load_recipe, parse_recipe

SHIPPED = Path(__file__).parents[3] / "models" / "tiny-python" / "recipe.toml"


def test_the_shipped_recipe_is_valid() -> None:
    recipe = load_recipe(SHIPPED)
    assert recipe.model.name == "tiny-python"
    assert recipe.network.head_width == 64


def test_values_arrive_with_their_types(tables: dict[str, Any]) -> None:
    tables["training"]["weight_decay"] = 0
    recipe = parse_recipe(tables)
    assert recipe.corpus.exclude == ("test", "asyncio/")
    assert isinstance(recipe.training.weight_decay, float)


def test_a_misspelt_key_and_the_key_it_leaves_missing_are_both_named(tables: dict[str, Any]) -> None:
    tables["network"]["widht"] = tables["network"].pop("width")
    with pytest.raises(RecipeError, match=r"\[network\]: unknown key widht; missing key width"):
        parse_recipe(tables)


def test_an_unknown_table_is_named(tables: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="the recipe: unknown key netwrok"):
        parse_recipe({**tables, "netwrok": {}})


def test_a_value_in_place_of_a_table_is_refused(tables: dict[str, Any]) -> None:
    tables["network"] = 7
    with pytest.raises(RecipeError, match=r"write \[network\]"):
        parse_recipe(tables)


@pytest.mark.parametrize(
    ("table", "key", "value", "complaint"),
    [
        ("model", "name", "", "must be a text"),
        ("corpus", "exclude", "test", "must be a list of texts"),
        ("corpus", "held_out_one_in", 1, "must be 2 or more"),
        ("network", "layers", True, "must be a whole number"),
        ("network", "layers", 1.5, "must be a whole number"),
        ("network", "layers", 0, "must be 1 or more"),
        ("network", "heads", 5, "multiple of twice the heads"),
        ("network", "key_value_heads", 3, "multiple of key_value_heads"),
        ("network", "vocabulary", 100, "must be 300 or more"),
        ("network", "rope_base", "big", "must be a number"),
        ("training", "peak_rate", float("nan"), "must be a number"),
        ("training", "peak_rate", -1.0, "must be a number"),
        ("training", "decay_fraction", 1.5, "between 0 and 1"),
        ("training", "window", 513, "must not exceed"),
        ("training", "steps", 0, "must be 1 or more"),
        ("export", "quantization", "q3", "must be one of f16, q8_0"),
        ("export", "quantization", 8, "must be a text"),
    ],
)
def test_a_wrong_value_is_refused_and_named(
    tables: dict[str, Any], table: str, key: str, value: object, complaint: str
) -> None:
    tables[table][key] = value
    with pytest.raises(RecipeError, match=complaint) as caught:
        parse_recipe(tables)
    assert f"[{table}]" in str(caught.value)
    assert key in str(caught.value)


def test_blocks_of_q8_0_must_fit_the_matrices(tables: dict[str, Any]) -> None:
    tables["export"]["quantization"] = "q8_0"
    tables["network"]["feed_forward"] = 48
    with pytest.raises(RecipeError, match="multiples of 32"):
        parse_recipe(tables)


def test_a_missing_file_and_broken_toml_are_the_authors_mistakes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[model")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(broken)
