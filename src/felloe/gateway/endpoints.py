"""What each path does."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from felloe.domain.errors import FelloeError
from felloe.domain.requests import Kind
from felloe.gateway.config import ListedModel, NodeStatus
from felloe.gateway.exchange import Exchange
from felloe.gateway.inference import Inference
from felloe.gateway.keys import Right
from felloe.gateway.metrics import Metrics
from felloe.gateway.openapi import describe

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""What needs neither key nor a local name: it tells nothing but up or down."""

INFERENCE: dict[str, Kind] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
}
"""What POST answers with inference; the front asks `Endpoints.infer` directly."""

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def needed_right(path: str) -> Right | None:
    """The right that a key must have for a path; None where any valid key will do."""
    return "inference" if path.startswith("/v1/") else None


class Endpoints:
    """The endpoints and what they read."""

    def __init__(
        self,
        inference: Inference,
        models: Callable[[], Sequence[ListedModel]],
        status: Callable[[], NodeStatus],
        metrics: Metrics,
    ) -> None:
        self._inference = inference
        self._models = models
        self._status = status
        self._metrics = metrics
        self._description: bytes | None = None

    def routes(self) -> list[BaseRoute]:
        """Paths and methods, in the order of matching."""
        return [
            *(Route(path, _take_only_post, methods=["POST"]) for path in INFERENCE),
            Route("/v1/models", self._list_models),
            Route("/v1/models/{id:path}", self._show_model),
            Route("/healthz", self._show_health),
            Route("/readyz", self._show_readiness),
            Route("/metrics", self._show_metrics),
            Route("/openapi.json", self._show_description),
        ]

    async def infer(self, kind: Kind, exchange: Exchange) -> None:
        """Answer a request for inference."""
        await self._inference.serve(kind, exchange)

    async def _list_models(self, _: Request) -> Response:
        return _json({"object": "list", "data": [_model_object(model) for model in self._models()]})

    async def _show_model(self, request: Request) -> Response:
        for model in self._models():
            if model.name == request.path_params["id"]:
                return _json(_model_object(model))
        raise FelloeError("model_not_found", "no model has this name", param="model")

    async def _show_health(self, _: Request) -> Response:
        return _json({"status": "ok"})

    async def _show_readiness(self, _: Request) -> Response:
        status = self._status()
        if status.ready:
            return _json({"status": "ready"})
        return _json({"status": "not ready", "reason": status.reason}, 503)

    async def _show_metrics(self, _: Request) -> Response:
        return Response(self._metrics.render(), media_type=_METRICS_TYPE)

    async def _show_description(self, _: Request) -> Response:
        if self._description is None:
            self._description = msgspec.json.encode(describe())
        return Response(self._description, media_type="application/json")


async def _take_only_post(_: Request) -> Response:
    """Stands for the inference paths in the router, which refuses their other methods; POST never gets here."""
    raise FelloeError("internal", "the request was not dispatched")


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _model_object(model: ListedModel) -> dict[str, Any]:
    """A model as OpenAI lists it, with what clients may want to know besides; what is not known is left out."""
    content: dict[str, Any] = {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "felloe",
        "state": model.state,
    }
    if model.context:
        content["context_window"] = model.context
    if model.capabilities:
        content["capabilities"] = model.capabilities
    return content
