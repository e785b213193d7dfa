"""The OpenAPI 3.1 description of what this gateway really takes and gives, made from the types that it decodes with."""

from typing import Any

import msgspec

from felloe import __version__
from felloe.gateway.requests import MOST_INPUTS, MOST_PROMPTS, ChatBody, CompletionBody, EmbeddingBody

_REF = "#/components/schemas/{name}"
_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}


def describe() -> dict[str, Any]:
    """The whole description, ready to be encoded as JSON."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Felloe",
            "version": __version__,
            "description": "OpenAI-compatible API of a Felloe node. Each parameter's treatment: docs/api.md.",
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": _request_schemas() | _answer_schemas(),
        },
        # A key is optional on loopback, which OpenAPI writes as an empty requirement.
        "security": [{"key": []}, {}],
        "paths": _paths(),
    }


def _paths() -> dict[str, Any]:
    model_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    ready = {"type": "object", "required": ["status"], "properties": {"status": _TEXT, "reason": _TEXT}}
    return {
        "/v1/chat/completions": _inference("ChatBody", "ChatCompletion", "Answer a conversation", streams=True),
        "/v1/completions": _inference("CompletionBody", "Completion", "Continue a text", streams=True),
        "/v1/embeddings": _inference("EmbeddingBody", "Embeddings", "Turn texts into vectors", streams=False),
        "/v1/models": _get("List the models", {"application/json": {"schema": _ref("ModelList")}}),
        "/v1/models/{id}": {
            "parameters": [model_id],
            **_get("Show a model", {"application/json": {"schema": _ref("Model")}}),
        },
        "/healthz": _get("Is the process up", {"application/json": {"schema": ready}}, security=[]),
        "/readyz": _get(
            "Can it answer now",
            {"application/json": {"schema": ready}},
            security=[],
            more={"503": {"description": "Not now", "content": {"application/json": {"schema": ready}}}},
        ),
        "/metrics": _get("Counters as Prometheus text", {"text/plain": {"schema": _TEXT}}),
        "/openapi.json": _get("This description", {"application/json": {"schema": {"type": "object"}}}),
    }


def _inference(body: str, answer: str, summary: str, *, streams: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _ref(answer)}}
    if streams:
        content["text/event-stream"] = {}
    reach = {
        "name": "x-felloe-reach",
        "in": "header",
        "description": "How far the request may travel; never farther than the node's policy.",
        "schema": {"enum": ["device", "network", "market"]},
    }
    wait = {
        "name": "prefer",
        "in": "header",
        "description": "`wait=N` (RFC 7240): seconds to wait while the model is being loaded.",
        "schema": _TEXT,
    }
    return {
        "post": {
            "summary": summary,
            "parameters": [reach, wait],
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
            "responses": _responses(content),
        }
    }


def _get(
    summary: str,
    content: dict[str, Any],
    *,
    security: list[Any] | None = None,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": _responses(content) | (more or {})}
    if security is not None:
        operation["security"] = security
    return {"get": operation}


def _responses(content: dict[str, Any]) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": _ref("Error")}}}
    return {
        "200": {"description": "The answer", "content": content},
        "4XX": {"description": "The request is at fault", **error},
        "5XX": {"description": "The node, the network or an upstream server is at fault", **error},
    }


def _request_schemas() -> dict[str, Any]:
    _, schemas = msgspec.json.schema_components([ChatBody, CompletionBody, EmbeddingBody], ref_template=_REF)
    schemas["CompletionBody"]["properties"]["prompt"] = _texts(MOST_PROMPTS, least_text=0)
    schemas["EmbeddingBody"]["properties"]["input"] = _texts(MOST_INPUTS, least_text=1)
    return schemas


def _texts(most: int, least_text: int) -> dict[str, Any]:
    text = {"type": "string", "minLength": least_text}
    token = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
    tokens = {"type": "array", "items": token, "minItems": 1}
    lists = {"type": "array", "minItems": 1, "maxItems": most}
    return {"anyOf": [text, lists | {"items": text}, tokens, lists | {"items": tokens}]}


def _answer_schemas() -> dict[str, Any]:
    maybe_text = {"type": ["string", "null"]}
    usage = _object(prompt_tokens=_COUNT, total_tokens=_COUNT)
    message = _object(role={"const": "assistant"}, content=maybe_text, refusal=maybe_text)
    choice = {"index": _COUNT, "finish_reason": maybe_text, "logprobs": {"type": ["object", "null"]}}
    head = {"id": _TEXT, "created": _COUNT, "model": _TEXT, "usage": usage}
    vector = {"anyOf": [{"type": "array", "items": {"type": "number"}}, _TEXT]}
    embedding = _object(object={"const": "embedding"}, index=_COUNT, embedding=vector)
    error = _object(message=_TEXT, type=_TEXT, param=maybe_text, code=_TEXT)
    state = {"enum": ["ready", "loading", "cold"]}
    model = _object(id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT, state=state)
    return {
        "ChatCompletion": _object(
            **head, object={"const": "chat.completion"}, choices=_array(_object(**choice, message=message))
        ),
        "Completion": _object(
            **head, object={"const": "text_completion"}, choices=_array(_object(**choice, text=_TEXT))
        ),
        "Embeddings": _object(object={"const": "list"}, data=_array(embedding), model=_TEXT, usage=usage),
        "Model": model,
        "ModelList": _object(object={"const": "list"}, data=_array(_ref("Model"))),
        "Error": _object(error=error),
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(name=name)}
