"""Tools: what may be offered, the schema that forces a call, and the arguments cut out of forced JSON as it grows."""

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta, Struct

from felloe.domain.errors import FelloeError
from felloe.domain.requests import InferenceRequest
from felloe.engines.schema_rules import check_schema


class Function(Struct, frozen=True):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    parameters: dict[str, Any] | None = None


class Tool(Struct, frozen=True):
    type: Literal["function"]
    function: Function


class _Named(Struct):
    type: Literal["function"]
    function: Function


def read_tools(tools: Sequence[dict[str, Any]]) -> list[Tool]:
    """The tools of a request, checked; raises `invalid_value` or `invalid_type`."""
    try:
        found = msgspec.convert(tools, list[Tool])
    except msgspec.ValidationError as error:
        raise FelloeError("invalid_type", str(error)[:200], param="tools") from error
    for tool in found:
        check_schema(tool.function.parameters or {}, "tools")
    return found


def forced_tools(choice: str | dict[str, Any] | None, tools: Sequence[Tool]) -> list[Tool]:
    """The tools of which one must be called; empty when the model may choose."""
    if choice in (None, "auto", "none"):
        return []
    if choice == "required":
        return list(tools)
    try:
        name = msgspec.convert(choice, _Named).function.name
    except msgspec.ValidationError as error:
        raise FelloeError(
            "invalid_value", "tool_choice is none, auto, required or one function", param="tool_choice"
        ) from error
    found = [tool for tool in tools if tool.function.name == name]
    if not found:
        raise FelloeError("invalid_value", "tool_choice names a function that is not in tools", param="tool_choice")
    return found


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """A schema that only a call of one of `tools` fulfils: the name first, then the arguments."""
    definitions: dict[str, Any] = {}
    variants: list[dict[str, Any]] = []
    for tool in tools:
        parameters = dict(tool.function.parameters or {"type": "object", "properties": {}})
        # References are relative to the root of the document, so the definitions move there.
        for place in ("$defs", "definitions"):
            for name, definition in cast(dict[str, Any], parameters.pop(place, {})).items():
                group = definitions.setdefault(place, {})
                if group.setdefault(name, definition) != definition:
                    raise FelloeError(
                        "invalid_value", "two tools define different things under one name", param="tools"
                    )
        variants.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema = variants[0] if len(variants) == 1 else {"anyOf": variants}
    return {**schema, **definitions}


def call_id(request: InferenceRequest, index: int) -> str:
    """The id of a tool call: the same on every replica, so that an answer can be replayed."""
    text = f"{request.id}\0{request.index}\0{index}".encode()
    return "call_" + hashlib.blake2b(text, digest_size=12).hexdigest()


_CALL_START = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"]*)"\s*,\s*"arguments"\s*:\s*')
_MAYBE_END = re.compile(r"[\s}]*\Z")


class ForcedCall:
    """Reads `{"name": ..., "arguments": {...}}` as it grows and gives out the arguments."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._held = ""

    def feed(self, text: str) -> str:
        """The arguments' text that is certain now. White space and braces at the end wait: one may close the call."""
        self._held += text
        if self.name is None:
            start = _CALL_START.match(self._held)
            if start is None:
                return ""
            self.name = start.group(1)
            self._held = self._held[start.end() :]
        end = _MAYBE_END.search(self._held)
        cut = end.start() if end is not None else len(self._held)
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def finish(self) -> str:
        """What was held, less the brace that closes the call."""
        return self._held.rstrip().removesuffix("}").rstrip()
