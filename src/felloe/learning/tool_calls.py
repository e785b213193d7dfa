"""Conversations in which the answer is a call of a tool, made from the signatures of functions."""

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass

from felloe.learning.corpus import Document, pick

_MOST_ARGUMENTS = 3
_ONE_FUNCTION_IN = 3
# One call of this many goes on: the tool's result comes, and is answered in words.
_RESULT_ONE_IN = 2
_VALUES = ("Oslo", "Rome", "red", "green", "report.txt", "hello", "42", "7", "name", "/tmp/data")  # noqa: S108
_QUESTIONS = (
    "Call {name} with {values}.",
    "Use {name} for {values}.",
    "{summary} Take {values}.",
    "What does {name} give for {values}?",
    "{values}?",
)


@dataclass(frozen=True)
class ToolCall:
    """One call: the tool as OpenAI clients describe it, what was asked, and the call as JSON text."""

    tool: dict[str, object]
    question: str
    call: str
    result: str
    """What the tool returned; empty where the conversation ends with the call."""


def tool_calls(document: Document) -> Iterator[ToolCall]:
    """Yield calls of the documented functions of one file; a hash of each one's place decides its form."""
    try:
        tree = ast.parse(document.text)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and pick(f"{document.path}:{node.lineno}:tool", _ONE_FUNCTION_IN) == 0:
            yield from _call(node, f"{document.path}:{node.lineno}")


def _call(node: ast.FunctionDef, key: str) -> Iterator[ToolCall]:
    summary = (ast.get_docstring(node) or "").split("\n", maxsplit=1)[0].strip()
    names = [argument.arg for argument in node.args.args if argument.arg not in ("self", "cls")]
    if not summary or not 1 <= len(names) <= _MOST_ARGUMENTS:
        return
    arguments = {name: _VALUES[pick(f"{key}:{name}", len(_VALUES))] for name in names}
    values = " and ".join(arguments.values())
    question = _QUESTIONS[pick(key + ":question", len(_QUESTIONS))]
    has_result = pick(key + ":result", _RESULT_ONE_IN) == 0
    yield ToolCall(
        tool=_description(node.name, summary, names),
        question=question.format(name=node.name, summary=summary, values=values),
        call=json.dumps({"name": node.name, "arguments": arguments}),
        result=_VALUES[pick(key + ":value", len(_VALUES))] if has_result else "",
    )


def _description(name: str, summary: str, arguments: list[str]) -> dict[str, object]:
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string"} for argument in arguments},
        "required": arguments,
    }
    return {"type": "function", "function": {"name": name, "description": summary, "parameters": parameters}}
