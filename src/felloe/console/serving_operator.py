"""The part of the operator API that is about what the network serves: which path is which operation."""

from typing import Protocol

from felloe.console.messages import NameRequest, Nothing
from felloe.console.operator_table import Table
from felloe.console.serving_messages import Declared, PlanView, ServingView
from felloe.domain.plan import DesiredModel


class ServingOperations(Protocol):
    """What an owner can see and do about the models that the network serves."""

    async def view(self) -> ServingView: ...
    async def plan(self) -> PlanView: ...
    async def declare(self, desired: DesiredModel) -> Declared: ...
    async def retire(self, request: NameRequest) -> Nothing: ...


def serving_table(serving: ServingOperations) -> Table:
    """The paths."""
    return Table(
        asked={"/serving": serving.view, "/plan": serving.plan},
        told={
            "/serving/declare": (DesiredModel, serving.declare),
            "/serving/retire": (NameRequest, serving.retire),
        },
        followed={},
    )
