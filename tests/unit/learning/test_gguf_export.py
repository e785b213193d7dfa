"""The exported file means what the network means: checked against llama.cpp itself."""

import json
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch")
for needed in ("tokenizers", "gguf", "xllamacpp"):
    pytest.importorskip(needed, reason="an export is checked against llama.cpp with the learn extra")

import numpy as np  # noqa: E402

from felloe.learning import export  # noqa: E402
from felloe.learning.build import build  # noqa: E402
from felloe.learning.chat import render  # noqa: E402
from felloe.learning.conversations import Conversation, Turn  # noqa: E402
from felloe.learning.export import export_gguf, permute_rotary_rows  # noqa: E402
from felloe.learning.network import Network  # noqa: E402
from felloe.learning.recipe import Recipe, parse_recipe  # noqa: E402
from felloe.learning.tokenizer import train_tokenizer, vocabulary_of  # noqa: E402

TEXTS = [Path(__file__).read_text(encoding="utf-8"), "naïve → text,\n\n\n  12345 tokens\tand\r\n I'll see  \n"]
AskLlama = Callable[[Path, list[tuple[str, dict[str, Any]]]], list[Any]]
PROMPT_LENGTHS = (3, 20, 48)


@pytest.fixture
def recipe(tables: dict[str, Any]) -> Recipe:
    return parse_recipe(tables)


@pytest.fixture
def network(recipe: Recipe) -> Network:
    """A random network of 29,000 parameters whose attention is sharp enough for its positions to matter."""
    network = Network(recipe.network, torch.Generator().manual_seed(4))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(40 if name.endswith(("query.weight", "key.weight")) else 8)
    return network


@pytest.fixture
def tokenizer(recipe: Recipe) -> Any:
    return train_tokenizer(TEXTS, recipe.network.vocabulary)


def prompts(vocabulary: int) -> list[list[int]]:
    chance = torch.Generator().manual_seed(9)
    return [torch.randint(6, vocabulary, (length,), generator=chance).tolist() for length in PROMPT_LENGTHS]


def largest_difference(network: Network, model: Path, ask_llama: AskLlama) -> float:
    """The largest difference between the two programs in any log-probability of any next token, in nats."""
    vocabulary = network.shape.vocabulary
    body = {"n_predict": 1, "n_probs": vocabulary, "temperature": -1, "cache_prompt": False}
    given = prompts(vocabulary)
    answers = ask_llama(model, [("/completion", {**body, "prompt": ids}) for ids in given])
    worst = 0.0
    for ids, answer in zip(given, answers, strict=True):
        with torch.inference_mode():
            ours = network(torch.tensor([ids]))[0, -1].log_softmax(-1)
        theirs = {each["id"]: each["logprob"] for each in answer["completion_probabilities"][0]["top_logprobs"]}
        assert len(theirs) == vocabulary
        worst = max(worst, *(abs(ours[token].item() - value) for token, value in theirs.items()))
    return worst


def test_rotary_rows_that_turn_together_become_neighbours() -> None:
    rows = np.arange(16, dtype=np.float32)[:, None]
    assert permute_rotary_rows(rows, 2)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]


@pytest.mark.parametrize(("quantization", "tolerance"), [("f16", 0.05), ("q8_0", 0.5)])
def test_llama_cpp_gives_the_probabilities_of_the_network(
    network: Network,
    tokenizer: Any,
    recipe: Recipe,
    tmp_path: Path,
    ask_llama: AskLlama,
    quantization: str,
    tolerance: float,
) -> None:
    model = tmp_path / "minute.gguf"
    export_gguf(network, vocabulary_of(tokenizer), recipe.model, quantization, model)
    assert largest_difference(network, model, ask_llama) < tolerance


def test_the_comparison_would_see_rows_left_in_the_wrong_order(
    network: Network,
    tokenizer: Any,
    recipe: Recipe,
    tmp_path: Path,
    ask_llama: AskLlama,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "permute_rotary_rows", lambda weights, heads: weights)
    model = tmp_path / "minute.gguf"
    export_gguf(network, vocabulary_of(tokenizer), recipe.model, "f16", model)
    assert largest_difference(network, model, ask_llama) > 2


def test_llama_cpp_reads_text_and_chats_as_the_training_did(
    network: Network, tokenizer: Any, recipe: Recipe, tmp_path: Path, ask_llama: AskLlama
) -> None:
    model = tmp_path / "minute.gguf"
    export_gguf(network, vocabulary_of(tokenizer), recipe.model, "f16", model)
    chat = Conversation("You write\nPython.", (Turn("Open a file", "def open_file(path): ..."),))
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "You write"}, {"type": "text", "text": "Python."}]},
        {"role": "user", "content": "Open a file"},
        {"role": "assistant", "content": "def open_file(path): ..."},
        {"role": "user", "content": "Close it"},
    ]
    texts = [*TEXTS, render(chat)]
    *read, templated = ask_llama(
        model,
        [("/tokenize", {"content": text, "parse_special": True}) for text in texts]
        + [("/apply-template", {"messages": messages})],
    )
    assert [each["tokens"] for each in read] == [tokenizer.encode(text).ids for text in texts]
    # llama.cpp itself joins the parts of a message, with line ends.
    assert templated["prompt"] == render(chat) + "\n<|user|>\nClose it<|end|>\n<|assistant|>\n"


def test_a_run_writes_a_model_that_loads_and_figures_that_describe_it(
    recipe: Recipe, tmp_path: Path, ask_llama: AskLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    for name in ("bisect.py", "textwrap.py", "shlex.py", "heapq.py", "queue.py", "sched.py"):
        shutil.copy(Path(sysconfig.get_path("stdlib")) / name, library / name)
    monkeypatch.setattr("felloe.learning.build.standard_library", lambda: library)
    halved = replace(recipe, corpus=replace(recipe.corpus, held_out_one_in=2))
    folder = tmp_path / "out"
    figures = build(halved, folder, lambda _: None)
    assert json.loads((folder / "figures.json").read_text()) == figures
    assert figures["training_steps"] == 3
    assert {file.name for file in folder.iterdir()} == {"figures.json", "minute-f16.gguf"}
    (answer,) = ask_llama(folder / "minute-f16.gguf", [("/completion", {"prompt": "def", "n_predict": 4})])
    assert answer["tokens_evaluated"] > 0
