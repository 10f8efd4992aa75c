"""The manager: one state machine from requests to events and answers.

It opens nothing and knows no clock: bytes, time and randomness come in, entries of the log and an answer go out. Every
request takes the same steps: who signed it, is it for this deployment, is it fresh, may this caller do this, and only
then the one event that changes the state. A refusal that somebody could later have to explain is an event too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from secfl.attestation.binding import NONCE_BYTES, Purpose
from secfl.attestation.challenge import TTL_SECONDS, ChallengeBook
from secfl.attestation.claims import VerifiedEvidence
from secfl.crypto import strict_json
from secfl.crypto.signing import VerifiedPayload, verify_envelope
from secfl.errors import (
    AuthorizationError,
    EncodingError,
    FreshnessError,
    SecflError,
    StateError,
    UnavailableError,
    VerificationError,
)
from secfl.manager import fold
from secfl.manager.attesting import Attempt, admit, prepare, refusal_of
from secfl.manager.identity import Random
from secfl.manager.log import Entry, Event, Log
from secfl.manager.operations import PARTY_OPERATIONS, SERVICE_OPERATIONS, UNLOGGED
from secfl.manager.services import mailbox
from secfl.manager.state import State
from secfl.manager.step import Context, Settings, Step
from secfl.protocol.failure import encode_failure
from secfl.protocol.message import Message
from secfl.protocol.public import NonceReply
from secfl.protocol.routes import Role, Route
from secfl.protocol.service import MailboxAsk, ServiceCall

__all__ = ["ANY_SUBJECT", "Manager", "Outcome"]

ANY_SUBJECT = "any"
"""Nonces of this manager fit every exchange: what uses one says in its own label or purpose what it is for."""
_SALT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request; the answer may leave only when the entries are on the disk.

    Attributes:
        entries: new entries of the log, in order.
        status: HTTP status.
        body: the answer.
    """

    entries: tuple[Entry, ...]
    status: int
    body: bytes


class Manager:
    """The state machine over one log."""

    def __init__(self, log: Log, state: State, *, settings: Settings | None = None) -> None:
        """Continue from a log and the state that follows from it."""
        self.log = log
        self.state = state
        self.settings = settings or Settings()
        self._nonces = ChallengeBook()
        self._broken = False

    def append(self, event: Event, *, now: int, random: Random) -> Entry:
        """Add an event to the log and to the state.

        Raises:
            EncodingError: the event has no canonical form.
            StateError: `manager.broken`: an earlier entry could not be taken into account; restart.
        """
        if self._broken:
            raise StateError("manager.broken", "an entry could not be taken into account", hint="restart the manager")
        # Until both have it the two may differ: an entry that is lost in between would tear the chain on the disk.
        self._broken = True
        entry = self.log.append(event, now=now, salt=random(_SALT_BYTES))
        fold.apply(self.state, entry)
        self._broken = False
        return entry

    def nonce(self, *, now: int, random: Random) -> NonceReply:
        """Issue a nonce.

        Raises:
            UnavailableError: `challenge.too_many`.
            FreshnessError: `challenge.weak`.
        """
        moment = self._moment(now)
        nonce = self._nonces.issue(random(NONCE_BYTES), purpose=Purpose.ATTEST, subject=ANY_SUBJECT, now=moment)
        return NonceReply(nonce=nonce, expires=moment + TTL_SECONDS)

    def handle(self, route: Route, body: bytes, *, now: int, random: Random) -> Outcome:
        """Decide one signed request."""
        context = Context(self.state, self._moment(now), random, self.settings)
        try:
            if route.role is Role.PARTY:
                return self._party(route, body, context)
            if route.role is Role.SERVICE:
                return self._service(route, body, context)
        except SecflError as error:
            return Outcome((), *encode_failure(error))
        return Outcome((), *encode_failure(AuthorizationError("route.role", "this operation takes no signed request")))

    def begin(self, route: Route, body: bytes, *, now: int, random: Random) -> Attempt | Outcome:
        """Take an attestation request up to the point where its evidence is to be verified."""
        context = Context(self.state, self._moment(now), random, self.settings)
        try:
            attempt = prepare(context, route.name, body)
        except SecflError as error:
            return Outcome((), *encode_failure(error))
        try:
            # Used up before anything else is looked at: a second copy of this request finds nothing (EV-08, EV-10).
            self._redeem(attempt.nonce, context)
            return attempt.check(context)
        except SecflError as error:
            return self._refused(refusal_of(attempt, error, None), error, context)

    def finish(
        self, attempt: Attempt, verified: VerifiedEvidence | SecflError, *, collateral: str, now: int, random: Random
    ) -> Outcome:
        """Conclude an attestation with what the verifier found, or why it found nothing.

        Args:
            collateral: digest of the bundle that it was verified with.
        """
        attempt = replace(attempt, collateral=collateral)
        context = Context(self.state, self._moment(now), random, self.settings)
        found = verified if isinstance(verified, VerifiedEvidence) else None
        try:
            if isinstance(verified, SecflError):
                raise verified
            step = admit(context, attempt, verified)
        except SecflError as error:
            if isinstance(error, UnavailableError):
                return Outcome((), *encode_failure(error))
            return self._refused(refusal_of(attempt, error, found), error, context)
        return self._accepted(step, context)

    def mailbox_again(self, lease_id: str, *, now: int, random: Random) -> Message:
        """Look again for an accepted mailbox call that waits.

        Raises:
            StateError: `lease.lapsed`.
        """
        lease = next((one for one in self.state.leases_by_key.values() if one.lease_id == lease_id), None)
        if lease is None:
            raise StateError("lease.lapsed", "the lease has ended", hint="attest again")
        context = Context(self.state, self._moment(now), random, self.settings, lease=lease)
        return mailbox(context, MailboxAsk(seen=0, wait=0)).reply

    def _party(self, route: Route, body: bytes, context: Context) -> Outcome:
        operation = PARTY_OPERATIONS[route.name]
        key_id = _stated_key(body)
        try:
            signed = verify_envelope(body, purpose=route.purpose, keys=self.state.known_keys().values())
            context = replace(context, caller=signed.signer, envelope=body)
            message = operation.read(signed.payload, route.limit)
            self._require_deployment(getattr(message, "deployment_id", ""))
            nonce = getattr(message, "nonce", None)
            if nonce is not None:
                self._redeem(nonce, context)
            step = operation.decide(context, message)
        except EncodingError:
            raise
        except SecflError as error:
            if route.name in UNLOGGED or isinstance(error, UnavailableError):
                raise
            event = Event("refused", {"code": error.code, "key": key_id, "operation": route.name})
            return self._refused(event, error, context)
        return self._accepted(step, context)

    def _service(self, route: Route, body: bytes, context: Context) -> Outcome:
        operation = SERVICE_OPERATIONS[route.name]
        keys = [lease.tls_key for lease in self.state.leases_by_key.values()]
        signed = verify_envelope(body, purpose=route.purpose, keys=keys)
        call = ServiceCall.decode(signed.payload, max_bytes=route.limit)
        context = replace(context, caller=signed.signer, lease=self.state.leases_by_key[signed.signer.key_id])
        try:
            self._require_fresh_call(call, route, signed)
            message = operation.read(strict_json.encode(call.body), route.limit)
            step = operation.decide(context, message)
        except EncodingError:
            raise
        except SecflError as error:
            if route.name in UNLOGGED or isinstance(error, UnavailableError):
                raise
            public = {"code": error.code, "key": signed.signer.key_id, "operation": route.name}
            return self._refused(Event("refused", public), error, context)
        if step.event is not None:
            record = {"lease_id": call.lease_id, "operation": route.name, "sequence": call.sequence}
            event = replace(step.event, public={**step.event.public, "call": record})
            step = replace(step, event=event)
        return self._accepted(step, context)

    def _require_fresh_call(self, call: ServiceCall, route: Route, signed: VerifiedPayload) -> None:
        self._require_deployment(call.deployment_id)
        lease = self.state.leases_by_key[signed.signer.key_id]
        if lease.lease_id != call.lease_id:
            raise AuthorizationError("lease.other", "the lease is not one of this key")
        slot = (call.lease_id, route.name)
        if call.sequence <= self.state.calls.get(slot, -1):
            raise FreshnessError("call.replayed", "a call with this sequence number was made before")
        # Consumed even if the call is refused below: what was sent once is never looked at again (SE-13).
        self.state.calls[slot] = call.sequence

    def _require_deployment(self, deployment_id: str) -> None:
        if deployment_id != self.state.identity.deployment_id:
            raise VerificationError(
                "deployment.other",
                "the request is for another deployment",
                expected=self.state.identity.deployment_id,
                actual=deployment_id,
            )

    def _redeem(self, nonce: bytes, context: Context) -> None:
        self._nonces.redeem(nonce, purpose=Purpose.ATTEST, subject=ANY_SUBJECT, now=context.now)

    def _accepted(self, step: Step, context: Context) -> Outcome:
        entries = () if step.event is None else (self.append(step.event, now=context.now, random=context.random),)
        return Outcome(entries, 200, step.reply.encode())

    def _refused(self, event: Event, error: SecflError, context: Context) -> Outcome:
        entry = self.append(event, now=context.now, random=context.random)
        return Outcome((entry,), *encode_failure(error))

    def _moment(self, now: int) -> int:
        # The host owns the clock: it may stand still for us, but it never runs back (leases, grants, votes).
        return max(now, self.log.time)


def _stated_key(envelope: bytes) -> str:
    try:
        document = strict_json.decode_any(envelope)
        return str(document["signatures"][0]["keyid"])[:64]
    except (EncodingError, KeyError, IndexError, TypeError):
        return ""
