"""What a recorded message is: how this version writes it, reads it, and what a newer one may add to it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from felloe.domain.errors import FelloeError


@dataclass(frozen=True)
class Case:
    """One kind of message.

    `grow` turns a message into one that a newer minor version may write: this version must read the same meaning in
    it. `refuse` turns it into one that must be refused, because to ignore the addition would be unsafe.
    """

    name: str
    write: Callable[[], bytes]
    read: Callable[[bytes], Any]
    grow: Callable[[bytes], bytes] | None = None
    refuse: Callable[[bytes], bytes] | None = None

    @property
    def file(self) -> str:
        return self.name if "." in self.name else f"{self.name}.bin"


def meaning(value: Any) -> Any:
    """`value` in JSON's terms, by the names of its fields; what has its default value is left out.

    So a message of a version that did not have a field means the same as one that says the field's default.
    """
    if isinstance(value, msgspec.Struct):
        fields = {field.name: field for field in msgspec.structs.fields(type(value))}
        told = {name: getattr(value, name) for name, field in fields.items() if not _is_default(value, name, field)}
        tag = type(value).__struct_config__.tag
        return ({} if tag is None else {"is": tag}) | meaning(told)
    if isinstance(value, FelloeError):
        return {"error": value.code, "detail": value.detail, "param": value.param, "retry_after": value.retry_after}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bytes):
        return f"hex {value.hex()}"
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return meaning(value._asdict())  # pyright: ignore
    if isinstance(value, list | tuple):
        return [meaning(item) for item in value]
    if isinstance(value, dict):
        return {str(key): meaning(item) for key, item in value.items()}
    assert value is None or isinstance(value, str | int | float | bool), type(value)
    return value


def _is_default(value: msgspec.Struct, name: str, field: msgspec.structs.FieldInfo) -> bool:
    if field.default is not msgspec.NODEFAULT:
        return bool(getattr(value, name) == field.default)
    if field.default_factory is not msgspec.NODEFAULT:
        return bool(getattr(value, name) == field.default_factory())  # pyright: ignore
    return False


def changed(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    """Changes a msgpack message in place, as plain lists and maps."""

    def apply(data: bytes) -> bytes:
        content = msgspec.msgpack.decode(data)
        change(content)
        return msgspec.msgpack.encode(content)

    return apply


def longer(data: bytes) -> bytes:
    """A msgpack array with further items at its end."""
    return msgspec.msgpack.encode([*msgspec.msgpack.decode(data), "new", {"more": 1}])


def more_named(data: bytes) -> bytes:
    """A msgpack map with a further field."""
    return msgspec.msgpack.encode(msgspec.msgpack.decode(data) | {"of_a_newer_version": [1]})


def more_json(data: bytes) -> bytes:
    """A JSON object with a further field."""
    return msgspec.json.encode(msgspec.json.decode(data) | {"of_a_newer_version": [1]})
