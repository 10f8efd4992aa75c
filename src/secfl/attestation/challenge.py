"""Challenges: nonces that serve once, for one purpose, for a short time.

Using one deletes it, so that a replay, a second connection and a racing request all find nothing (EV-08, EV-10). The
book lives in memory only: after a restart no earlier challenge is known, which is the safe direction.
"""

from __future__ import annotations

from secfl.attestation.binding import NONCE_BYTES, Purpose
from secfl.errors import FreshnessError, UnavailableError

__all__ = ["MAX_OPEN", "TTL_SECONDS", "ChallengeBook"]

TTL_SECONDS = 60
"""How long a challenge may wait for evidence: collecting a quote takes well below a second, a slow start ten."""
MAX_OPEN = 4096
"""Most challenges open at once; a flood is refused instead of growing memory or pushing out honest ones."""


class ChallengeBook:
    """The open challenges of one verifier."""

    def __init__(self, *, ttl: int = TTL_SECONDS, limit: int = MAX_OPEN) -> None:
        """Start empty.

        Raises:
            ValueError: the time to live or the limit is not positive.
        """
        if ttl <= 0 or limit <= 0:
            raise ValueError("a challenge book needs a positive time to live and limit")
        self._ttl = ttl
        self._limit = limit
        self._open: dict[bytes, tuple[Purpose, str, int]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def issue(self, nonce: bytes, *, purpose: Purpose, subject: str, now: int) -> bytes:
        """Enter a fresh nonce for one purpose and one subject, such as a service.

        Args:
            nonce: 32 bytes that the caller has just drawn from the operating system.
            subject: who may use it; compared on redemption.

        Raises:
            FreshnessError: `challenge.weak` for a short, zero or repeated nonce: the source is broken (EV-11).
            UnavailableError: `challenge.too_many`.
        """
        if len(nonce) != NONCE_BYTES or len(set(nonce)) == 1 or nonce in self._open:
            raise FreshnessError("challenge.weak", "the nonce source is broken")
        if len(self._open) >= self._limit:
            self._forget_expired(now)
        if len(self._open) >= self._limit:
            raise UnavailableError("challenge.too_many", "too many open challenges", hint="try again in a minute")
        self._open[nonce] = (purpose, subject, now + self._ttl)
        return nonce

    def redeem(self, nonce: bytes, *, purpose: Purpose, subject: str, now: int) -> bytes:
        """Use a nonce up and return it; whatever the outcome, it never serves again.

        Raises:
            FreshnessError: `challenge.unknown` (never issued here, already used, or issued for someone or something
                else) or `challenge.expired`.
        """
        entry = self._open.pop(nonce, None)
        if entry is None or entry[:2] != (purpose, subject):
            raise FreshnessError("challenge.unknown", "no such open challenge", hint="ask for a new challenge")
        if not now <= entry[2] <= now + self._ttl:
            # The second bound catches a clock set back behind the time of issue.
            raise FreshnessError("challenge.expired", "the challenge has expired", hint="ask for a new challenge")
        return nonce

    def _forget_expired(self, now: int) -> None:
        self._open = {nonce: entry for nonce, entry in self._open.items() if entry[2] >= now}
