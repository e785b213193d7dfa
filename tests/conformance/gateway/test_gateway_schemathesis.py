"""Schemathesis makes requests from the description that the gateway serves, valid and invalid, and checks the answers.

Run behind a key, as off loopback. Every operation gets a bounded, repeatable number of requests.
"""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from gateway_house import MODELS, ScriptedAnswers
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import positive_data_acceptance

from felloe.gateway import ApiKeys, Gateway, GatewayConfig, Listener, Metrics, NodeStatus

EXAMPLES = 25
BETWEEN_FIELDS = {"tool_choice", "top_logprobs", "stream_options", "max_completion_tokens", "n"}
"""What the description, being a JSON schema of single fields, does not say: a chosen tool must be among the tools…"""
OPERATIONS = 8  # schemathesis leaves out the description itself


class Runner(threading.Thread):
    """A gateway in an event loop of its own, because schemathesis blocks."""

    def __init__(self, home: Path) -> None:
        super().__init__(daemon=True)
        self.ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        keys = ApiKeys(home / "api-keys.json")
        self.key = keys.create("fuzzer")[1]
        config = GatewayConfig(listeners=(Listener(port=0),), require_key=True)
        self.gateway = Gateway(config, ScriptedAnswers(), lambda: MODELS, keys, lambda: NodeStatus(True), Metrics())
        self.base_url = ""

    def run(self) -> None:
        self.loop.run_until_complete(self.gateway.start())
        self.base_url = self.gateway.base_url.removesuffix("/v1")
        self.ready.set()
        self.loop.run_forever()

    def end(self) -> None:
        asyncio.run_coroutine_threadsafe(self.gateway.stop(0), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.join(10)
        self.loop.close()


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("fuzzed"))
    runner.start()
    assert runner.ready.wait(10)
    yield runner
    runner.end()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_keep_what_the_description_promises(runner: Runner, mode: GenerationMode) -> None:
    load_all_checks()
    headers = {"authorization": f"Bearer {runner.key}"}
    schema = schemathesis.openapi.from_url(runner.base_url + "/openapi.json", headers=headers)
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) == OPERATIONS
    for operation in operations:
        # A GET without parameters cannot be asked wrongly.
        if mode is GenerationMode.POSITIVE or operation.method == "post":
            _fuzz(operation, mode, headers, runner.base_url)


def _fuzz(operation: Any, mode: GenerationMode, headers: dict[str, str], base_url: str) -> None:
    try:
        strategy = operation.as_strategy(generation_mode=mode)
    except Exception as error:
        raise AssertionError(f"cannot make requests for {operation.label}") from error

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def send(case: Any) -> None:
        answer = case.call_and_validate(
            base_url=base_url, headers=headers, excluded_checks=[positive_data_acceptance], timeout=10
        )
        if mode is GenerationMode.POSITIVE and answer.status_code == 400:
            error = answer.json()["error"]
            # JSON Schema takes 5.0 for an integer; here an integer has no fraction.
            assert error["param"] in BETWEEN_FIELDS or "got `float`" in error["message"]

    send()
