"""What an owner sees and does about the network's root and signing keys, carried out on the parts of a running node.

New keys are stored here first, then told to every node, then used: nodes must believe a new issuer before they meet its
certificates, and nothing may be believed whose keys could still be lost.
"""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from felloe.console.hub_messages import (
    KeysReplaced,
    RootExported,
    RootExportRequest,
    RootRotateRequest,
    RootView,
    RotateRequest,
    SealedRoot,
    TrustedRow,
)
from felloe.domain.errors import FelloeError
from felloe.host.files import write_new
from felloe.hubs.records import State
from felloe.hubs.topics import TRUST
from felloe.mesh.root_key import RootKey
from felloe.mesh.rotation import Keys, rotate, rotate_root
from felloe.mesh.trust import Trust, Trusted, read
from felloe.node.hub import Hub
from felloe.node.hub_operations import HubOperations
from felloe.node.network_files import NetworkFiles

if TYPE_CHECKING:
    from felloe.node.node import Node

EXPORT_NOTE = "root-export.json"
_SPREAD_SECONDS = 3.0
_LARGEST_FILE = 32 << 10


class ExportNote(Struct, frozen=True):
    """That this machine once exported the root with this pin (hexadecimal); `at` in Unix seconds."""

    pin: str
    at: float


class Overtaken(FelloeError):
    """Another hub replaced the keys at the same time, so these were told to nobody."""

    def __init__(self) -> None:
        super().__init__(
            "forbidden", "the keys were replaced on another hub at the same time; look at `felloe root show`"
        )


class RootOperations:
    """Implements the console's `RootOperations` for one node."""

    def __init__(self, node: "Node", hubs: HubOperations) -> None:
        self._node = node
        self._hubs = hubs
        self._replacing = asyncio.Lock()
        self._heard = asyncio.Event()
        node.identity.on_trust(self._heard.set)

    async def show(self) -> RootView:
        """The root, and who may issue."""
        identity = self._node.identity
        trust, now = identity.trust, time.time()
        note = export_note(identity.files)
        return RootView(
            network=trust.network,
            pin=trust.pin.hex(),
            here=identity.files.root() is not None,
            exported_at=note.at if note is not None and note.pin == trust.pin.hex() else 0.0,
            version=trust.version,
            roots=tuple(_row(root) for root in trust.list.roots if root.holds(now)),
            issuers=tuple(_row(issuer) for issuer in trust.list.issuers if issuer.holds(now)),
        )

    async def export(self, request: RootExportRequest) -> RootExported:
        """Write the root, encrypted, to a new file; with `remove` forget it here once the file is seen to open.

        To remove it, a file that it was exported to before will do. Raises `wrong_node` where the root is not kept,
        `invalid_value` for the path or the passphrase, `bad_passphrase`, `disk_full`.
        """
        async with self._replacing:
            root = await self._root(None)
            if request.remove and await asyncio.to_thread(Path(request.path).exists):
                await self._check_export(root, Path(request.path), request.passphrase)
            else:
                await self._write(root, request.path, request.passphrase)
            if request.remove:
                self._node.identity.files.forget_root()
        return RootExported(request.path, root.pin.hex(), request.remove)

    async def rotate(self, request: RotateRequest) -> KeysReplaced:
        """New signing keys of the same root, in use when this returns.

        Raises `wrong_node` on a spoke or without the root, `bad_passphrase`, what `rotation.rotate` raises, and
        `network_unreachable` when the hubs that keep the state do not answer.
        """
        hub = self._hubs.acting_hub("the network's signing keys are replaced")
        async with self._replacing:
            old = await self._old_keys(hub, request.root)
            new = rotate(old, time.time(), request.overlap_seconds)
            here = hub.identity.files.root() is not None
            await self._replace(hub, old, new, keep_root=here)
            return _replaced(new, request.overlap_seconds, here=here)

    async def rotate_root(self, request: RootRotateRequest) -> KeysReplaced:
        """A new root and new signing keys. The new root stays on this machine where the old one was; see `rotate`.

        Without an overlap open invitations are withdrawn: who has the old root can pose as a hub to whoever still uses
        a token of it, and so come to know the token's secret.
        """
        hub = self._hubs.acting_hub("the network's root is replaced")
        async with self._replacing:
            here = hub.identity.files.root() is not None
            if not here and not request.export_path:
                raise FelloeError(
                    "invalid_value", "the root is not kept on this machine; name a file for the new one with --export"
                )
            old = await self._old_keys(hub, request.root)
            new = rotate_root(old, time.time(), request.overlap_seconds)
            if request.export_path:
                await self._write(new.root, request.export_path, request.export_passphrase)
            try:
                await self._replace(hub, old, new, keep_root=here)
            except Overtaken:
                if request.export_path:
                    await asyncio.to_thread(Path(request.export_path).unlink, missing_ok=True)
                raise
            withdrawn = 0 if request.overlap_seconds else await hub.invitations.withdraw_open(time.time())
            replaced = _replaced(new, request.overlap_seconds, here=here)
            return msgspec.structs.replace(replaced, exported=request.export_path, withdrawn=withdrawn)

    async def _old_keys(self, hub: Hub, sealed: SealedRoot | None) -> Keys:
        """What is to be replaced. The state must take writes: from here on nothing should fail half-way."""
        authority, trust = hub.authority, hub.identity.trust
        if authority.version != trust.version:
            raise FelloeError(
                "overloaded", "this hub has not got the newest signing keys yet; try again in a moment", retry_after=5.0
            )
        if not await hub.state.generations.is_well():
            raise FelloeError("network_unreachable", "the hubs that keep the network's state do not answer")
        return Keys(await self._root(sealed), authority, trust)

    async def _root(self, sealed: SealedRoot | None) -> RootKey:
        if sealed is not None:
            return await asyncio.to_thread(RootKey.load, sealed.data, sealed.passphrase)
        root = self._node.identity.files.root()
        if root is None:
            raise FelloeError(
                "wrong_node",
                "the network's root key is not on this machine; name the exported file with --root, "
                "or run it where the key is",
            )
        return root

    async def _replace(self, hub: Hub, old: Keys, new: Keys, *, keep_root: bool) -> None:
        identity = hub.identity
        identity.files.save_keys(new, keep_root=keep_root)
        failure: FelloeError | None = None
        self._heard.clear()
        try:
            await publish_trust(hub.state, new.trust)
        except Overtaken:
            identity.files.save_keys(old, keep_root=keep_root)
            raise
        except FelloeError as error:
            failure = error
        else:
            await self._wait_heard()
        identity.take_keys(new.authority, new.trust)
        await identity.keeper.renew_now()
        if failure is not None:
            # Whether the write counts cannot be known, so the keys that it may have announced must stay.
            raise FelloeError(
                "network_unreachable",
                "this hub uses the new keys, but the others have not acknowledged them; do it again once they answer: "
                f"{failure.detail}",
            )

    async def _wait_heard(self) -> None:
        """Give the news a moment to reach the nodes; this one hears it as they do."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SPREAD_SECONDS):
                await self._heard.wait()

    async def _write(self, root: RootKey, path: str, passphrase: str) -> None:
        """Write the root to a new file, and see that it opens."""
        file = Path(path)
        if not file.is_absolute():
            raise FelloeError("invalid_value", f"{path} is no absolute path", param="path")
        sealed = await asyncio.to_thread(root.export, passphrase)
        try:
            await asyncio.to_thread(write_new, file, sealed)
        except OSError as error:
            raise FelloeError("invalid_value", f"{path} cannot be written: {error.strerror}", param="path") from error
        await self._check_export(root, file, passphrase)

    async def _check_export(self, root: RootKey, file: Path, passphrase: str) -> None:
        """See that a file holds the root and opens, and note that."""
        try:
            written = await asyncio.to_thread(lambda: RootKey.load(_read_small(file), passphrase))
        except OSError as error:
            raise FelloeError("invalid_value", f"{file} cannot be read: {error.strerror}", param="path") from error
        if written.pin != root.pin:
            raise FelloeError("invalid_value", f"{file} holds another root", param="path")
        note = ExportNote(root.pin.hex(), time.time())
        self._node.identity.files.saver(EXPORT_NOTE)(msgspec.json.encode(note))


async def publish_trust(state: State, trust: Trust) -> None:
    """Have every node told a trust list; one that is as new or newer stays.

    Raises `Overtaken`, and what the state raises.
    """

    def change(before: bytes | None) -> bytes | None:
        known = None if before is None else read(before)
        if before is None or known is None or known.version < trust.version:
            return trust.encoded
        if known.version > trust.version or known.list != trust.list:
            raise Overtaken
        return before

    await state.change(TRUST, change)


def export_note(files: NetworkFiles) -> ExportNote | None:
    """When this machine last exported a root, and which."""
    try:
        return msgspec.json.decode(files.read_state(EXPORT_NOTE), type=ExportNote)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _read_small(file: Path) -> bytes:
    """A file's beginning: more than any root has, and not all of a device that never ends."""
    with file.open("rb") as stream:
        return stream.read(_LARGEST_FILE)


def _row(trusted: Trusted) -> TrustedRow:
    return TrustedRow(trusted.pin().hex(), float(trusted.until), trusted.read().not_valid_after_utc.timestamp())


def _replaced(keys: Keys, overlap_seconds: float, *, here: bool) -> KeysReplaced:
    return KeysReplaced(
        version=keys.trust.version,
        pin=keys.root.pin.hex(),
        overlap_until=keys.trust.list.issued_at + overlap_seconds if overlap_seconds else 0.0,
        here=here,
    )
