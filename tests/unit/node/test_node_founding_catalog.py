"""A new network has its owner as the one curator, and a catalogue that every later node can be sure of."""

from pathlib import Path

from felloe.catalog.approval.curator_key import CuratorKey
from felloe.catalog.approval.metadata import pin_of
from felloe.catalog.approval.trusted import TrustedCatalog
from felloe.domain.approval import Bundle
from felloe.hubs.records import CATALOG
from felloe.hubs.saved_state import SAVED_NAME, read_saved
from felloe.node.config import NodeConfig
from felloe.node.founding import found_network
from felloe.node.home import Home
from felloe.node.network_files import NetworkFiles


async def test_the_founder_is_the_curator_and_the_trust_list_names_the_catalogue(tmp_path: Path):
    home = Home(tmp_path / "home")
    home.prepare()
    files = NetworkFiles(home)
    found_network(files, NodeConfig(), "attic")
    trust, curator = files.trust(), CuratorKey.load(files.curator_key_path)
    saved = read_saved(files.read_state(SAVED_NAME), home.state / SAVED_NAME)
    assert trust is not None and curator is not None and saved is not None
    value = saved.entries[CATALOG].value
    assert value is not None
    bundle = Bundle.decode(value)
    assert trust.catalog == pin_of(bundle)
    catalog = TrustedCatalog(tmp_path / "catalog", trust.catalog)
    catalog.open()
    approvals = await catalog.take(bundle)
    (only,) = approvals.curators
    assert (only.name, only.key, approvals.threshold) == ("attic", curator.public_key, 1)
    assert not approvals.approved
