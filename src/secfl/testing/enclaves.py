"""Enclaves in memory: the attester of a program on a simulated machine, and a service as its shield would act.

A workload sends the same bytes as a shield; what an adversary does differently is a changed argument.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from secfl.attestation.binding import Purpose
from secfl.attestation.evidence import Evidence
from secfl.attestation.statement import Isolation, LaunchClaims
from secfl.crypto import strict_json
from secfl.crypto.hpke import SealingKey
from secfl.crypto.signing import SigningKey
from secfl.policy.version import policy_hash
from secfl.protocol.binding import Subject, service_binding
from secfl.protocol.message import Message
from secfl.protocol.payload import ServicePayload
from secfl.protocol.public import AttestReply, AttestRequest, RenewReply, RenewRequest, payload_context
from secfl.protocol.routes import route
from secfl.protocol.service import ServiceCall
from secfl.tee.simulated.machine import MEASUREMENT_BYTES, SimulatedMachine

if TYPE_CHECKING:
    from secfl.testing.deployment import Deployment

__all__ = ["KIND", "MANAGER_MEASUREMENT", "MEASUREMENT", "MachineAttester", "Workload"]

KIND = "tdx"
MEASUREMENT = bytes([0x4D]) * MEASUREMENT_BYTES[KIND]
"""Measurement of every good workload."""
MANAGER_MEASUREMENT = bytes([0x3A]) * MEASUREMENT_BYTES[KIND]


class MachineAttester:
    """The attester of a program with a given measurement on a simulated machine."""

    def __init__(self, machine: SimulatedMachine, measurement: bytes = MEASUREMENT) -> None:
        self._machine = machine
        self._measurement = measurement

    @property
    def kind(self) -> str:
        """Kind of evidence."""
        return KIND

    @property
    def platform_id(self) -> bytes:
        """The machine's id."""
        return self._machine.platform_id

    def collect(self, report_data: bytes) -> Evidence:
        """Quote."""
        return self._machine.quote(KIND, self._measurement, report_data)

    def sealing_key(self, label: str) -> bytes:
        """Derive."""
        return self._machine.sealing_key(self._measurement, label)


class Workload:
    """A service in its enclave: keys, launch claims, and what it received."""

    def __init__(self, deployment: Deployment, service: str, *, site: str, roots: Mapping[str, bytes]) -> None:
        """Make the keys of one launch."""
        self._deployment = deployment
        self.service = service
        self.site = site
        self.attester = MachineAttester(deployment.machines[site])
        self.tls = SigningKey.generate_p256()
        self.sealing = SealingKey.generate()
        self.claims = LaunchClaims(Isolation.FULL, os.urandom(8).hex(), roots=dict(roots))
        self.study = "heart"
        self.policy = b""
        self.lease_id = ""
        self.sequence = 0

    def evidence(self, purpose: Purpose, nonce: bytes, **changes: Any) -> str:
        """Collect evidence, over a subject with members changed as given."""
        subject = {
            "study": self.study,
            "service": self.service,
            "site": self.site,
            "tls_key": self.tls.public.spki,
            "sealing_key": self.sealing.public,
            "deployment_id": self._deployment.deployment_id,
            "manager_certificate": self._deployment.manager.state.identity.public.certificate,
        }
        values = {"nonce": nonce, "policy_hash": policy_hash(self.policy).hex(), "claims": self.claims.encode()}
        binding = service_binding(
            purpose,
            Subject(**(subject | {key: value for key, value in changes.items() if key in subject})),
            **(values | {key: value for key, value in changes.items() if key in values}),
        )
        return self.attester.collect(binding.report_data()).encode().decode()

    def request(self, nonce: bytes, **changes: Any) -> AttestRequest:
        """An attestation request, good but for the changes."""
        request = AttestRequest(
            nonce=nonce,
            study=self.study,
            service=self.service,
            site=self.site,
            policy_hash=policy_hash(self.policy).hex(),
            evidence=self.evidence(Purpose.ATTEST, nonce),
            tls_key=self.tls.public.spki,
            sealing_key=self.sealing.public,
            launch_claims=self.claims.encode(),
        )
        return request.model_copy(update=changes)

    def attest(self) -> ServicePayload:
        """Attest and open what comes back.

        Raises:
            SecflError: the manager refuses.
        """
        request = self.request(self._deployment.nonce())
        reply = AttestReply.decode(self._deployment.attest("attest", request))
        self.lease_id = reply.lease_id
        opened = self.sealing.open(
            reply.sealed, purpose="service-payload", context=payload_context(request.nonce, request.policy_hash)
        )
        return ServicePayload.decode(opened)

    def renew(self) -> RenewReply:
        """Renew the lease.

        Raises:
            SecflError: the manager refuses.
        """
        nonce = self._deployment.nonce()
        request = RenewRequest(
            nonce=nonce,
            lease_id=self.lease_id,
            policy_hash=policy_hash(self.policy).hex(),
            evidence=self.evidence(Purpose.RENEW, nonce),
            launch_claims=self.claims.encode(),
        )
        return RenewReply.decode(self._deployment.attest("renew", request))

    def signed(self, name: str, body: Message) -> bytes:
        """Sign the next service call."""
        self.sequence += 1
        call = ServiceCall(
            deployment_id=self._deployment.deployment_id,
            lease_id=self.lease_id,
            sequence=self.sequence,
            body=strict_json.decode(body.encode()),
        )
        return self.tls.sign_envelope(route(name).purpose, call.encode())

    def call(self, name: str, body: Message) -> bytes:
        """Make a service call.

        Raises:
            SecflError: the manager refuses.
        """
        return self._deployment.send(name, self.signed(name, body))
