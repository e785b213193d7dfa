"""The part of the operator API that is about hubs, members and the network's keys: which path is which operation."""

from collections.abc import AsyncGenerator
from typing import Protocol

from felloe.console.hub_messages import (
    ChangeStep,
    Consequence,
    HubsRequest,
    HubsView,
    KeysReplaced,
    Removal,
    RootExported,
    RootExportRequest,
    RootRotateRequest,
    RootView,
    RotateRequest,
)
from felloe.console.messages import NameRequest, Nothing
from felloe.console.operator_table import Table


class HubOperations(Protocol):
    """What an owner can see and do about the hubs and the members."""

    async def view(self) -> HubsView: ...
    async def set_wanted(self, request: HubsRequest) -> HubsView: ...
    def promote(self, request: NameRequest) -> AsyncGenerator[ChangeStep, None]: ...
    async def demotion(self, request: NameRequest) -> Consequence: ...
    def demote(self, request: NameRequest) -> AsyncGenerator[ChangeStep, None]: ...
    async def recovery(self) -> Consequence: ...
    async def recover(self, request: Nothing) -> HubsView: ...
    async def revocation(self, request: NameRequest) -> Consequence: ...
    async def revoke(self, request: NameRequest) -> Removal: ...


class RootOperations(Protocol):
    """What an owner can see and do about the network's root and signing keys."""

    async def show(self) -> RootView: ...
    async def rotate(self, request: RotateRequest) -> KeysReplaced: ...
    async def rotate_root(self, request: RootRotateRequest) -> KeysReplaced: ...
    async def export(self, request: RootExportRequest) -> RootExported: ...


def network_table(hubs: HubOperations, root: RootOperations) -> Table:
    """The paths of both."""
    return Table(
        asked={"/hubs": hubs.view, "/hubs/recovery": hubs.recovery, "/root": root.show},
        told={
            "/hubs/wanted": (HubsRequest, hubs.set_wanted),
            "/hubs/recover": (Nothing, hubs.recover),
            "/hubs/demotion": (NameRequest, hubs.demotion),
            "/members/revocation": (NameRequest, hubs.revocation),
            "/members/revoke": (NameRequest, hubs.revoke),
            "/network/rotate": (RotateRequest, root.rotate),
            "/root/rotate": (RootRotateRequest, root.rotate_root),
            "/root/export": (RootExportRequest, root.export),
        },
        followed={
            "/hubs/promote": (NameRequest, hubs.promote, ChangeStep),
            "/hubs/demote": (NameRequest, hubs.demote, ChangeStep),
        },
    )
