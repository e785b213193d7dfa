"""Every setting is checked, and what is wrong is named."""

from pathlib import Path

import pytest

from felloe.domain.errors import FelloeError
from felloe.host.budget import MemoryLimits
from felloe.node.config import ApiConfig, NodeConfig, load_config


def written(folder: Path, text: str) -> Path:
    (folder / "config.toml").write_text(text)
    return folder


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert load_config(tmp_path, {}) == NodeConfig()


def test_the_file_is_read(tmp_path: Path) -> None:
    home = written(
        tmp_path, 'name = "den"\nmodels = ["tiny-python"]\n[api]\nport = 9000\n[upstreams.o]\nurl = "http://x/v1"'
    )
    config = load_config(home, {})
    assert (config.name, config.models, config.api.port) == ("den", ("tiny-python",), 9000)
    assert config.upstreams["o"].url == "http://x/v1"


def test_the_environment_wins(tmp_path: Path) -> None:
    home = written(tmp_path, "[api]\nport = 9000")
    environment = {
        "FELLOE_HOME": "/elsewhere",
        "FELLOE_API_KEY": "for the chat command",
        "FELLOE_API_PORT": "9001",
        "FELLOE_API_REQUIRE_KEY": "true",
        "FELLOE_API_NAMES": "den, den.local",
        "FELLOE_LOG_LEVEL": "debug",
    }
    config = load_config(home, environment)
    assert config.api == ApiConfig(port=9001, require_key=True, names=("den", "den.local"))
    assert config.log_level == "debug"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[api]\nprot = 1", "prot"),
        ("[api]\nport = 'x'", "api.port"),
        ("[api]\nport = 70000", "api.port"),
        ("[api]\ntls_key = 'k.pem'", "api.tls_certificate"),
        ("naem = 'den'", "naem"),
        ("name = 'a b'", "name"),
        ("name = '../up'", "name"),
        ("log_level = 'chatty'", "log_level"),
        ("models = ['../../etc/passwd']", "models"),
        ("[engine]\nslots = 0", "engine.slots"),
        ("[engine]\nqueue = -1", "engine.queue"),
        ("[engine]\ncontext = -5", "engine.context"),
        ("[store]\nspare_copies = 0", "store.spare_copies"),
        ("[store]\nspare_copies = 1000", "store.spare_copies"),
        ("[hardware]\nram_limit = '10'", "hardware.ram_limit"),
        ("[hardware]\nram_limit = '-1GB'", "hardware.ram_limit"),
        ("[hardware]\nram_limit = 5", "hardware.ram_limit"),
        ("[hardware]\ngpu_memory_limit = '10 bananas'", "hardware.gpu_memory_limit"),
        ("[hardware]\ngpu_memory_limit = 'gpu0=1GB, 2GB'", "hardware.gpu_memory_limit"),
        ("[hardware]\ngpu_memory_limit = '1GB, 2GB'", "hardware.gpu_memory_limit"),
        ("[hardware]\ngpu_memory_limit = 'gpu0=1GB, gpu0=2GB'", "hardware.gpu_memory_limit"),
        ("[hardware]\ngpu_memory_limit = '=1GB'", "hardware.gpu_memory_limit"),
        ("[hardware]\ngpu_memory_limit = 'gpu0='", "hardware.gpu_memory_limit"),
        ("[api]\nload_wait_seconds = -1", "api.load_wait_seconds"),
        ("[api]\nload_wait_seconds = 601", "api.load_wait_seconds"),
        ("[upstreams.o]\nurl = 'file:///etc/passwd'", "upstreams.o.url"),
        ("[upstreams.o]\nurl = 'http://x'\nslots = 0", "upstreams.o.slots"),
        ("api = 3", "api"),
        ("this is no TOML", "TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(FelloeError) as wrong:
        load_config(written(tmp_path, text), {})
    assert wrong.value.code == "bad_config"
    assert named in wrong.value.detail


@pytest.mark.parametrize(
    "environment",
    [{"FELLOE_PROT": "1"}, {"FELLOE_API_PROT": "1"}, {"FELLOE_API_PORT": "many"}, {"FELLOE_UPSTREAMS": "x"}],
)
def test_a_wrong_variable_is_named(tmp_path: Path, environment: dict[str, str]) -> None:
    with pytest.raises(FelloeError) as wrong:
        load_config(tmp_path, environment)
    assert next(iter(environment)) in wrong.value.detail


def test_sources_have_mirrors_and_servers_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[sources.oci]\n"ghcr.io" = "https://mirror.example/ghcr"\n')
    environment = {
        "FELLOE_SOURCES_HUGGINGFACE": "http://hub.lan:8080",
        "FELLOE_SOURCES_ALLOW": "https://a.lan, http://b.lan:81",
        "FELLOE_REGISTRY_CREDENTIALS": "ghcr.io=user:password",
    }
    sources = load_config(tmp_path, environment).sources
    assert sources.oci == {"ghcr.io": "https://mirror.example/ghcr"}
    assert sources.huggingface == "http://hub.lan:8080"
    assert sources.allow == ("https://a.lan", "http://b.lan:81")


@pytest.mark.parametrize("url", ["hub.lan", "ftp://hub.lan", "https://user:secret@hub.lan", "https://hub.lan?x", ""])
def test_a_mirror_is_a_plain_url(tmp_path: Path, url: str) -> None:
    with pytest.raises(FelloeError) as caught:
        load_config(tmp_path, {"FELLOE_SOURCES_OLLAMA": url})
    assert (caught.value.code, "sources.ollama" in caught.value.detail) == ("bad_config", True)
    assert "secret" not in caught.value.detail


@pytest.mark.parametrize(
    ("text", "gpu"),
    [
        ("", {}),
        ("10GB", {"*": 10**10}),
        ("0", {"*": 0}),
        ("gpu0=10GB, GPU-1a2b = 12GiB,*=0", {"gpu0": 10**10, "GPU-1a2b": 12 * 2**30, "*": 0}),
    ],
)
def test_memory_can_be_limited_for_all_gpus_and_for_each(tmp_path: Path, text: str, gpu: dict[str, int]) -> None:
    written(tmp_path, f'[hardware]\ngpu_memory_limit = "{text}"')
    assert load_config(tmp_path, {}).hardware.limits() == MemoryLimits(gpu=gpu)
    environment = {"FELLOE_HARDWARE_GPU_MEMORY_LIMIT": text, "FELLOE_HARDWARE_RAM_LIMIT": "1.5 GB"}
    assert load_config(tmp_path, environment).hardware.limits() == MemoryLimits(gpu=gpu, ram=1_500_000_000)
