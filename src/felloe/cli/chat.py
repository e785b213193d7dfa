"""`felloe chat`"""

import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import msgspec
import typer

from felloe.cli.client import OperatorClient
from felloe.cli.output import say
from felloe.console.messages import Status
from felloe.console.model_messages import ModelRow
from felloe.domain.errors import CATALOGUE, FelloeError


def chat(
    model: Annotated[str, typer.Argument(help="Default: the only model there is.")] = "",
    prompt: Annotated[str, typer.Argument(help="Ask this and end; without it, talk line by line.")] = "",
    temperature: Annotated[float | None, typer.Option(help="0 always gives the same answer.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 512,
) -> None:
    """Talk to a model of the network through this node. FELLOE_API_KEY is sent when it is set."""
    client = OperatorClient()
    settings: dict[str, Any] = {"model": model or _only_model(client), "stream": True, "max_tokens": max_tokens}
    if temperature is not None:
        settings["temperature"] = temperature
    base_url = client.ask("/status", Status).base_url
    messages: list[dict[str, str]] = []
    for question in [prompt] if prompt else _questions():
        messages.append({"role": "user", "content": question})
        answer = ""
        for text in _answer(base_url, {**settings, "messages": messages}):
            answer += text
            sys.stdout.write(text)
            sys.stdout.flush()
        say("")
        messages.append({"role": "assistant", "content": answer})


def _only_model(client: OperatorClient) -> str:
    names = [row.model.name for row in client.ask("/models", list[ModelRow]) if row.replicas]
    if len(names) != 1:
        raise FelloeError("invalid_value", f"name a model: {', '.join(names) or 'none is loaded'}")
    return names[0]


def _questions() -> Iterator[str]:
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            say("")
            return
        if line:
            yield line


def _answer(base_url: str, body: dict[str, Any]) -> Iterator[str]:
    key = os.environ.get("FELLOE_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.stream("POST", f"{base_url}/chat/completions", json=body, headers=headers, timeout=600) as response:
            if response.status_code != 200:
                response.read()
                raise _error_of(msgspec.json.decode(response.content))
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    yield _text_of(msgspec.json.decode(line[6:]))
    except httpx.TransportError as error:
        raise FelloeError("not_running", f"the node's API at {base_url} broke off: {error}") from error


def _text_of(event: dict[str, Any]) -> str:
    if "error" in event:
        raise _error_of(event)
    choices: list[dict[str, Any]] = event.get("choices") or [{}]
    delta: dict[str, Any] = choices[0].get("delta", {})
    return str(delta.get("content") or "")


def _error_of(body: dict[str, Any]) -> FelloeError:
    error = body.get("error", {})
    code = error.get("code")
    return FelloeError(code if code in CATALOGUE else "internal", str(error.get("message", "no reason given")))
