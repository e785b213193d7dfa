"""Bytes from the socket to typed bodies. Error messages name the parameter and never repeat what it held."""

import re
from typing import Any, TypeVar

import msgspec

from felloe.domain.errors import FelloeError
from felloe.gateway.requests import ChatBody, CompletionBody, EmbeddingBody, GenerationBody

Body = TypeVar("Body", ChatBody, CompletionBody, EmbeddingBody)

MOST_DEPTH = 64
_MOST_CONTAINERS = 65_536
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    body: msgspec.json.Decoder(body) for body in (ChatBody, CompletionBody, EmbeddingBody)
}
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*?)`(?: - at `(.*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"(Expected `.*)", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*?)`(?: - at `(.*)`)?")
_AT = re.compile(r" - at (?:`key` in )?`(\$[^`]*)`$")
_PARAMETER = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def decode_body(data: bytes, body_type: type[Body]) -> Body:
    """The typed body of a request.

    Raises `invalid_json`, `invalid_type`, `invalid_value`, `unknown_parameter` or `unsupported_parameter`.
    """
    try:
        data.decode()
        _check_containers(data)
        return _DECODERS[body_type].decode(data)
    except UnicodeDecodeError:
        raise FelloeError("invalid_json", "the body is not UTF-8") from None
    except RecursionError:
        raise _too_deep() from None
    except msgspec.ValidationError as error:
        raise _explained(str(error), body_type) from None
    except msgspec.DecodeError:
        raise FelloeError("invalid_json", "the body is not well-formed JSON") from None


def check_depth(value: Any, parameter: str) -> None:
    """Refuse free-form JSON that is nested deeper than engines can be expected to follow."""
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise _too_deep(parameter)


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(item.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return item if isinstance(item, list) else []  # pyright: ignore[reportUnknownVariableType]


def _check_containers(data: bytes) -> None:
    """Bound what a small body can grow to in memory: an empty list takes 2 bytes here and 64 there."""
    if data.count(b"[") + data.count(b"{") <= _MOST_CONTAINERS:
        return
    outside_strings = _STRING.sub(b"", data)
    if outside_strings.count(b"[") + outside_strings.count(b"{") > _MOST_CONTAINERS:
        raise FelloeError("invalid_value", f"the body has more than {_MOST_CONTAINERS} lists and objects")


def _too_deep(parameter: str | None = None) -> FelloeError:
    return FelloeError("invalid_value", f"the JSON is nested deeper than {MOST_DEPTH} levels", param=parameter)


def _explained(message: str, body_type: type) -> FelloeError:
    unknown = _UNKNOWN_FIELD.fullmatch(message)
    if unknown is not None:
        return _unknown_parameter(unknown[1], unknown[2])
    missing = _MISSING.fullmatch(message)
    if missing is not None:
        name = _joined(missing[2], missing[1])
        return FelloeError("invalid_value", f"`{name}` is missing", param=name)
    at = _AT.search(message)
    name = _plain(at[1]) if at is not None else None
    subject = f"`{name}`" if name else "the body"
    what = message[: at.start()] if at is not None else message
    if name is not None and _takes_only_null(name, body_type):
        return FelloeError("unsupported_parameter", f"{subject} is not supported", param=name)
    if name is not None and name.endswith("].type"):
        return FelloeError("unsupported_parameter", f"{subject} names a kind that is not supported", param=name)
    if _EXPECTED.fullmatch(what) is None:
        return FelloeError("invalid_value", f"{subject} has a value that is not one of those allowed", param=name)
    code = "invalid_type" if ", got `" in what else "invalid_value"
    return FelloeError(code, f"{subject}: {what[0].lower()}{what[1:]}", param=name)


def _unknown_parameter(field: str, path: str | None) -> FelloeError:
    """Name the parameter if it can be a name; what else a key may hold is not repeated."""
    if _PARAMETER.fullmatch(field) is None:
        return FelloeError("unknown_parameter", "the body has a parameter that is not known here")
    name = _joined(path, field)
    return FelloeError("unknown_parameter", f"`{name}` is not known", param=name)


def _takes_only_null(name: str, body_type: type) -> bool:
    return name in _ONLY_NULL[body_type]


def _only_null(body_type: type) -> frozenset[str]:
    fields = msgspec.structs.fields(body_type)
    return frozenset(field.encode_name for field in fields if field.type is type(None) or field.type is None)


_ONLY_NULL = {body: _only_null(body) for body in (ChatBody, CompletionBody, EmbeddingBody, GenerationBody)}


def _plain(path: str) -> str:
    return path.removeprefix("$").removeprefix(".")


def _joined(path: str | None, field: str) -> str:
    parent = _plain(path) if path else ""
    return f"{parent}.{field}" if parent else field
