"""What the command line and a running node say about the models in its store. Sizes in bytes."""

from msgspec import Struct

from felloe.console.catalog_messages import CatalogRow
from felloe.console.messages import ErrorBody
from felloe.domain.models import Model


class ModelRow(Struct, frozen=True, kw_only=True):
    """A model and where it is: in this node's store, and loaded on which nodes (by name) in which state.

    `held_by` names the other living nodes that store it, whole or in part. `pinned`: clean-up keeps it here. `problem`
    says why the stored one cannot be loaded. `approval` is what curators say of it; None for a model that only an
    upstream server knows, and for one that was never published.
    """

    model: Model
    stored: bool
    replicas: dict[str, str]
    held_by: tuple[str, ...] = ()
    pinned: bool = False
    problem: str = ""
    approval: CatalogRow | None = None


class DamagedRow(Struct, frozen=True):
    """A file of a model that is damaged. `bad_chunks` are the numbers of its 4 MiB chunks from 0; empty: all of it."""

    path: str
    bad_chunks: tuple[int, ...] = ()


class VerifiedRow(Struct, frozen=True, kw_only=True):
    """A model of which every byte was read. `source`: what to pull it from again. `loaded`: it runs here now.

    `repaired`: other nodes had what was damaged, and it is whole again.
    """

    name: str
    damaged: tuple[DamagedRow, ...] = ()
    source: str = ""
    loaded: bool = False
    repaired: bool = False


class VerifyStep(Struct, frozen=True, omit_defaults=True):
    """How far a check has come, in bytes. The last one carries `models` or `error`."""

    done: int = 0
    total: int = 0
    models: tuple[VerifiedRow, ...] | None = None
    error: ErrorBody | None = None


class CleanedRow(Struct, frozen=True):
    """What clean-up deleted: models by name, and bytes in all."""

    models: tuple[str, ...]
    freed: int
