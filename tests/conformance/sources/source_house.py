"""A node's store with its sources, and short patience."""

from collections.abc import Mapping
from ssl import PROTOCOL_TLS_CLIENT, SSLContext

from msgspec.structs import replace
from source_servers import SourceServer

from felloe.catalog.sources.progress import PullProgress
from felloe.catalog.sources.service import Sources
from felloe.catalog.sources.settings import Limits, SourceSettings
from felloe.catalog.store import ModelStore
from felloe.domain.models import Model

IMPATIENT = Limits(
    connect_seconds=2.0,
    stall_seconds=0.25,
    document_seconds=2.0,
    tries=3,
    first_pause_seconds=0.01,
    longest_pause_seconds=0.02,
    longest_wait_seconds=5.0,
)


class House:
    """Pulls references and remembers what was reported."""

    def __init__(self, store: ModelStore, mirror: SourceServer) -> None:
        self.store = store
        self.settings = SourceSettings(huggingface=mirror.url, ollama=mirror.url, oci={"registry.test": mirror.url})
        # Trusts nobody, and is made in no time.
        self.tls = SSLContext(PROTOCOL_TLS_CLIENT)
        self.reports: list[PullProgress] = []

    def allow(self, origin: str) -> None:
        self.settings = replace(self.settings, allow=(*self.settings.allow, origin))

    async def pull(
        self,
        reference: str,
        name: str | None = None,
        environment: Mapping[str, str] | None = None,
        *,
        limits: Limits = IMPATIENT,
    ) -> Model:
        sources = Sources(self.settings, self.store, agent="felloe/test", limits=limits, tls=self.tls)
        return await sources.pull(reference, name=name, environment=environment or {}, report=self.reports.append)

    def content(self, name: str) -> bytes:
        return self.store.path_of(name).read_bytes()
