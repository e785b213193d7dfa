"""The part of the operator API that is about the models in this node's store: which path is which operation."""

from collections.abc import AsyncGenerator
from typing import Protocol

from felloe.console.messages import NameRequest, Nothing
from felloe.console.model_messages import CleanedRow, ModelRow, VerifyStep
from felloe.console.operator_table import Table
from felloe.placement.shape import Shape


class ModelOperations(Protocol):
    """What an owner can see and do about stored models. An empty name means all where that makes sense."""

    async def list(self) -> list[ModelRow]: ...
    async def remove(self, request: NameRequest) -> Nothing: ...
    async def pin(self, request: NameRequest) -> Nothing: ...
    async def unpin(self, request: NameRequest) -> Nothing: ...
    async def clean(self, request: Nothing) -> CleanedRow: ...
    async def shape(self, request: NameRequest) -> Shape: ...
    def verify(self, request: NameRequest) -> AsyncGenerator[VerifyStep, None]: ...


def model_table(models: ModelOperations) -> Table:
    """The paths."""
    return Table(
        asked={"/models": models.list},
        told={
            "/models/remove": (NameRequest, models.remove),
            "/models/pin": (NameRequest, models.pin),
            "/models/unpin": (NameRequest, models.unpin),
            "/models/clean": (Nothing, models.clean),
            "/models/shape": (NameRequest, models.shape),
        },
        followed={"/models/verify": (NameRequest, models.verify, VerifyStep)},
    )
