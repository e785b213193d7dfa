"""Conversations made from source files: a question about a function, and its code or its description."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from felloe.learning.corpus import Document, pick

_SHORTEST_CODE = 160
_LONGEST_CODE = 1600
_SHORTEST_PROSE = 120
_LONGEST_PROSE = 1200
_HEAD_LINES = 3
# One conversation of this many starts with a system message, and one of this many has a second turn.
_SYSTEM_ONE_IN = 8
_SECOND_TURN_ONE_IN = 8
_SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "You write Python code.",
    "You are a programmer who answers with code.",
)
_CODE_QUESTIONS = (
    "Write {name}: {summary}",
    "Write a function {name}: {summary}",
    "Write a Python function: {summary}",
    "Write a function that does this: {summary}",
    "{summary}",
    "Show me the code of {name}.",
    "How do I write {name} in Python?",
    "Complete this code:\n{head}",
)
_PROSE_QUESTIONS = (
    "What is {name}?",
    "What does {name} do?",
    "Explain {name}.",
    "Tell me about {name}.",
    "How does {name} work?",
    "Why would I use {name}?",
)
# Summaries that start so turn into "Write a function that returns ...".
_VERBS = frozenset(
    {"add", "build", "call", "check", "close", "compute", "convert", "copy", "create", "decode", "delete"}
    | {"encode", "find", "format", "get", "join", "list", "load", "make", "open", "parse", "print", "raise"}
    | {"read", "remove", "replace", "return", "run", "save", "search", "send", "set", "split", "start"}
    | {"stop", "test", "update", "wait", "write"}
)


_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Documented = ast.Module | ast.ClassDef | _Function


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """A chat to train on; `system` is empty where it has no system message."""

    system: str
    turns: tuple[Turn, ...]


def conversations(document: Document) -> Iterator[Conversation]:
    """Yield the conversations of one file; which form each takes follows from a hash of its place."""
    turns = list(_turns(document))
    for number, turn in enumerate(turns):
        key = f"{document.path}:{number}"
        system = ""
        if pick(key + ":system", _SYSTEM_ONE_IN) == 0:
            system = _SYSTEM_TEXTS[pick(key + ":text", len(_SYSTEM_TEXTS))]
        yield Conversation(system, (turn,))
    for number, pair in enumerate(pairwise(turns)):
        if pick(f"{document.path}:{number}:pair", _SECOND_TURN_ONE_IN) == 0:
            yield Conversation("", pair)


def _turns(document: Document) -> Iterator[Turn]:
    try:
        tree = ast.parse(document.text)
    except SyntaxError:
        return
    # Not splitlines(): the parser counts no line at a form feed, which the library uses.
    lines = document.text.split("\n")
    module = document.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    yield from _described(tree, f"the module {module}", document.path)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from _described(node, f"the class {node.name}", document.path)
        elif isinstance(node, _Function):
            yield from _described(node, node.name, document.path)
            yield from _coded(node, lines, document.path)


def _described(node: _Documented, name: str, path: str) -> Iterator[Turn]:
    prose = ast.get_docstring(node) or ""
    if _SHORTEST_PROSE <= len(prose) <= _LONGEST_PROSE:
        question = _PROSE_QUESTIONS[pick(f"{path}:{name}:prose", len(_PROSE_QUESTIONS))]
        yield Turn(question.format(name=name), prose)


def _coded(node: _Function, lines: list[str], path: str) -> Iterator[Turn]:
    documentation = ast.get_docstring(node)
    code = _source(node, lines)
    if not documentation or not _SHORTEST_CODE <= len(code) <= _LONGEST_CODE:
        return
    summary = documentation.split("\n", maxsplit=1)[0].strip()
    first_word, _, rest = summary.partition(" ")
    key = f"{path}:{node.lineno}:code"
    if first_word.lower() in _VERBS and pick(key + ":verb", 2) == 0:
        yield Turn(f"Write a function that {_third_person(first_word.lower())} {rest}", code)
        return
    head = "\n".join(code.split("\n")[:_HEAD_LINES])
    question = _CODE_QUESTIONS[pick(key, len(_CODE_QUESTIONS))]
    yield Turn(question.format(name=node.name, summary=summary, head=head), code)


def _third_person(verb: str) -> str:
    if verb.endswith(("s", "sh", "ch", "x")):
        return verb + "es"
    return verb[:-1] + "ies" if verb.endswith("py") else verb + "s"


def _source(node: _Function, lines: list[str]) -> str:
    # `ast.get_source_segment` splits the whole file again for each node, which takes minutes here.
    taken = lines[node.lineno - 1 : node.end_lineno]
    indent = " " * node.col_offset
    return "\n".join(line.removeprefix(indent) for line in taken)
