"""What the command line and a node say about approvals and curators. Sizes in bytes, times in Unix seconds.

A content id is 64 hex digits and means a model's content under its name, whoever pulled it.
"""

from typing import Literal

from msgspec import Struct

Standing = Literal["approved", "waiting", "rejected", "withdrawn", "expired"]
"""`waiting`: published and not decided. `expired`: approved, but the approvals are too old to be believed."""

Verdict = Literal["approve", "reject", "withdraw"]


class CatalogRow(Struct, frozen=True, kw_only=True):
    """A model that was published, and what curators say. `wanted` is the number of approvals that it needs.

    `approved_by` and `rejected_by` are curators' names; of an approved one, `rejected_by` want it withdrawn.
    `waits_for` are the curators who have said nothing yet.
    `made_by` is the name or the id of the node that pulled it first. `at` is when its present standing began.
    """

    content: str
    name: str
    standing: Standing
    size: int = 0
    architecture: str = ""
    quantisation: str = ""
    made_by: str = ""
    at: float = 0.0
    approved_by: tuple[str, ...] = ()
    rejected_by: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    wanted: int = 1
    reason: str = ""


class CatalogView(Struct, frozen=True, kw_only=True):
    """All of them. `expires_at`: when nothing new is loaded any more unless hubs renew the catalogue.

    `notes` are sentences: what is wrong with the catalogue, whose node has to sign what was decided.
    """

    rows: tuple[CatalogRow, ...]
    threshold: int
    expires_at: float
    notes: tuple[str, ...] = ()


class FileRow(Struct, frozen=True):
    """A file of a model."""

    path: str
    size: int
    digest: str
    role: str


class CatalogEntry(Struct, frozen=True, kw_only=True):
    """A published model in full, as its manifest says."""

    row: CatalogRow
    files: tuple[FileRow, ...]
    source: str
    revision: str
    licence: str
    template: str
    context: int
    parameters: int
    capabilities: tuple[str, ...]
    made_at: float


class DecisionRow(Struct, frozen=True, kw_only=True):
    """One decision of a curator; `about` is a model's name, a curator's name, or how many curators must agree."""

    at: float
    curator: str
    verdict: str
    about: str
    content: str = ""
    reason: str = ""


class DecideRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Decide about a model by name or by the beginning of its content id, with this node's curator key."""

    verdict: Verdict
    name: str
    reason: str = ""


class CuratorRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Change who decides. `curator` is what `felloe curators key` printed, or the name of one to remove."""

    verdict: Literal["add_curator", "remove_curator", "set_threshold"]
    curator: str = ""
    threshold: int = 0
    reason: str = ""


class Decided(Struct, frozen=True, kw_only=True):
    """What came of it, in a sentence. `done`: it holds now; otherwise it waits for others."""

    sentence: str
    done: bool


class CuratorRow(Struct, frozen=True, kw_only=True):
    """A curator. `key` is the public key in hexadecimal; `this`: this node holds the secret half."""

    name: str
    key: str
    this: bool


class CuratorsView(Struct, frozen=True, kw_only=True):
    """Who decides, how many of them must agree, and changes of that which wait for more of them, as sentences."""

    curators: tuple[CuratorRow, ...]
    threshold: int
    waiting: tuple[str, ...] = ()


class CuratorKey(Struct, frozen=True):
    """The public half of this node's curator key: what a curator gives to `felloe curators add`."""

    text: str
