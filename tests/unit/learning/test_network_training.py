import math
import random
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch")
pytest.importorskip("tokenizers", reason="training needs the learn extra")

from felloe.learning.evaluate import Evaluation, evaluate  # noqa: E402
from felloe.learning.examples import batches  # noqa: E402
from felloe.learning.muon import orthogonal  # noqa: E402
from felloe.learning.network import Network  # noqa: E402
from felloe.learning.progress import Progress  # noqa: E402
from felloe.learning.recipe import Recipe, parse_recipe  # noqa: E402
from felloe.learning.train import learning_rate, train  # noqa: E402


@pytest.fixture
def recipe(tables: dict[str, Any]) -> Recipe:
    return parse_recipe(tables)


def examples(count: int = 20) -> list[list[int]]:
    chance = random.Random(5)
    return [[0] + [chance.randrange(320) for _ in range(chance.randrange(5, 90))] + [1] for _ in range(count)]


def test_every_window_starts_with_the_last_token_of_the_window_before() -> None:
    first, second = islice(batches(examples(), batch=1, window=32, seed=1), 2)
    assert first.shape == (1, 33)
    assert first[0, -1] == second[0, 0]


def test_the_first_pass_reads_every_example_before_any_twice() -> None:
    given = [[number] * 8 for number in range(16)]
    read = torch.cat([batch[0, 1:] for batch in islice(batches(given, 1, 16, seed=3), 7)])
    assert all((read == number).sum() <= 8 for number in range(16))


def test_the_rate_rises_stays_and_falls_to_almost_nothing(recipe: Recipe) -> None:
    plan = replace(recipe.training, steps=100, warmup_steps=10, decay_fraction=0.5, peak_rate=1.0)
    rates = [learning_rate(step, plan) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] == pytest.approx(0.02)


def test_the_same_recipe_trains_the_same_network(recipe: Recipe) -> None:
    told: list[Progress] = []
    one = train(recipe.network, recipe.training, examples(), told.append)
    two = train(recipe.network, recipe.training, examples(), told.append)
    for name, weights in one.network.state_dict().items():
        assert torch.equal(weights, two.network.state_dict()[name]), name
    assert one.tokens == 3 * 2 * 32
    assert [event.step for event in told] == [3, 3]


def test_another_seed_trains_another_network(recipe: Recipe) -> None:
    one = train(recipe.network, recipe.training, examples(), lambda _: None)
    two = train(recipe.network, replace(recipe.training, seed=2), examples(), lambda _: None)
    assert not torch.equal(one.network.embedding.weight, two.network.embedding.weight)


def test_training_lowers_the_loss_on_text_that_repeats(recipe: Recipe) -> None:
    losses: list[float] = []
    plan = replace(recipe.training, steps=75)
    train(recipe.network, plan, [[1, 2, 3, 4] * 20], lambda event: losses.append(event.loss))
    assert losses[-1] < 0.5 < losses[0] + 0.5


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 48, 16), (1, 16, 16)])
def test_a_step_of_muon_is_nearly_orthogonal(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_a_network_sees_nothing_of_the_future(recipe: Recipe) -> None:
    network = Network(recipe.network, torch.Generator().manual_seed(1))
    tokens = torch.randint(0, 320, (1, 20), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[0, 12:] = 7
    with torch.inference_mode():
        assert torch.allclose(network(tokens)[:, :12], network(changed)[:, :12], atol=1e-6)


def test_an_evaluation_weighs_windows_by_their_tokens(recipe: Recipe) -> None:
    network = Network(recipe.network, torch.Generator().manual_seed(1))
    documents = examples(4)
    in_one_go = evaluate(network, documents, text_bytes=100, window=512)
    assert in_one_go.tokens == sum(len(document) - 1 for document in documents)
    with torch.inference_mode():
        by_hand = sum(network.loss(torch.tensor([ids])).item() * (len(ids) - 1) for ids in documents)
    assert in_one_go.loss == pytest.approx(by_hand / in_one_go.tokens, rel=1e-5)
    assert evaluate(network, documents, 100, window=16).tokens == in_one_go.tokens


def test_bits_per_byte_of_a_uniform_guess_over_bytes_are_eight() -> None:
    guess = Evaluation(loss=math.log(256), tokens=1000, text_bytes=1000)
    assert guess.bits_per_byte == pytest.approx(8)
    assert guess.perplexity == pytest.approx(256)
