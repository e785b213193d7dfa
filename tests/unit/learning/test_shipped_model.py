"""The model in the repository is the one that its figures and its card describe."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from felloe.learning.recipe import load_recipe

FOLDER = Path(__file__).parents[3] / "models" / "tiny-python"
MODEL = FOLDER / "tiny-python-q8_0.gguf"
PROMPTS = ["Write a function that reads a file", "What is Python?", "How do I sort a list?"]
FEWEST_TOKENS = 24


def test_the_figures_belong_to_this_file_and_this_recipe() -> None:
    figures = json.loads((FOLDER / "figures.json").read_text(encoding="utf-8"))
    assert figures["gguf_sha256"] == hashlib.sha256(MODEL.read_bytes()).hexdigest()
    assert figures["training_steps"] == load_recipe(FOLDER / "recipe.toml").training.steps


@pytest.mark.parametrize("figure", ["held_out_loss", "held_out_perplexity", "held_out_bits_per_byte", "corpus_sha256"])
def test_the_card_quotes_the_figures(figure: str) -> None:
    figures = json.loads((FOLDER / "figures.json").read_text(encoding="utf-8"))
    assert str(figures[figure]) in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_a_greedy_answer_to_an_ordinary_prompt_is_long_enough_to_stream(
    ask_llama: Callable[..., list[Any]],
) -> None:
    body = {"max_tokens": 100, "temperature": 0}
    requests = [
        ("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": prompt}]}) for prompt in PROMPTS
    ]
    for prompt, answer in zip(PROMPTS, ask_llama(MODEL, requests), strict=True):
        assert answer["usage"]["completion_tokens"] >= FEWEST_TOKENS, prompt
        assert answer["choices"][0]["message"]["content"].strip(), prompt
