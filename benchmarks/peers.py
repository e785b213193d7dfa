"""The gateways that Felloe is compared with: in environments of their own, with settings tuned for speed.

`python benchmarks/peers.py [FOLDER]` installs them (default: ~/.cache/felloe-peers). nginx comes from the system's
packages (Debian: apt-get install nginx-light).
"""

import contextlib
import http.client
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from native import Target, Watched, server, wait_until

DEFAULT_FOLDER = Path(os.environ.get("FELLOE_PEERS", "~/.cache/felloe-peers")).expanduser()
# LiteLLM tries the import of opentelemetry again on every request when it is missing.
PACKAGES = {
    "vllm-router": ["vllm-router"],
    "litellm": ["litellm[proxy]", "opentelemetry-sdk", "opentelemetry-exporter-otlp"],
}

NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_body_buffer_size 1m;
    keepalive_requests 1000000;
    upstream engine {{ server {engine}; keepalive 1024; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""

LITELLM = """
model_list:
  - model_name: fake
    litellm_params:
      model: openai/fake
      api_base: {engine}/v1
      api_key: none
litellm_settings:
  drop_params: true
  telemetry: false
  callbacks: []
general_settings:
  disable_spend_logs: true
"""


class Missing(Exception):
    """The peer is not installed."""


class Peer(NamedTuple):
    """`start(engine, folder)` runs it before the engine at that URL."""

    name: str
    start: Callable[[str, Path], contextlib.AbstractContextManager[Target]]


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(url: str) -> bool:
    """Whether `url` gives a 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except (OSError, http.client.HTTPException):
        return False


def _tool(folder: Path, peer: str, command: str) -> str:
    path = folder / peer / "bin" / command
    if not path.exists():
        raise Missing(f"skipped: not installed in {folder}; run `python benchmarks/peers.py`")
    return str(path)


def version(folder: Path, peer: str) -> str:
    """The installed version of a peer from the package index."""
    python = folder / peer / "bin/python"
    program = f"from importlib.metadata import version; print(version({peer!r}))"
    return subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def nginx(engine: str, _folder: Path) -> Iterator[Target]:
    """nginx as a reverse proxy: one worker, kept-alive connections on both sides, no buffering."""
    binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        raise Missing("skipped: not installed")
    port = free_port()
    label = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stderr.rsplit("/", 1)[-1].strip()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, engine=engine.removeprefix("http://"), port=port))
        with server("nginx", [binary, "-e", f"{folder}/error.log", "-c", str(config)]) as process:
            url = f"http://127.0.0.1:{port}"
            wait_until("nginx", lambda: answers(f"{url}/v1/models"), process=process)
            yield Target(f"nginx {label}", url, (Watched("gateway", process.pid),))


@contextlib.contextmanager
def vllm_router(engine: str, folder: Path) -> Iterator[Target]:
    """The Rust router of the vLLM project, round robin over one worker, quiet, unlimited for this load."""
    command, port = _tool(folder, "vllm-router", "vllm-router"), free_port()
    arguments = [command, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", engine]
    arguments += ["--policy", "round_robin", "--log-level", "error", "--max-concurrent-requests", "8192"]
    arguments += ["--prometheus-port", str(free_port()), "--disable-retries", "--disable-circuit-breaker"]
    with server("vllm-router", arguments) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until("vllm-router", lambda: answers(f"{url}/v1/models"), process=process)
        yield Target(f"vllm-router {version(folder, 'vllm-router')}", url, (Watched("gateway", process.pid),))


@contextlib.contextmanager
def litellm(engine: str, folder: Path) -> Iterator[Target]:
    """LiteLLM's proxy: one worker on uvloop, the master key that it insists on, no logs, no data base, no look-ups."""
    command, port = _tool(folder, "litellm", "litellm"), free_port()
    key = f"sk-{secrets.token_hex(32)}"
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
    environment["LITELLM_MASTER_KEY"] = key
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "config.yaml"
        config.write_text(LITELLM.format(engine=engine))
        arguments = [command, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        with server("litellm", arguments, environment=environment, folder=Path(scratch)) as process:
            url = f"http://127.0.0.1:{port}"
            wait_until("litellm", lambda: answers(f"{url}/health/liveliness"), process=process, seconds=120)
            headers = (f"Authorization: Bearer {key}",)
            yield Target(f"LiteLLM {version(folder, 'litellm')}", url, (Watched("gateway", process.pid),), headers)


PEERS = (Peer("nginx", nginx), Peer("vllm-router", vllm_router), Peer("LiteLLM", litellm))


def install(folder: Path) -> None:
    """Build one environment for each peer from the package index; the newest versions, so name them in every table."""
    for name, packages in PACKAGES.items():
        environment = folder / name
        if not (environment / "bin/python").exists():
            subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(environment / "bin/python"), "-m", "pip", "install", "--quiet", *packages], check=True)
        print(f"{name} {version(folder, name)} in {environment}")


if __name__ == "__main__":
    install(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER)
