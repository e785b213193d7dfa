"""Some hubs with the catalogue of a network, over the state in memory, and curators' nodes that ask them."""

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from approval_house import Catalogues
from catalog_house import KEY
from felloe.catalog.approval.maker import Maker
from felloe.catalog.approval.metadata import candidate, sign_candidate
from felloe.catalog.manifests import raw_public_key, signer_of
from felloe.domain.approval import Bundle, LookAnswer, SignedDecision, Verdict
from felloe.hubs.catalog_book import CatalogBook, Issuer
from felloe.hubs.members import MemberBook
from felloe.hubs.records import CATALOG, MEMBER, encode
from felloe.mesh.membership import ListedMember
from hubs_fakes import FakeState, FakeStore


class Hubs:
    """Some hubs over one state, and the catalogue that they keep."""

    def __init__(self, house: Catalogues, count: int = 1) -> None:
        self.house = house
        self.trusted: Bundle | None = None
        self.store = FakeStore()
        first = FakeState(self.store)
        self.states = [first, *(FakeState(self.store) for _ in range(count - 1))]
        self.put(CATALOG, house.bundle.encode())
        self.add_member(KEY)
        self.books = [
            CatalogBook(
                state,
                MemberBook(state),
                Maker(),
                issuer=lambda: Issuer(house.issuer.public_key, int(house.now), house.issuer),
                trusted=lambda: self.trusted,
                now=lambda: house.now,
            )
            for state in self.states
        ]
        self.book = self.books[0]

    def put(self, key: str, value: bytes) -> None:
        assert self.store.commit(len(self.store.log), key, value)

    def add_member(self, key: Ed25519PrivateKey, revoked_at: float = 0.0) -> None:
        node = signer_of(key)
        row = ListedMember(
            id=node, name="n", role="spoke", public_key=raw_public_key(key), joined_at=0.0, revoked_at=revoked_at
        )
        self.put(MEMBER + node, encode(row))

    def look(self) -> LookAnswer:
        self.house.bundle = Bundle.decode(self.states[0].get(CATALOG) or b"")
        return self.book.look(0)

    async def sign(self, *names: str, hub: int = 0) -> None:
        """What curators' nodes do by themselves."""
        for name in names:
            waits = self.look()
            issuer = self.house.issuer.public_key
            wanted = candidate(self.house.bundle, waits.decisions, issuer, int(self.house.now))
            made = None if wanted is None else sign_candidate(wanted, self.house.people[name])
            if made is not None:
                await self.books[hub].sign(made)
        self.look()

    async def decide(self, by: str, verdict: Verdict, hub: int = 0, **fields: Any) -> SignedDecision:
        self.look()
        made = self.house.decide(by, verdict, **fields)
        await self.books[hub].decide(made)
        return made
