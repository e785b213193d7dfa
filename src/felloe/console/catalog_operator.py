"""The part of the operator API that is about approvals and curators: which path is which operation."""

from typing import Protocol

from felloe.console.catalog_messages import (
    CatalogEntry,
    CatalogRow,
    CatalogView,
    CuratorKey,
    CuratorRequest,
    CuratorsView,
    Decided,
    DecideRequest,
    DecisionRow,
)
from felloe.console.messages import NameRequest
from felloe.console.operator_table import Table


class CatalogOperations(Protocol):
    """What an owner can see and do about approvals. Models are named by name or by the beginning of a content id."""

    async def view(self) -> CatalogView: ...
    async def log(self) -> list[DecisionRow]: ...
    async def show(self, request: NameRequest) -> CatalogEntry: ...
    async def publish(self, request: NameRequest) -> CatalogRow: ...
    async def decide(self, request: DecideRequest) -> Decided: ...
    async def curators(self) -> CuratorsView: ...
    async def curator_key(self, request: NameRequest) -> CuratorKey: ...
    async def change_curators(self, request: CuratorRequest) -> Decided: ...


def catalog_table(catalog: CatalogOperations) -> Table:
    """The paths."""
    return Table(
        asked={"/catalog": catalog.view, "/catalog/log": catalog.log, "/curators": catalog.curators},
        told={
            "/catalog/show": (NameRequest, catalog.show),
            "/catalog/publish": (NameRequest, catalog.publish),
            "/catalog/decide": (DecideRequest, catalog.decide),
            "/curators/key": (NameRequest, catalog.curator_key),
            "/curators/change": (CuratorRequest, catalog.change_curators),
        },
        followed={},
    )
