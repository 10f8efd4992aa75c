"""The service: state machine, journal, verifier, attester and clock, joined behind the edge.

All decisions are made in one thread, one after the other; only the disk, the verifier and the platform are waited for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from secfl.attestation.claims import VerifiedEvidence
from secfl.attestation.statement import Isolation, ManagerClaims
from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url
from secfl.crypto.signing import PublicKey
from secfl.errors import SecflError, VerificationError
from secfl.manager.attesting import Attempt
from secfl.manager.core import Manager, Outcome
from secfl.manager.export import make_bundle
from secfl.manager.journal import Journal
from secfl.manager.log import Log
from secfl.manager.store import Store
from secfl.manager.trust import Trust, read_trust
from secfl.protocol.binding import manager_binding
from secfl.protocol.failure import encode_failure
from secfl.protocol.public import Empty, EvidenceRequest, ManagerEvidence
from secfl.protocol.routes import Role, Route
from secfl.protocol.service import MailboxAsk, MailboxReply, ServiceCall
from secfl.tee.attester import Attester
from secfl.tee.verifier import AsyncEvidenceVerifier

__all__ = ["MAX_WAIT", "ManagerService", "World"]

MAX_WAIT = 10
"""Longest wait of a mailbox request, in seconds."""
_TRUST_CHECK = 30
"""Seconds between looks at the operator's collateral file."""
_NO_PROTECTION = "none"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class World:
    """What the service meets outside itself.

    Attributes:
        store: holds the log.
        attester: the platform that this manager runs on.
        verifier: verifies evidence.
        trust_path: the operator's trust bundles.
        fresh_log: an empty log with the store's key, to read the store again for an audit bundle.
        clock: the host's clock, Unix seconds.
    """

    store: Store
    attester: Attester
    verifier: AsyncEvidenceVerifier
    trust_path: Path
    fresh_log: Callable[[], Log]
    clock: Callable[[], float] = time.time


class ManagerService:
    """Answers requests; implements `server.Backend`."""

    def __init__(self, manager: Manager, world: World) -> None:
        """Join the parts; nothing is read or written yet."""
        self.manager = manager
        self._world = world
        self._journal = Journal(world.store)
        self._trust = Trust()
        self._trust_seen: tuple[float, tuple[tuple[str, int], ...]] = (0.0, ())
        self._logged: frozenset[str] = frozenset()
        self._news = asyncio.Event()
        self._instance = os.urandom(16).hex()

    async def start(self) -> None:
        """Verify the collateral and note it and the start in the log.

        Raises:
            SecflError: the collateral is missing or not authentic, or the store fails.
        """
        self._trust = read_trust(self._world.trust_path, now=self._now())
        self._trust_seen = (time.monotonic(), _stamp(self._world.trust_path))
        self._note_trust()
        await self._journal.durable()

    async def answer(self, route: Route, body: bytes) -> tuple[int, bytes]:
        """Give status and body for one request; what it rests on is on the disk by then."""
        try:
            if route.role is Role.PUBLIC:
                return await self._public(route, body)
            outcome = self.manager.handle(route, body, now=self._now(), random=os.urandom)
            status, answer = await self._settled(outcome)
            if status == 200 and route.name == "service/mailbox":
                return status, await self._mailbox(body, answer)
            if status == 200 and route.name == "log/export":
                return status, await self._bundle()
        except SecflError as error:
            return encode_failure(error)
        return status, answer

    async def _public(self, route: Route, body: bytes) -> tuple[int, bytes]:
        if route.name == "identity":
            return 200, self.manager.state.identity.public.encode()
        if route.name == "nonces":
            Empty.decode(body)
            return 200, self.manager.nonce(now=self._now(), random=os.urandom).encode()
        if route.name == "manager/evidence":
            return 200, await self._own_evidence(EvidenceRequest.decode(body))
        return await self._attest(route, body)

    async def _attest(self, route: Route, body: bytes) -> tuple[int, bytes]:
        await self._refresh_trust()
        attempt = self.manager.begin(route, body, now=self._now(), random=os.urandom)
        if isinstance(attempt, Outcome):
            return await self._settled(attempt)
        verified, digest = await self._verify(attempt)
        outcome = self.manager.finish(attempt, verified, collateral=digest, now=self._now(), random=os.urandom)
        return await self._settled(outcome)

    async def _verify(self, attempt: Attempt) -> tuple[VerifiedEvidence | SecflError, str]:
        failure: SecflError = VerificationError("trust.no_anchor", "no trust domain is accepted")
        digest = ""
        try:
            evidence = attempt.parsed_evidence()
            for candidate in self._trust.candidates(attempt.domains):
                digest = candidate.digest
                try:
                    collateral = candidate.bundle.collateral(evidence.kind)
                    anchor = candidate.bundle.anchor
                    return await self._world.verifier.verify(evidence, collateral, anchor, self._now()), digest
                except SecflError as error:
                    failure = error
        except SecflError as error:
            failure = error
        return failure, digest

    async def _own_evidence(self, request: EvidenceRequest) -> bytes:
        # What the evidence says of the log must be on the disk: it is what clients compare later (PB-08).
        await self._journal.durable()
        identity, log = self.manager.state.identity, self.manager.log
        claims = ManagerClaims(
            # The manager runs no other program: its enclave is its isolation.
            isolation=Isolation.ENCLAVE,
            instance=self._instance,
            founders=tuple(sorted(PublicKey(f.signing_key).key_id for f in identity.public.founders.founders)),
            log_length=log.length,
            log_head=log.head,
            rollback_protection=_NO_PROTECTION,
        )
        answer = ManagerEvidence(evidence="", identity=identity.public, launch_claims=claims.encode())
        report_data = manager_binding(answer, nonce=request.nonce).report_data()
        evidence = await asyncio.to_thread(self._world.attester.collect, report_data)
        return answer.model_copy(update={"evidence": evidence.encode().decode()}).encode()

    async def _mailbox(self, body: bytes, first: bytes) -> bytes:
        payload = from_base64url(strict_json.decode(body)["payload"])
        call = ServiceCall.decode(payload)
        ask = MailboxAsk.decode(strict_json.encode(call.body))
        deadline = time.monotonic() + min(ask.wait, MAX_WAIT)
        answer = first
        while True:
            reply = MailboxReply.decode(answer)
            left = deadline - time.monotonic()
            if reply.version != ask.seen or reply.challenges or left <= 0:
                return answer
            news = self._news
            try:
                async with asyncio.timeout(left):
                    await news.wait()
            except TimeoutError:
                return answer
            answer = self.manager.mailbox_again(call.lease_id, now=self._now(), random=os.urandom).encode()
            await self._journal.durable()

    async def _bundle(self) -> bytes:
        log = self._world.fresh_log()
        length, identity = self.manager.log.length, self.manager.state.identity
        return await asyncio.to_thread(make_bundle, self._world.store, log, length, identity)

    async def _settled(self, outcome: Outcome) -> tuple[int, bytes]:
        self._journal.add(outcome.entries)
        if outcome.entries:
            news, self._news = self._news, asyncio.Event()
            news.set()
        await self._journal.durable()
        return outcome.status, outcome.body

    async def _refresh_trust(self) -> None:
        checked, stamp = self._trust_seen
        if time.monotonic() - checked < _TRUST_CHECK:
            return
        present = _stamp(self._world.trust_path)
        self._trust_seen = (time.monotonic(), present)
        if present == stamp:
            return
        try:
            self._trust = await asyncio.to_thread(read_trust, self._world.trust_path, now=self._now())
        except SecflError as error:
            _LOG.warning("new collateral is refused, the former stays: %s", error.code)
            return
        self._note_trust()
        await self._journal.durable()

    def _note_trust(self) -> None:
        events = self._trust.events(self._logged)
        entries = [self.manager.append(event, now=self._now(), random=os.urandom) for event in events]
        self._logged |= {one.digest for one in self._trust.endorsements.values()}
        self._journal.add(entries)

    def _now(self) -> int:
        return int(self._world.clock())


def _stamp(path: Path) -> tuple[tuple[str, int], ...]:
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return tuple((file.name, file.stat().st_mtime_ns) for file in files if file.exists())
