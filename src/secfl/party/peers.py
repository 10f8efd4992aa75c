"""Attesting a running service: the party's own nonce, its own copy of the policy, its own collateral.

The manager carries the challenge and the answer, as any post office would: a relayed, swapped or old answer is bound to
another nonce, service, key or policy, and fails here. Nothing that the manager says is used as a reference.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from secfl.attestation.appraise import Appraised
from secfl.attestation.binding import NONCE_BYTES, Purpose
from secfl.attestation.evidence import Evidence
from secfl.errors import UnavailableError, VerificationError
from secfl.party.documents import image_roots
from secfl.party.session import ManagerSession
from secfl.party.trust import TrustStore
from secfl.policy.requirements import reference_values
from secfl.policy.version import PolicyVersion
from secfl.protocol.binding import Subject, service_binding
from secfl.protocol.party import ChallengeAsk, ChallengePoll, ChallengeReply, ChallengeState

__all__ = ["PeerAttestation", "PeerVerifier"]

_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class PeerAttestation:
    """A service as this party found it.

    Attributes:
        service: `STUDY/SERVICE`.
        site: the node id.
        appraised: the verdict, with claims and statement.
        tls_key: SubjectPublicKeyInfo of the TLS key in use.
    """

    service: str
    site: str
    appraised: Appraised
    tls_key: bytes


class PeerVerifier:
    """One party's view of one study: its copy of the policy, its collateral, its manager."""

    def __init__(self, session: ManagerSession, trust: TrustStore, policy: bytes) -> None:
        self._session = session
        self._trust = trust
        self._version = PolicyVersion.read(policy)
        self._policy = self._version.policy
        self._policy_hash = self._version.hash.hex()

    def attest(
        self, service: str, *, clock: Callable[[], float] = time.time, patience: float = 15.0
    ) -> PeerAttestation:
        """Challenge a running service and appraise its answer; wait for it up to `patience` seconds.

        Raises:
            UnavailableError: `peer.no_answer`.
            VerificationError: the answer is not authentic, or bound to something else.
            AppraisalError: the service is not what the policy names.
        """
        challenge, state = self.challenge(service, patience=patience)
        return self.accept(service, challenge=challenge, state=state, now=int(clock()))

    def challenge(self, service: str, *, patience: float = 15.0) -> tuple[bytes, ChallengeState]:
        """Send a nonce of our own to a running service; returns the nonce and the unverified answer.

        Raises:
            UnavailableError: `peer.no_answer`.
            SecflError: what the manager refused.
        """
        challenge = os.urandom(NONCE_BYTES)
        asked = self._session.ask(
            "challenges",
            lambda deployment, nonce: ChallengeAsk(
                deployment_id=deployment, nonce=nonce, study=self._policy.name, service=service, challenge=challenge
            ),
            ChallengeReply,
        )
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            state = self._session.ask(
                "challenges/poll",
                lambda deployment, nonce: ChallengePoll(
                    deployment_id=deployment, nonce=nonce, challenge_id=asked.challenge_id
                ),
                ChallengeState,
            )
            if state.answered:
                return challenge, state
            time.sleep(_POLL_SECONDS)
        raise UnavailableError("peer.no_answer", f"{self._policy.name}/{service} did not answer", hint="is it running?")

    def accept(self, service: str, *, challenge: bytes, state: ChallengeState, now: int) -> PeerAttestation:
        """Decide on an answer: bound to this party's nonce and policy, authentic, and what the policy names.

        Raises:
            VerificationError: `peer.incomplete`, or as `TrustStore.accept`.
            AppraisalError: as `TrustStore.accept`.
        """
        if not (state.evidence and state.site and state.tls_key and state.sealing_key and state.launch_claims):
            raise VerificationError("peer.incomplete", "the answer lacks evidence, keys or claims")
        subject = Subject(
            study=self._policy.name,
            service=service,
            site=state.site,
            tls_key=state.tls_key,
            sealing_key=state.sealing_key,
            deployment_id=self._session.deployment_id,
            manager_certificate=self._session.pin.identity.certificate,
        )
        binding = service_binding(
            Purpose.PEER, subject, nonce=challenge, policy_hash=self._policy_hash, claims=state.launch_claims
        )
        evidence = Evidence.decode(state.evidence.encode())
        reference = reference_values(self._policy, service, roots=image_roots(self._session, self._policy, service))
        appraised = self._trust.accept(evidence, binding, reference, now)
        return PeerAttestation(f"{self._policy.name}/{service}", state.site, appraised, state.tls_key)
