"""The record form of claims, read back from a verifier process of our own.

This is the second place that makes `VerifiedEvidence`: the worker that wrote the record is a child that this process
started from its own code. A record from anywhere else is not evidence, and nothing else may call this.
"""

from __future__ import annotations

from typing import Any

from secfl.attestation.claims import VERIFIER_SEAL, SgxIdentity, TdxIdentity, VerifiedEvidence
from secfl.crypto.encoding import from_hex
from secfl.errors import EncodingError, UnavailableError

__all__ = ["claims_from_record"]

_BINARY = ("measurement", "report_data", "platform_id", "fmspc", "evidence_digest")


def claims_from_record(record: dict[str, Any]) -> VerifiedEvidence:
    """Rebuild what `VerifiedEvidence.to_record` gave.

    Raises:
        UnavailableError: `verifier.crashed` when the record is not of that form.
    """
    try:
        plain = dict(record)
        own = plain.pop("identity")
        identity = _sgx(own) if plain["kind"] == "sgx" else _tdx(own)
        plain |= {name: from_hex(plain[name]) for name in _BINARY}
        plain["advisory_ids"] = tuple(plain["advisory_ids"])
        return VerifiedEvidence(seal=VERIFIER_SEAL, identity=identity, **plain)
    except (EncodingError, KeyError, TypeError, ValueError) as error:
        raise UnavailableError("verifier.crashed", "the verifier process answered out of form") from error


def _sgx(own: dict[str, Any]) -> SgxIdentity:
    return SgxIdentity(
        signer=from_hex(own["signer"], size=32),
        product=own["product"],
        svn=own["svn"],
        attributes=from_hex(own["attributes"], size=16),
        misc_select=own["misc_select"],
    )


def _tdx(own: dict[str, Any]) -> TdxIdentity:
    first, second, third, fourth = (from_hex(value, size=48) for value in own["rtmrs"])
    return TdxIdentity(
        rtmrs=(first, second, third, fourth),
        **{name: from_hex(own[name]) for name in ("attributes", "xfam", "config_id", "owner", "owner_config", "seam")},
    )
