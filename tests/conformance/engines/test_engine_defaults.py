"""A real engine does what the model's manifest says: defaults for requests that say nothing, the chat template."""

from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import pytest

from engine_house import MODEL_FILE, tiny_model
from felloe.domain.requests import Done, Piece
from felloe.engines.options import EngineOptions
from felloe.engines.service import Engines
from routing_fakes import make_request


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[Engines]:
    built = Engines(state_folder=tmp_path / "state", log_folder=tmp_path / "logs", clock=monotonic)
    await built.load(
        tiny_model(), MODEL_FILE, EngineOptions(context=512, slots=1, threads=1, defaults={"num_predict": 3})
    )
    yield built
    await built.close()


async def ask(engines: Engines, **body: object) -> Done:
    def deliver(_: Piece) -> None:
        pass

    messages = [{"role": "user", "content": "Write a parser."}]
    bias = {"1": -100}  # the token that ends a text
    request = make_request(model=tiny_model().name, body={"messages": messages, "logit_bias": bias, **body})
    return await engines.answer(request, deliver)


async def test_the_default_holds_until_a_request_says_otherwise(engines: Engines) -> None:
    assert (await ask(engines)).usage.completion == 3
    assert (await ask(engines, max_tokens=5)).usage.completion == 5


async def test_the_manifests_template_counts_before_the_files_own(tmp_path: Path) -> None:
    template = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    prompts: list[int] = []
    for number, told in enumerate(("", template * 3)):
        built = Engines(
            state_folder=tmp_path / f"state-{number}", log_folder=tmp_path / f"logs-{number}", clock=monotonic
        )
        try:
            options = EngineOptions(context=512, slots=1, threads=1, template=told)
            await built.load(tiny_model(), MODEL_FILE, options)
            prompts.append((await ask(built, max_tokens=1)).usage.prompt)
        finally:
            await built.close()
    assert prompts[1] > prompts[0], "three times the messages"
