"""One network for all tests that do not break it: a hub, two serving spokes, a spoke without a model."""

from collections.abc import Iterator

import pytest

from networks import Network, wait_for


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    built = Network(tmp_path_factory.mktemp("network"))
    try:
        built.start_hub()
        built.add_spoke("empty")
        built.add_serving_spoke("serving-a")
        built.add_serving_spoke("serving-b")
        everyone = {node.name for node in built.nodes}
        wait_for("all to see all", lambda: all(node.sees(alive=everyone) for node in built.nodes))
        yield built
    finally:
        built.close()


@pytest.fixture
def own_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A network that the test may break; its hub is up."""
    built = Network(tmp_path_factory.mktemp("own"))
    try:
        yield built.start_hub()
    finally:
        built.close()
