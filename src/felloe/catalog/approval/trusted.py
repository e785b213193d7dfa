"""The catalogue that this node believes: taken from anybody, checked by python-tuf against the one held before.

What is held is one file, replaced as a whole once all four parts of a newer catalogue were verified. So nobody can
leave a node half-way, for example with a new timestamp whose snapshot never comes.
"""

import asyncio
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec.structs import replace
from tuf.api.exceptions import DownloadError, DownloadHTTPError, ExpiredMetadataError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from felloe.catalog.approval.tuf_files import TUF_FAILURES, Files, verified
from felloe.catalog.manifests import open_signed
from felloe.catalog.threads import to_the_end
from felloe.domain.approval import MOST_BUNDLE_BYTES, MOST_ROOTS, Approvals, Bundle
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId
from felloe.domain.manifest import Manifest
from felloe.host.files import make_private_directory, write_atomic

logger = logging.getLogger(__name__)

_FILE = "bundle"
_TRIAL = "trial-"
_BASE = "bundle:/"


class TrustedCatalog:
    """Owns `folder`. `pin` is the SHA-256 of the first root, as the network's trust list names it; empty: none."""

    def __init__(self, folder: Path, pin: bytes) -> None:
        self.approvals: Approvals | None = None
        self.bundle: Bundle | None = None
        self._folder = folder
        self._pin = pin
        self._taking = asyncio.Lock()
        self._callbacks: list[Callable[[Approvals], None]] = []

    def on_change(self, callback: Callable[[Approvals], None]) -> None:
        """Call `callback` in the event loop after each newer catalogue."""
        self._callbacks.append(callback)

    def open(self) -> None:
        """Read what was held when this program ended, expired or not; blocking. A damaged file counts as none."""
        make_private_directory(self._folder)
        for left in self._folder.glob(f"{_TRIAL}*"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            with (self._folder / _FILE).open("rb") as stream:
                bundle = Bundle.decode(stream.read(MOST_BUNDLE_BYTES + 1))
            self.approvals, self.bundle = verified(bundle, self._pin).approvals(), bundle
        except FileNotFoundError:
            return
        except FelloeError as error:
            logger.error("%s is damaged and counts no more: %s", self._folder / _FILE, error.detail)

    async def take(self, offered: Bundle) -> Approvals:
        """Believe a catalogue, whoever offers it, if it is one and not older than what is held; what is held then.

        Raises `catalog_refused`, `catalog_expired`, `disk_full`, `disk_failed`; then what was held stays.
        """
        async with self._taking:
            if offered == self.bundle and self.approvals is not None:
                return self.approvals
            held = self.bundle
            bundle, files = await to_the_end(lambda _: self._checked(held, offered))
            approvals = files.approvals()
            if bundle != held:
                self.approvals, self.bundle = approvals, bundle
                for callback in self._callbacks:
                    callback(approvals)
            return approvals

    def check(self, content: ContentId, name: str, now: float) -> None:
        """Raise `not_approved`, `model_withdrawn` or `catalog_expired` unless `content` may be loaded at `now`."""
        if self.approvals is None:
            why = "no hub or peer has told this node yet" if self._pin else "the network has no catalogue"
            raise FelloeError("not_approved", f"whether {name} is approved is not known here: {why}")
        self.approvals.check(content, name, now)

    def check_envelope(self, content: ContentId, envelope: bytes) -> Manifest:
        """The manifest in `envelope`, if it is the very one that was approved for `content`.

        Raises `not_approved`, `bad_manifest`.
        """
        entry = None if self.approvals is None else self.approvals.approved.get(content)
        if entry is None:
            raise FelloeError("not_approved", f"the curators have not approved the content {content[:16]}")
        same_length = len(envelope) == entry.listing.length
        if not same_length or hashlib.sha256(envelope).digest() != entry.listing.sha256:
            raise FelloeError("bad_manifest", f"the manifest of {entry.listing.name} is not the one that was approved")
        return open_signed(envelope)[0]

    def _checked(self, held: Bundle | None, offered: Bundle) -> tuple[Bundle, Files]:
        """What is to be held after this offer. Blocking."""
        if not self._pin or hashlib.sha256(offered.roots[0]).digest() != self._pin:
            raise FelloeError("catalog_refused", "the catalogue's first root is not the one that this network names")
        known = () if held is None else held.roots
        roots = (*known, *offered.roots[len(known) :])
        try:
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=_TRIAL) as trial:
                bundle = _updated(Path(trial), held, replace(offered, roots=roots))
        except ExpiredMetadataError as error:
            detail = f"the catalogue that was offered is too old: {str(error)!a:.200}"
            raise FelloeError("catalog_expired", detail) from error
        except (*TUF_FAILURES, DownloadError) as error:
            raise FelloeError("catalog_refused", f"the catalogue that was offered: {str(error)!a:.200}") from error
        except OSError as error:
            raise FelloeError("disk_failed", f"{self._folder} cannot be used: {error.strerror}") from error
        files = verified(bundle, self._pin)
        if bundle != held:
            write_atomic(self._folder / _FILE, bundle.encode())
        return bundle, files


def _updated(folder: Path, held: Bundle | None, offered: Bundle) -> Bundle:
    """Have TUF's client update from `held` to `offered`; raises what it raises."""
    if held is not None:
        for name, data in (("targets", held.targets), ("snapshot", held.snapshot), ("timestamp", held.timestamp)):
            (folder / f"{name}.json").write_bytes(data)
    config = UpdaterConfig(
        max_root_rotations=MOST_ROOTS,
        root_max_length=MOST_BUNDLE_BYTES,
        timestamp_max_length=MOST_BUNDLE_BYTES,
        snapshot_max_length=MOST_BUNDLE_BYTES,
        targets_max_length=MOST_BUNDLE_BYTES,
    )
    updater = Updater(str(folder), _BASE, fetcher=_Fetcher(offered), config=config, bootstrap=offered.roots[0])
    updater.refresh()
    parts = [(folder / f"{name}.json").read_bytes() for name in ("targets", "snapshot", "timestamp")]
    return Bundle(offered.roots, parts[0], parts[1], parts[2])


class _Fetcher(FetcherInterface):
    """Gives TUF's client the files of a bundle as if they came from a server."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def _fetch(self, url: str) -> Iterator[bytes]:
        data = self._find(url.removeprefix(_BASE))
        if data is None:
            raise DownloadHTTPError(f"{url[:80]} is not in the bundle", 404)
        return iter((data,))

    def _find(self, name: str) -> bytes | None:
        if name == "timestamp.json":
            return self._bundle.timestamp
        version, _, kind = name.partition(".")
        if kind == "root.json":
            number = int(version)
            return self._bundle.roots[number - 1] if 0 < number <= len(self._bundle.roots) else None
        # A version that the file does not have is found out by its reader.
        return {"snapshot.json": self._bundle.snapshot, "targets.json": self._bundle.targets}.get(kind)
