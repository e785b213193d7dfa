"""Forced tool calls as their JSON grows, and schemas that would hold an engine up."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felloe.domain.errors import FelloeError
from felloe.engines.schema_rules import check_schema
from felloe.engines.tool_calls import ForcedCall, Function, Tool, call_schema

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    arguments=st.dictionaries(st.text(max_size=5), VALUES, max_size=4),
    space=st.sampled_from(["", " ", "\n\n    "]),
    size=st.integers(1, 9),
)
def test_the_arguments_come_out_whole_however_the_text_is_cut(arguments: dict[str, Any], space: str, size: int) -> None:
    inner = json.dumps(arguments)
    text = f'{{{space}"name"{space}:{space}"f"{space},{space}"arguments"{space}:{space}{inner}{space}}}{space}'
    call = ForcedCall()
    out = "".join(call.feed(text[at : at + size]) for at in range(0, len(text), size)) + call.finish()
    assert call.name == "f"
    assert json.loads(out) == arguments


def test_a_call_that_is_cut_short_gives_nothing_that_closes_it() -> None:
    call = ForcedCall()
    assert call.feed('{"name": "f", "arguments": {"a": {"b": 1}') == '{"a": {"b": 1'


def _tool(name: str, parameters: dict[str, Any] | None) -> Tool:
    return Tool(type="function", function=Function(name=name, parameters=parameters))


def test_definitions_move_to_the_root_where_references_look() -> None:
    schema = call_schema([_tool("f", {"type": "object", "$defs": {"x": {"type": "string"}}})])
    assert schema["$defs"] == {"x": {"type": "string"}}
    assert "$defs" not in schema["properties"]["arguments"]


def test_two_tools_cannot_mean_different_things_by_one_definition() -> None:
    tools = [_tool("f", {"$defs": {"x": {"type": "string"}}}), _tool("g", {"$defs": {"x": {"type": "null"}}})]
    with pytest.raises(FelloeError):
        call_schema(tools)


def test_several_tools_are_alternatives() -> None:
    schema = call_schema([_tool("f", None), _tool("g", None)])
    assert [each["properties"]["name"]["const"] for each in schema["anyOf"]] == ["f", "g"]


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        _nested(100),
        {"properties": {f"p{n}": {} for n in range(2000)}},
        {"enum": [str(n) for n in range(501)]},
        {"type": "array", "minItems": 100_000_000},
        {"type": "string", "maxLength": 100_000},
        {"type": "array", "minItems": -1},
        {"type": "string", "pattern": "a" * 501},
    ],
)
def test_a_schema_that_would_hold_the_engine_up_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(FelloeError) as caught:
        check_schema(schema, "tools")
    assert (caught.value.code, caught.value.param) == ("invalid_value", "tools")


def test_an_ordinary_schema_passes() -> None:
    check_schema({"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": _nested(5)}}, "tools")
