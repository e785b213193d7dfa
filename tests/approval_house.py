"""A catalogue with its curators and its hubs' key, without any network; and forgers of what it must not believe."""

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.metadata import Metadata

from catalog_house import KEY
from felloe.catalog.approval.curator_key import CuratorKey
from felloe.catalog.approval.decisions import new_decision, sign_decision
from felloe.catalog.approval.metadata import candidate, complete, found, pin_of, sign_candidate
from felloe.catalog.approval.trusted import TrustedCatalog
from felloe.catalog.approval.tuf_files import signature, tuf_key, verified
from felloe.catalog.manifests import encode_manifest, sign_manifest, signer_of
from felloe.domain.approval import Approvals, Bundle, Candidate, Listing, SignedDecision, Verdict
from felloe.domain.ids import ContentId, ModelDigest, ModelName, NodeId
from felloe.domain.manifest import CHUNK_BYTES, Manifest, ManifestFile
from felloe.domain.ports import StatementSigner

MAKER = NodeId("a" * 26)


def signer(number: int) -> CuratorKey:
    """The same key for the same number."""
    return CuratorKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


ISSUER = signer(100)


def listing(name: str = "tiny", content: str = "") -> Listing:
    """What is to be approved; without a content one that the name stands for."""
    content = content or hashlib.sha256(name.encode()).hexdigest()
    return Listing(
        content=ContentId(content),
        name=ModelName(name),
        sha256=hashlib.sha256(content.encode()).digest(),
        length=100,
        size=1000,
        made_by=MAKER,
        architecture="llama",
        quantisation="Q8_0",
    )


def envelope(name: str = "tiny", key: Ed25519PrivateKey = KEY, digest: str = "ab", **changes: Any) -> bytes:
    """A signed manifest as a node publishes it."""
    file = ManifestFile(
        path="m.gguf", size=5, digest=ModelDigest("blake3:" + digest * 32), chunks="cd" * 32, role="model"
    )
    values: dict[str, Any] = {
        "version": 1,
        "name": ModelName(name),
        "files": (file,),
        "chunk_size": CHUNK_BYTES,
        "architecture": "llama",
        "quantisation": "Q8_0",
        "context": 512,
        "parameters": 1000,
        "capabilities": ("chat",),
        "template": "{{ messages }}",
        "defaults": {},
        "licence": "MIT",
        "base": "",
        "lineage": (),
        "source": "hf:owner/repo",
        "revision": "main",
        "made_by": signer_of(key),
        "created_at": 1_800_000_000,
    }
    return sign_manifest(encode_manifest(Manifest(**(values | changes))), key)


def approvals_of(bundle: Bundle) -> Approvals:
    """What a bundle says, whoever signed it properly."""
    return verified(bundle, pin_of(bundle)).approvals()


class Catalogues:
    """The catalogue of a network at each moment. `people` are curators by name; the first founds it."""

    def __init__(self, *names: str, threshold: int = 1, now: float | None = None) -> None:
        self.people = {name: signer(number) for number, name in enumerate(names, 1)}
        self.now = time.time() if now is None else now
        self.issuer: StatementSigner = ISSUER
        first, *others = names
        self.bundle = found(first, self.people[first], self.issuer, self.now)
        self.pin = pin_of(self.bundle)
        self.decisions: list[SignedDecision] = []
        for name in others:
            self.decide(first, "add_curator", name=name, curator=self.people[name].public_key)
        if others:
            self.sign(first)
        if threshold > 1:
            self.decide(first, "set_threshold", threshold=threshold)
            self.sign(*names)

    @property
    def approvals(self) -> Approvals:
        return approvals_of(self.bundle)

    def decision(self, by: str, verdict: Verdict, seen: Approvals | None = None, **fields: Any) -> SignedDecision:
        """What somebody decides; a model by its name alone."""
        if verdict in ("approve", "reject", "withdraw"):
            what = fields.pop("listing", None) or listing(fields.pop("name"))
            fields |= {"content": what.content, "name": what.name}
            fields |= {"listing": what} if verdict == "approve" else {}
        key = self.people[by]
        made = new_decision(seen or self.approvals, key.public_key, verdict, self.now, self.decisions, **fields)
        return sign_decision(made, key)

    def decide(self, by: str, verdict: Verdict, **fields: Any) -> SignedDecision:
        """As `decision`, and known to everybody."""
        made = self.decision(by, verdict, **fields)
        self.decisions.append(made)
        return made

    def candidate(self, decisions: Iterable[SignedDecision] | None = None) -> Candidate | None:
        """What is to be signed next."""
        known = self.decisions if decisions is None else decisions
        return candidate(self.bundle, known, self.issuer.public_key, int(self.now))

    def made(self, *by: str) -> Bundle | None:
        """What comes of the decisions when these have signed."""
        wanted = self.candidate()
        if wanted is None:
            return None
        signatures = [made for name in by if (made := sign_candidate(wanted, self.people[name])) is not None]
        return complete(self.bundle, wanted, signatures, self.issuer, self.now)

    def sign(self, *by: str) -> bool:
        """Go over to it; whether there was anything to go over to."""
        made = self.made(*by)
        self.bundle = made or self.bundle
        return made is not None

    def approve(self, name: str, *by: str) -> None:
        """Have these approve a model, and sign."""
        for one in by:
            self.decide(one, "approve", name=name)
        assert self.sign(*by)

    def trusted(self, folder: Path) -> TrustedCatalog:
        """A node's catalogue in a folder, opened."""
        catalog = TrustedCatalog(folder, self.pin)
        catalog.open()
        return catalog


def resigned(data: bytes, change: Any, *keys: StatementSigner) -> bytes:
    """A file of TUF with its signed part changed by `change` (takes the dictionary) and signed by these keys."""
    signed = msgspec.json.decode(data)["signed"]
    change(signed)
    part: Metadata[Any] = Metadata.from_dict({"signed": signed, "signatures": []})
    for key in keys:
        named = tuf_key(key.public_key)
        part.signatures[named.keyid] = signature(named, key.sign(part.signed_bytes))
    return part.to_bytes()
