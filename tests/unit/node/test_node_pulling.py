"""A pull tells how far it is, uses the secrets of whoever asks, and ends when nobody listens."""

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

import pytest

from felloe.catalog.sources.progress import PullProgress
from felloe.catalog.sources.service import Sources
from felloe.catalog.store import ModelStore
from felloe.console.messages import Progress, PullRequest
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.models import Model
from felloe.node.pulling import Pulling
from waiting import until

MODEL = Model(name=ModelName("tiny"), digest="", size=7, architecture="llama", quantisation="F32", context=8)


class FewSources:
    """Reports twice, then ends as it is told."""

    def __init__(self) -> None:
        self.environment: Mapping[str, str] = {}
        self.ended = False
        self.go_on = asyncio.Event()
        self.error: FelloeError | None = None

    async def pull(
        self, text: str, *, name: str | None, environment: Mapping[str, str], report: Callable[[PullProgress], None]
    ) -> Model:
        self.environment = environment
        report(PullProgress(done=1, total=7, file=text, rate=2.0, eta=3.0))
        try:
            await self.go_on.wait()
        finally:
            self.ended = True
        if self.error is not None:
            raise self.error
        return MODEL


class FewModels:
    def __init__(self) -> None:
        self.pins: list[str] = []
        self.came: list[str] = []
        self.asked: list[str] = []

    async def arrived(self, name: ModelName) -> str:
        self.came.append(name)
        return "approved by anna"

    async def from_peers(self, text: str, report: Callable[[PullProgress], None]) -> Model:
        self.asked.append(text)
        report(PullProgress(done=3, total=7, file="a.gguf"))
        return MODEL

    async def set_pinned(self, name: str, pinned: bool) -> None:
        assert pinned
        self.pins.append(name)


@pytest.fixture
def sources() -> FewSources:
    return FewSources()


def pulling(sources: FewSources, models: FewModels, **environment: str) -> Pulling:
    return Pulling(cast(Sources, sources), cast(ModelStore, models), models.arrived, models.from_peers, environment)


async def test_the_last_step_has_the_model_and_it_is_pinned(sources: FewSources) -> None:
    models = FewModels()
    sources.go_on.set()
    steps = [step async for step in pulling(sources, models).steps(PullRequest("x.gguf", pin=True))]
    assert steps == [
        Progress(1, 7, file="x.gguf", rate=2.0, eta=3.0),
        Progress(7, 7, MODEL, approval="approved by anna"),
    ]
    assert (models.pins, models.came) == (["tiny"], ["tiny"])


async def test_a_running_pull_is_shown_until_it_ends_and_without_what_may_be_secret(sources: FewSources) -> None:
    node = pulling(sources, FewModels())
    steps = node.steps(PullRequest("https://example.org/x.gguf?token=secret"))
    await anext(steps)
    (shown,) = node.running()
    assert (shown.reference, shown.done, shown.total, shown.eta) == ("https://example.org/x.gguf", 1, 7, 3.0)
    await steps.aclose()
    await until(lambda: node.running() == ())


async def test_what_the_node_pulls_for_itself_is_published_too(sources: FewSources) -> None:
    models = FewModels()
    sources.go_on.set()
    assert await pulling(sources, models).take("x.gguf") == MODEL
    assert models.came == ["tiny"]


async def test_a_failure_comes_after_the_steps(sources: FewSources) -> None:
    sources.go_on.set()
    sources.error = FelloeError("source_failed", "the hub is down")
    steps = pulling(sources, FewModels()).steps(PullRequest("x.gguf"))
    assert (await anext(steps)).done == 1
    with pytest.raises(FelloeError, match="the hub is down"):
        await anext(steps)


async def test_when_nobody_listens_the_pull_ends(sources: FewSources) -> None:
    steps = pulling(sources, FewModels()).steps(PullRequest("x.gguf"))
    await anext(steps)
    await steps.aclose()
    await until(lambda: sources.ended)


async def test_the_users_token_goes_before_the_nodes_and_nothing_else_is_passed_on(sources: FewSources) -> None:
    sources.go_on.set()
    node = pulling(sources, FewModels(), HF_TOKEN="node", FELLOE_REGISTRY_CREDENTIALS="a=b:c", PATH="/bin")
    request = PullRequest("x.gguf", secrets={"HF_TOKEN": "user", "LD_PRELOAD": "evil"})
    assert [step async for step in node.steps(request)]
    assert sources.environment == {"HF_TOKEN": "user", "FELLOE_REGISTRY_CREDENTIALS": "a=b:c"}
    assert "user" not in repr(request)


async def test_a_bare_name_comes_from_other_nodes(sources: FewSources) -> None:
    models = FewModels()
    steps = [step async for step in pulling(sources, models).steps(PullRequest("tiny", pin=True))]
    assert steps == [Progress(3, 7, file="a.gguf"), Progress(7, 7, MODEL)]
    assert (models.asked, models.pins, models.came) == (["tiny"], ["tiny"], [])


async def test_what_comes_from_other_nodes_keeps_its_name(sources: FewSources) -> None:
    with pytest.raises(FelloeError) as refused:
        _ = [step async for step in pulling(sources, FewModels()).steps(PullRequest("tiny", "mine"))]
    assert (refused.value.code, refused.value.param) == ("invalid_value", "name")
