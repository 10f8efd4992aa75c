"""A workload on a forged machine: its keys, its binding, and evidence over it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from secfl.attestation.appraise import ReferenceValues, Variant
from secfl.attestation.binding import Binding, Purpose
from secfl.attestation.statement import Isolation, LaunchClaims
from secfl.crypto.hpke import SealingKey
from secfl.crypto.signing import SigningKey
from secfl.crypto.x509 import Validity, make_ca
from secfl.testing.forge import NOW, Case, Forge

__all__ = ["AttestedWorkload"]


class AttestedWorkload:
    """Holds what a shield holds while it attests."""

    def __init__(self, forge: Forge) -> None:
        """Make the keys of one launch."""
        self.forge = forge
        self.tls = SigningKey.generate_p256()
        self.sealing = SealingKey.generate()
        authority = make_ca(SigningKey.generate_p256(), name="manager", validity=Validity(NOW, NOW + 3600))
        self.good = Binding(
            purpose=Purpose.ATTEST,
            service="heart/trainer-a",
            policy_hash=b"p" * 32,
            nonce=os.urandom(32),
            tls_spki=self.tls.public.spki,
            sealing_key=self.sealing.public,
            manager_certificate=authority.certificate,
            deployment_id="deployment-1",
            node_id="hospital-a",
            claims=LaunchClaims(Isolation.FULL, "instance-1", roots={"cohort": b"r" * 32}),
        )

    def binding(self, **changes: Any) -> Binding:
        """The binding with fields changed as given."""
        return replace(self.good, **changes)

    def case(self, binding: Binding | None = None) -> Case:
        """Good evidence over a binding."""
        return self.forge.case((binding if binding is not None else self.good).report_data())

    def reference(self, **changes: Any) -> ReferenceValues:
        """Reference values that accept exactly this workload, with factors changed as given."""
        good = Variant(
            trust_domain=self.forge.vendor.anchor().domain,
            tee=self.forge.kind,
            measurements=frozenset({self.forge.measurement}),
            platforms=frozenset({self.forge.machine.platform_id}),
            minimum_evaluation=20,
            roots={"cohort": b"r" * 32},
        )
        return ReferenceValues((replace(good, **changes),))
