"""This node's credential: what it is, and the keeper that renews it before it runs out."""

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable
from typing import NoReturn

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.domain.errors import FelloeError
from felloe.mesh.certificates import CLOCK_TOLERANCE

_LOG = logging.getLogger(__name__)

CREDENTIAL_SECONDS = 24 * 3600
"""How long a credential lasts. A revoked node is cut off at once; this bounds what a stolen hub backup is worth."""

_SHORTEST_RETRY = 5.0
_LONGEST_RETRY = 900.0
_LONGEST_SLEEP = 10.0
_LONGEST_LATENESS = 10.0
_REFUSAL_SPREAD = 3.0
_REFUSAL_SECONDS = 60.0
_NONCE = re.compile(rb"[A-Za-z0-9_-]{11,32}")


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """A node's short-lived proof of membership; times in Unix seconds.

    `certificate` is a PEM chain without the root, `user_token` the NATS token for the application account,
    `system_token` the one for the system account, which only hubs have. None of it is secret without the node key.
    """

    certificate: str
    user_token: str
    issued_at: int
    expires_at: int
    system_token: str = ""


def sign_nonce(node_key: Ed25519PrivateKey, nonce: bytes) -> bytes:
    """The raw signature over a nats-server's nonce.

    Signs only what looks like a nonce: the node key also signs records and renewals, and a server must not have
    those signed under the name of a nonce. Raises `network_unreachable`.
    """
    if _NONCE.fullmatch(nonce) is None:
        raise FelloeError("network_unreachable", "the message server asked for a signature over something unusual")
    return node_key.sign(nonce)


def is_ahead(credential: Credential, now: float) -> bool:
    """Whether it was issued by a clock so far ahead of this one that it is not valid yet: one of the two is wrong."""
    return credential.issued_at - now > CLOCK_TOLERANCE


def renewal_time(credential: Credential, share: float) -> float:
    """When to renew, in Unix seconds: near half of its life. `share` in [0, 1) spreads nodes over a tenth of it."""
    lifetime = credential.expires_at - credential.issued_at
    return credential.issued_at + lifetime * (0.45 + 0.1 * share)


class CredentialKeeper:
    """Holds the current credential, renews it in good time and tells whoever needs the new one.

    `renew` fetches a new credential; `save` stores it before anybody is told. `now` gives Unix seconds. It looks at
    that clock every ten seconds, because a machine may sleep for days and its clock may be set meanwhile.
    """

    def __init__(
        self,
        credential: Credential,
        *,
        renew: Callable[[], Awaitable[Credential]],
        save: Callable[[Credential], None],
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        share: Callable[[], float] = random.random,
    ) -> None:
        self._credential = credential
        self._renew = renew
        self._save = save
        self._now = now
        self._sleep = sleep
        self._share = share
        self._subscribers: list[Callable[[Credential], None]] = []
        self._renewing = asyncio.Lock()
        self._refused = asyncio.Event()
        self._tried_at = float("-inf")

    @property
    def current(self) -> Credential:
        """The newest credential; it may have run out when no hub could be reached for long."""
        return self._credential

    def holds_for(self, seconds: float) -> bool:
        """Whether the current credential is valid now, and still will be so many seconds later."""
        now = self._now()
        return not is_ahead(self._credential, now) and self._credential.expires_at - now >= seconds

    def on_change(self, callback: Callable[[Credential], None]) -> None:
        """Call `callback` in the event loop after each renewal."""
        self._subscribers.append(callback)

    def note_refused(self) -> None:
        """A hub has refused the current credential: `run` renews within seconds, for that reason once a minute."""
        if abs(self._now() - self._tried_at) >= _REFUSAL_SECONDS:
            self._refused.set()

    async def run(self) -> NoReturn:
        """Renew for ever; failures are logged and tried again, later and later."""
        share, retry, pause = self._share(), _SHORTEST_RETRY, 0.0
        while True:
            await self._wait_until_due(share, pause)
            self._refused.clear()
            try:
                await self.renew_now()
            except (FelloeError, OSError) as error:
                left = self._credential.expires_at - self._now()
                _LOG.warning("the credential was not renewed, %.0f s before it runs out: %s", left, error)
            else:
                share = self._share()
                if not is_ahead(self._credential, self._now()):
                    retry, pause = _SHORTEST_RETRY, 0.0
                    continue
                _LOG.warning("this clock, or that of the hub which renewed the credential, is wrong")
            pause = retry * (0.5 + self._share())
            retry = min(retry * 2, _LONGEST_RETRY)

    async def _wait_until_due(self, share: float, pause: float) -> None:
        """Return when a renewal is due and `pause` seconds have gone by, or soon after a refusal."""
        while (wait := max(pause, self._until_renewal(share))) > 0:
            began, step = self._now(), min(wait, _LONGEST_SLEEP)
            if await self._is_refused_within(step):
                # All nodes are refused at once when a network's keys are replaced; they must not all ask at once.
                await self._sleep(_REFUSAL_SPREAD * self._share())
                return
            # A machine that has slept, or whose clock was set, has waited long enough after a failure.
            was_set = abs(self._now() - began - step) > _LONGEST_LATENESS
            pause = 0.0 if was_set else pause - step

    def _until_renewal(self, share: float) -> float:
        now = self._now()
        return 0.0 if is_ahead(self._credential, now) else renewal_time(self._credential, share) - now

    async def _is_refused_within(self, seconds: float) -> bool:
        if self._refused.is_set():
            return True
        refusal = asyncio.ensure_future(self._refused.wait())
        rest = asyncio.ensure_future(self._sleep(seconds))
        try:
            await asyncio.wait({refusal, rest}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            refusal.cancel()
            rest.cancel()
            await asyncio.gather(refusal, rest, return_exceptions=True)
        return self._refused.is_set()

    async def renew_now(self) -> Credential:
        """Renew once, at once, for instance after a server has refused the current one."""
        before = self._credential
        self._tried_at = self._now()
        async with self._renewing:
            if self._credential is not before:
                return self._credential  # somebody else renewed it while this call waited
            renewed = await self._renew()
            self._save(renewed)
            self._credential = renewed
        for callback in self._subscribers:
            try:
                callback(renewed)
            except Exception:  # one listener's fault must not stop renewals
                _LOG.exception("a listener failed at a new credential")
        return renewed
