"""Talks to the node that runs in the same home, over its operator socket."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec

from felloe.console.hub_messages import ChangeStep
from felloe.console.messages import DrainStep, ErrorBody, Progress
from felloe.console.model_messages import VerifyStep
from felloe.domain.errors import CATALOGUE, FelloeError
from felloe.node.config import home_folder
from felloe.node.home import Home

Reply = TypeVar("Reply")
Step = TypeVar("Step", Progress, DrainStep, ChangeStep, VerifyStep)


class OperatorClient:
    """One method per verb; raises the node's own errors, or `not_running`."""

    def __init__(self, home: Path | None = None) -> None:
        self._home = Home(home or home_folder())
        transport = httpx.HTTPTransport(uds=str(self._home.operator_socket))
        self._http = httpx.Client(transport=transport, base_url="http://felloe", timeout=httpx.Timeout(30, read=600))

    def ask(self, path: str, kind: type[Reply]) -> Reply:
        """GET `path` and decode the answer as `kind`."""
        return self._call("GET", path, None, kind)

    def tell(self, path: str, message: object, kind: type[Reply]) -> Reply:
        """POST `message` to `path` and decode the answer as `kind`."""
        return self._call("POST", path, message, kind)

    def follow(self, path: str, message: object, kind: type[Step]) -> Iterator[Step]:
        """POST `message` and yield each step of the work; a failed step is raised."""
        try:
            with self._http.stream("POST", path, content=msgspec.json.encode(message)) as response:
                if response.status_code != 200:
                    response.read()
                    raise _error_of(response)
                for line in response.iter_lines():
                    step = msgspec.json.decode(line, type=kind)
                    if step.error is not None:
                        raise FelloeError(step.error.code, step.error.detail)
                    yield step
        except httpx.TransportError as error:
            raise self._not_running() from error

    def _call(self, method: str, path: str, message: object, kind: type[Reply]) -> Reply:
        content = None if message is None else msgspec.json.encode(message)
        try:
            response = self._http.request(method, path, content=content)
        except httpx.TransportError as error:
            raise self._not_running() from error
        if response.status_code != 200:
            raise _error_of(response)
        return msgspec.json.decode(response.content, type=kind)

    def _not_running(self) -> FelloeError:
        return FelloeError("not_running", f"no node is running in {self._home.folder}")


def _error_of(response: httpx.Response) -> FelloeError:
    try:
        body = msgspec.json.decode(response.content, type=ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return FelloeError("internal", f"the node answered with status {response.status_code}")
    return FelloeError(body.code if body.code in CATALOGUE else "internal", body.detail)
