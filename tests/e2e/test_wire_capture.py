"""Neither the message server nor the wire nor any file ever holds a prompt or an answer, even at DEBUG logging.

A recorder with the hub's own certificate stands between the spokes and the message server: it sees, after TLS, exactly
what the server sees. The raw bytes of all loopback traffic are recorded too where the test may do that.
"""

import contextlib
import json
import os
import socket
import ssl
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from felloe.mesh.certificates import client_context, hub_tls_name
from felloe.mesh.trust import read
from networks import Network, NodeProcess

MARK = "zanzibar quetzal"
CONTENT = f"Write a function that returns {MARK}"
HUB = "127.0.0.2"
_READ = 65536


class Recorder:
    """A TLS relay in front of the message server that keeps every byte of both directions."""

    def __init__(self, hub: NodeProcess, port: int, issuers: str, name: str) -> None:
        self.seen: list[bytes] = []
        self._target = port
        self._name = name
        self._client = client_context(issuers)
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(hub.home.keys / "node.crt", hub.home.keys / "node.key")
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(accepted,), daemon=True).start()

    def _relay(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError):
            near = self._server.wrap_socket(accepted, server_side=True)
            far = self._client.wrap_socket(socket.create_connection((HUB, self._target)), server_hostname=self._name)
            threading.Thread(target=self._pump, args=(near, far), daemon=True).start()
            self._pump(far, near)

    def _pump(self, source: ssl.SSLSocket, sink: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(_READ):
                self.seen.append(data)
                sink.sendall(data)

    def close(self) -> None:
        self._listener.close()


class Sniffer:
    """Everything that crosses the loopback interface to or from some ports; needs the right to capture."""

    def __init__(self, ports: set[int]) -> None:
        self.seen: list[bytes] = []
        self._ports = ports
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind(("lo", 0))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while packet := self._socket.recv(_READ):
                header = 14 + (packet[14] & 15) * 4
                ends = (packet[header : header + 2], packet[header + 2 : header + 4])
                if any(int.from_bytes(end, "big") in self._ports for end in ends):
                    self.seen.append(packet)

    def close(self) -> None:
        self._socket.close()


class Relay:
    """Passes what comes for a port on to the same port of the hub's own address."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(port,), daemon=True).start()

    def _accept(self, port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection((HUB, port))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(_READ):
                sink.sendall(data)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def spied(tmp_path: Path) -> Iterator[tuple[Network, Recorder]]:
    """A network whose hub listens at another address than the one it names; in between is the recorder."""
    network = Network(tmp_path, log_level="debug")
    closers: list[Recorder | Relay] = []
    try:
        settings = tomllib.loads(network.hub.home.config.read_text())
        settings["peer"]["host"] = HUB
        network.hub.home.config.write_text(tomli_w.dumps(settings))
        network.start_hub()
        membership = json.loads((network.hub.home.state / "membership.json").read_text())
        trusted = read((network.hub.home.state / "trust.json").read_bytes())
        name = hub_tls_name(membership["network"])
        recorder = Recorder(network.hub, network.peer["mesh_port"], trusted.issuers(time.time()), name)
        closers += [recorder, Relay(network.peer["port"])]
        network.add_spoke("asking")
        network.add_serving_spoke("serving")
        yield network, recorder
    finally:
        network.close()
        for opened in closers:
            opened.close()


def ask(node: NodeProcess) -> str:
    """An answer, long enough to be recognised."""
    answer = node.client().chat.completions.create(
        model="tiny-python",
        messages=[{"role": "user", "content": CONTENT}],
        temperature=0,
        max_tokens=60,
        extra_body={"logit_bias": {"1": -100}},
    )
    return answer.choices[0].message.content or ""


def words_of(text: str) -> list[str]:
    """Pieces of a text that would give it away, the long lines first."""
    return [line.strip() for line in text.splitlines() if len(line.strip()) > 15] or [text[:40]]


def test_neither_server_nor_disk_ever_holds_the_text(spied: tuple[Network, Recorder], tmp_path: Path) -> None:
    network, recorder = spied
    answer = ask(network.nodes[1])
    assert len(answer) > 40
    secrets = [MARK, *words_of(answer)]
    server_saw = b"".join(recorder.seen)
    assert b".infer" in server_saw, "the recorder saw no request, so it proves nothing"
    for secret in secrets:
        assert secret.encode() not in server_saw
        assert json.dumps(secret)[1:-1].encode() not in server_saw
    network.close()
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file() and path.suffix != ".gguf":
            data = path.read_bytes()
            for secret in secrets:
                assert secret.encode() not in data, f"{path} holds what was said"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="capturing packets needs root on Linux")
def test_the_wire_carries_only_tls(spied: tuple[Network, Recorder]) -> None:
    network, _ = spied
    sniffer = Sniffer({network.peer["mesh_port"], network.peer["port"]})
    try:
        answer = ask(network.nodes[1])
        wire = b"".join(sniffer.seen)
    finally:
        sniffer.close()
    assert len(wire) > 10_000
    for secret in [MARK, *words_of(answer), ".infer"]:
        assert secret.encode() not in wire
