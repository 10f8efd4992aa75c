"""The enrolment: how an enclave becomes a service of a study, stays one, and proves it to any party.

The order is security:
1. make the TLS and sealing keys inside the enclave; no private key ever crosses;
2. look at the manager's certificate in the handshake and bind to exactly that (a man in the middle changes it);
3. take a nonce, collect evidence over everything, send it;
4. open the answer with the attested key: a relay holds no private key and gains nothing (EV-12);
5. check that the answer is for the study, service, site and policy that the evidence was made for.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Protocol

from secfl.attestation.binding import Purpose
from secfl.attestation.statement import LaunchClaims
from secfl.crypto import strict_json
from secfl.crypto.hpke import SealingKey
from secfl.crypto.signing import SigningKey
from secfl.errors import VerificationError
from secfl.protocol.binding import Subject, service_binding
from secfl.protocol.message import Message
from secfl.protocol.payload import ServicePayload
from secfl.protocol.public import (
    AttestReply,
    AttestRequest,
    Identity,
    NonceReply,
    RenewReply,
    RenewRequest,
    payload_context,
)
from secfl.protocol.routes import route
from secfl.protocol.service import Answer, PendingChallenge, ReleaseKeyReply, ServiceCall, release_key_context
from secfl.shield.config import LaunchConfig
from secfl.tee.attester import Attester

__all__ = ["Admission", "Enrolment", "Transport"]

_MAX_REPLY = 64 * 1024 * 1024


class Transport(Protocol):
    """A connection to the manager."""

    @property
    def certificate(self) -> bytes:
        """DER certificate that the manager showed in this connection's handshake."""
        ...

    def call(self, name: str, body: bytes = b"") -> bytes:
        """Make one request by its route name and return the body of the answer.

        Raises:
            SecflError: the error that the manager answered.
            UnavailableError: the manager does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Admission:
    """What the manager gave this enclave.

    Attributes:
        payload: configuration and secrets.
        lease_id: names the lease.
        lease_until: Unix time at which peers drop this service.
        certificates: leaf with the attestation result, then the study's CA, DER.
    """

    payload: ServicePayload
    lease_id: str
    lease_until: int
    certificates: tuple[bytes, ...]


class Enrolment:
    """Keys, evidence and lease of one enclave; safe to use from several threads after `attest`."""

    def __init__(self, config: LaunchConfig, attester: Attester, transport: Transport, claims: LaunchClaims) -> None:
        self._config = config
        self._attester = attester
        self._claims = claims
        self._sealing = SealingKey.generate()
        self.tls_key = SigningKey.generate_p256()
        self.identity = Identity.decode(transport.call("identity"))
        self.manager_certificate = transport.certificate
        self._sequence: dict[str, int] = {}
        self._turns: dict[str, threading.Lock] = {}
        self._admission: Admission | None = None

    @property
    def admission(self) -> Admission:
        """The present admission.

        Raises:
            VerificationError: `enrolment.not_attested`.
        """
        if self._admission is None:
            raise VerificationError("enrolment.not_attested", "this enclave is not attested")
        return self._admission

    @property
    def sealing_public(self) -> bytes:
        """The attested public sealing key."""
        return self._sealing.public

    @property
    def sealing_key(self) -> SealingKey:
        """The attested sealing key, for sessions with peers."""
        return self._sealing

    def _evidence(self, purpose: Purpose, nonce: bytes) -> str:
        config = self._config
        subject = Subject(
            study=config.study,
            service=config.service,
            site=config.site,
            tls_key=self.tls_key.public.spki,
            sealing_key=self._sealing.public,
            deployment_id=self.identity.deployment_id,
            manager_certificate=self.manager_certificate,
        )
        binding = service_binding(
            purpose, subject, nonce=nonce, policy_hash=config.policy_hash, claims=self._claims.encode()
        )
        return self._attester.collect(binding.report_data()).encode().decode()

    def attest(self, transport: Transport) -> Admission:
        """Attest for the first time and open the answer.

        Raises:
            SecflError: what the manager refused, or `enrolment.wrong_answer`.
        """
        nonce = NonceReply.decode(transport.call("nonces", b"{}")).nonce
        config = self._config
        request = AttestRequest(
            nonce=nonce,
            study=config.study,
            service=config.service,
            site=config.site,
            policy_hash=config.policy_hash,
            evidence=self._evidence(Purpose.ATTEST, nonce),
            tls_key=self.tls_key.public.spki,
            sealing_key=self._sealing.public,
            launch_claims=self._claims.encode(),
        )
        reply = AttestReply.decode(transport.call("attest", request.encode()), max_bytes=_MAX_REPLY)
        opened = self._sealing.open(
            reply.sealed, purpose="service-payload", context=payload_context(nonce, config.policy_hash)
        )
        payload = ServicePayload.decode(opened, max_bytes=_MAX_REPLY)
        stated = (payload.study, payload.service, payload.site, payload.policy_hash)
        if stated != (config.study, config.service, config.site, config.policy_hash):
            raise VerificationError("enrolment.wrong_answer", "the answer is for another service, site or policy")
        self._admission = Admission(payload, reply.lease_id, reply.lease_until, reply.certificates)
        return self._admission

    def renew(self, transport: Transport) -> Admission:
        """Renew the lease with fresh evidence over the same keys.

        Raises:
            SecflError: what the manager refused.
        """
        nonce = NonceReply.decode(transport.call("nonces", b"{}")).nonce
        request = RenewRequest(
            nonce=nonce,
            lease_id=self.admission.lease_id,
            policy_hash=self._config.policy_hash,
            evidence=self._evidence(Purpose.RENEW, nonce),
            launch_claims=self._claims.encode(),
        )
        reply = RenewReply.decode(transport.call("renew", request.encode()))
        self._admission = replace(self.admission, lease_until=reply.lease_until, certificates=reply.certificates)
        return self._admission

    def call(self, transport: Transport, name: str, message: Message) -> bytes:
        """Make a signed service request; its sequence rises strictly within the operation.

        Raises:
            SecflError: what the manager refused.
        """
        # The turn lasts until the answer: of two threads, the later number could arrive first, and the manager would
        # take the earlier one for a replay.
        with self._turns.setdefault(name, threading.Lock()):
            self._sequence[name] = self._sequence.get(name, 0) + 1
            call = ServiceCall(
                deployment_id=self.identity.deployment_id,
                lease_id=self.admission.lease_id,
                sequence=self._sequence[name],
                body=strict_json.decode(message.encode()),
            )
            return transport.call(name, self.tls_key.sign_envelope(route(name).purpose, call.encode()))

    def answer(self, challenge: PendingChallenge) -> Answer:
        """Answer a party's challenge with evidence of the purpose `peer` over the party's own nonce."""
        return Answer(
            challenge_id=challenge.challenge_id,
            evidence=self._evidence(Purpose.PEER, challenge.nonce),
            launch_claims=self._claims.encode(),
        )

    def open_release_key(self, reply: ReleaseKeyReply, volume: str) -> bytes:
        """Open a fresh release key.

        Raises:
            VerificationError: `crypto.open_failed`.
        """
        context = release_key_context(self.identity.deployment_id, self.admission.lease_id, volume)
        return self._sealing.open(reply.sealed_key, purpose="release-key", context=context)
