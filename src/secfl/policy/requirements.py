"""What evidence must show for a service: its attestation entries as reference values."""

from __future__ import annotations

from collections.abc import Mapping

from secfl.attestation.appraise import UP_TO_DATE, ReferenceValues, Tolerance, Variant
from secfl.policy.model import Policy
from secfl.policy.services import Attestation, Service

__all__ = ["reference_values"]


def reference_values(policy: Policy, service: str, *, roots: Mapping[str, bytes] | None) -> ReferenceValues:
    """Translate a service's entries.

    Args:
        roots: root of each image that the service must have mounted; None before it can have mounted any.

    Raises:
        StateError: `policy.unknown_service`.
    """
    entry = policy.service(service)
    return ReferenceValues(tuple(_variant(entry, variant, roots) for variant in entry.attestation))


def _variant(service: Service, variant: Attestation, roots: Mapping[str, bytes] | None) -> Variant:
    return Variant(
        trust_domain=variant.trust_domain,
        tee=variant.tee,
        measurements=frozenset(variant.measurement),
        platforms=frozenset(service.platforms),
        roots=roots,
        tolerances=_tolerances(variant),
        minimum_evaluation=variant.minimum_tcb_evaluation,
        allow_smt=variant.smt == "allow",
    )


def _tolerances(variant: Attestation) -> tuple[Tolerance, ...]:
    until = variant.tolerated_until
    if until is None:
        return ()
    advisories = frozenset(variant.advisories)
    # UpToDate itself needs an entry only for its open advisories.
    return tuple(
        Tolerance(status, advisories, until) for status in variant.tcb_status if status != UP_TO_DATE or advisories
    )
