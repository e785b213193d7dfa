"""What the command line and a node say about hubs, members and the network's keys. Times in Unix seconds.

A passphrase travels in these messages only, and never shows in their `repr`.
"""

from msgspec import Struct

from felloe.console.messages import ErrorBody

_HIDDEN = "(hidden)"


class HubRow(Struct, frozen=True, kw_only=True):
    """A hub of the network. `addresses` are `host:port` at which nodes join; `ready`: it says that its servers are up.

    `leads` is known on hubs only.
    """

    id: str
    name: str
    addresses: tuple[str, ...]
    alive: bool
    ready: bool
    keeps_state: bool
    leads: bool
    this: bool


class HubsView(Struct, frozen=True, kw_only=True):
    """The hubs as this node knows them. `wanted` is 0 for automatic; `moving_to` names hubs that are to keep the state.

    `survives` is a sentence: what the network survives now. `writable`: enough hubs are there to change the state.
    """

    hubs: tuple[HubRow, ...]
    wanted: int
    generation: int
    survives: str
    writable: bool
    moving_to: tuple[str, ...] = ()


class HubsRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Keep this many hubs: 1, 3 or 5, or 0 for automatic."""

    wanted: int


class Consequence(Struct, frozen=True, kw_only=True):
    """What would come of a command on a node; `asks` when a person should confirm it."""

    id: str
    name: str
    sentence: str
    asks: bool


class ChangeStep(Struct, frozen=True, omit_defaults=True):
    """How far a change of the hubs has come, in a sentence. The last step has `ended` or `error`."""

    says: str = ""
    ended: bool = False
    error: ErrorBody | None = None


class Removal(Struct, frozen=True, kw_only=True):
    """A member that was removed. `was_hub`: it held the network's signing keys."""

    id: str
    name: str
    role: str
    joined_at: float
    revoked_at: float
    was_hub: bool


class SealedRoot(Struct, frozen=True, forbid_unknown_fields=True):
    """The content of an exported root file, and what opens it."""

    data: bytes
    passphrase: str

    def __repr__(self) -> str:
        return f"SealedRoot(data={_HIDDEN}, passphrase={_HIDDEN})"


class RotateRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Replace the signing keys; the old ones are believed for `overlap_seconds`. Without `root`: the one kept here."""

    overlap_seconds: float
    root: SealedRoot | None = None


class RootRotateRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Replace the root; the new one is also written to `export_path`, an absolute path, when there is one."""

    overlap_seconds: float
    root: SealedRoot | None = None
    export_path: str = ""
    export_passphrase: str = ""

    def __repr__(self) -> str:
        return f"RootRotateRequest({self.overlap_seconds}, {self.root}, {self.export_path!r}, {_HIDDEN})"


class RootExportRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Write the root, encrypted, to a new file at an absolute path; with `remove` keep it nowhere else."""

    path: str
    passphrase: str
    remove: bool = False

    def __repr__(self) -> str:
        return f"RootExportRequest({self.path!r}, {_HIDDEN}, {self.remove})"


class KeysReplaced(Struct, frozen=True, kw_only=True):
    """New keys are in use. `pin` is the root's, in hexadecimal; `overlap_until` is 0 when the old ones are void now.

    `here`: this machine keeps the root. `withdrawn` counts the invitations that ended with the old root.
    """

    version: int
    pin: str
    overlap_until: float
    here: bool
    exported: str = ""
    withdrawn: int = 0


class RootExported(Struct, frozen=True):
    """The file opens with the passphrase. `removed`: this machine does not keep the root any more."""

    path: str
    pin: str
    removed: bool


class TrustedRow(Struct, frozen=True):
    """A root or an issuer that nodes believe; `until` is 0 for the current one."""

    pin: str
    until: float
    certificate_ends: float


class RootView(Struct, frozen=True, kw_only=True):
    """The network's root. `here`: this machine keeps it; `exported_at` is 0 when this machine never exported it."""

    network: str
    pin: str
    here: bool
    exported_at: float
    version: int
    roots: tuple[TrustedRow, ...]
    issuers: tuple[TrustedRow, ...]
