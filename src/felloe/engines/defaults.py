"""What a model's maker chose for requests that say nothing: how to sample, where to stop, a system message."""

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from felloe.domain.manifest import Parameter
from felloe.domain.requests import InferenceRequest
from felloe.engines.llama_request import Sampling

_SYSTEM, _LIMITS = "system", ("max_tokens", "max_completion_tokens")
_OTHER_NAMES = {"num_predict": "max_tokens"}


def usable_defaults(found: Mapping[str, Parameter], context: int) -> dict[str, Any]:
    """Of a manifest's defaults those that a request could name, by the names that requests use.

    What means nothing here, or is out of range, is left out: a source may tell anything. `context` is a slot's, in
    tokens; a longer answer than it holds is no default.
    """
    usable: dict[str, Any] = {}
    for name, value in found.items():
        name = _OTHER_NAMES.get(name, name)
        told = list(value) if isinstance(value, tuple) else value
        if (name == _SYSTEM and isinstance(told, str)) or _is_taken(name, told):
            usable[name] = told
    if usable.get("max_tokens", 0) > context:
        del usable["max_tokens"]
    return usable


def _is_taken(name: str, value: object) -> bool:
    if name not in Sampling.__struct_fields__:
        return False
    try:
        msgspec.convert({name: value}, Sampling)
    except msgspec.ValidationError:
        return False
    return True


def completed(request: InferenceRequest, defaults: Mapping[str, Any]) -> InferenceRequest:
    """The request with the defaults for all that it leaves open; null leaves open, too."""
    if not defaults or request.kind == "embedding":
        return request
    body = dict(request.body)
    for name, value in defaults.items():
        if name == _SYSTEM:
            if request.kind == "chat":
                body["messages"] = _with_system(body.get("messages"), value)
        elif all(body.get(one) is None for one in (_LIMITS if name in _LIMITS else (name,))):
            body[name] = value
    return msgspec.structs.replace(request, body=body)


def _with_system(messages: Any, text: str) -> Any:
    """What is no list of messages is refused by whoever reads it."""
    if not isinstance(messages, list):
        return messages
    told = cast("list[Any]", messages)
    if any(isinstance(one, dict) and one.get("role") in ("system", "developer") for one in told):  # pyright: ignore[reportUnknownMemberType]
        return told
    return [{"role": "system", "content": text}, *told]
