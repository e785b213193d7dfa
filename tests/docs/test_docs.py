"""The pages tell the truth about paths, commands, targets, settings and error codes."""

import re
from pathlib import Path

import pytest
import typer

from felloe.catalog.sources.settings import SourceSettings
from felloe.cli.main import create_app
from felloe.domain.errors import CATALOGUE
from felloe.node.config import (
    ApiConfig,
    CatalogConfig,
    EngineConfig,
    HardwareConfig,
    NodeConfig,
    PeerConfig,
    StoreConfig,
    TransferConfig,
    UpstreamConfig,
)

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("models/**/*.md")])
OURS = ("src/", "docs/", "tests/", "benchmarks/", "models/", "requirements/", "examples/", "contracts/", ".ci/")


def commands() -> dict[str, set[str]]:
    """Every command with its subcommands."""
    group = typer.main.get_command(create_app())
    found = getattr(group, "commands", {})
    return {name: set(getattr(command, "commands", {})) for name, command in found.items()}


def targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_paths_exist(page: Path) -> None:
    for path in re.findall(r"`([A-Za-z0-9._/-]+)`", page.read_text()):
        if path.startswith(OURS):
            assert (ROOT / path).exists(), path


def test_commands_exist(page: Path) -> None:
    known = commands()
    if page.name.startswith("protocol-"):
        return  # these name byte strings that begin with `felloe`, and no commands
    for line in re.findall(r"`felloe ([a-z][^`]*)`|^\s*felloe ([a-z].*)$", page.read_text(), re.MULTILINE):
        words = re.sub(r"[|,].*", "", line[0] or line[1]).split()
        assert words[0] in known, words
        if len(words) > 1 and known[words[0]] and re.fullmatch(r"[a-z]+", words[1]):
            assert words[1] in known[words[0]], words


def test_targets_exist(page: Path) -> None:
    known = targets()
    for target in re.findall(r"`make ([a-z0-9-]+)`", page.read_text()):
        assert target in known, target


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in commands() if f"`felloe {name}`" not in text] == []


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    sections = {"": NodeConfig, "api.": ApiConfig, "peer.": PeerConfig, "engine.": EngineConfig, "store.": StoreConfig}
    sections["sources."] = SourceSettings
    sections["transfer."] = TransferConfig
    sections["catalog."] = CatalogConfig
    sections["hardware."] = HardwareConfig
    settings = [prefix + name for prefix, kind in sections.items() for name in kind.__struct_fields__]
    settings += [f"upstreams.NAME.{name}" for name in UpstreamConfig.__struct_fields__]
    missing = [name for name in settings if f"`{name}`" not in text]
    tables = {prefix.rstrip(".") for prefix in sections} | {"upstreams"}
    assert [name for name in missing if name not in tables] == []


def test_every_error_code_says_what_to_do_next() -> None:
    for code, spec in CATALOGUE.items():
        assert re.fullmatch(r"[a-z_]+", code)
        assert spec.next_step.endswith("."), code
        assert 400 <= spec.status <= 599, code
