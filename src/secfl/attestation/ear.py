"""The attestation result: an EAR (draft-ietf-rats-ear-04) as a JWS with ES256.

It says what was appraised, under which trust domain, and confirms the keys that the evidence was bound to. Evidence
of a simulated platform never gets an affirming hardware claim, so that even a consumer that knows nothing of SECFL
sees a warning. Reading is strict: one algorithm, one header, one encoding, both times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from secfl.attestation.appraise import UP_TO_DATE, AnyPlatform, Appraised
from secfl.attestation.binding import Binding
from secfl.attestation.statement import Isolation, LaunchClaims, ManagerClaims, decode_statement
from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, from_hex, to_base64url
from secfl.crypto.signing import PublicKey, SigningKey
from secfl.errors import EncodingError, FreshnessError, VerificationError

__all__ = ["EAR_PROFILE", "MAX_TOKEN_BYTES", "AttestationResult", "issue", "result_of", "verify"]

EAR_PROFILE = "tag:ietf.org,2026:rats/ear#04"
MAX_TOKEN_BYTES = 32 * 1024
"""Longest token: a result with 64 mounted roots has about 16 KiB."""
_CLOCK_SKEW = 5
"""Seconds that the issuer's clock may be ahead."""
_TYPE = "eat+jwt"
_VERIFIER = {"build": "secfl/1", "developer": "secfl"}
_COORDINATE_BYTES = 32

# AR4SI trustworthiness values.
_NO_CLAIM, _AFFIRMING, _WARNING, _CONTRAINDICATED = 0, 2, 32, 96
_TIERS = ((_CONTRAINDICATED, "contraindicated"), (_WARNING, "warning"), (_AFFIRMING, "affirming"), (_NO_CLAIM, "none"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationResult:
    """What a verifier vouches for.

    Attributes:
        trust_domain: the anchor's domain.
        tee: `sgx` or `tdx`.
        measurement: MRENCLAVE or MRTD.
        platform_id: PPID.
        tcb_status: merged status.
        tolerated: status and advisories that were let pass.
        evidence_digest: identity of the evidence.
        vector: AR4SI trustworthiness vector.
        service: `STUDY/SERVICE` or `manager`.
        node_id: the site.
        deployment_id: the deployment.
        policy_hash: 32 bytes.
        tls_spki_digest: SHA-256 of the attested TLS key's SubjectPublicKeyInfo.
        sealing_key_digest: SHA-256 of the attested HPKE key.
        statement: the attester's statement.
        issued_at: Unix seconds.
        expires_at: Unix seconds.
    """

    trust_domain: str
    tee: str
    measurement: bytes
    platform_id: bytes
    tcb_status: str
    tolerated: tuple[str, ...]
    evidence_digest: bytes
    vector: Mapping[str, int]
    service: str
    node_id: str
    deployment_id: str
    policy_hash: bytes
    tls_spki_digest: bytes
    sealing_key_digest: bytes
    statement: LaunchClaims | ManagerClaims
    issued_at: int
    expires_at: int

    @property
    def simulated(self) -> bool:
        """Whether the platform is simulated; show SIMULATED wherever this result is shown."""
        return self.trust_domain.startswith("simulated:")

    @property
    def status(self) -> str:
        """The worst tier of the vector: `affirming`, `warning`, `contraindicated` or `none`."""
        worst = max(self.vector.values(), default=_NO_CLAIM)
        return next(name for bound, name in _TIERS if worst >= bound)


def result_of(appraised: Appraised, binding: Binding, *, issued_at: int, expires_at: int) -> AttestationResult:
    """State the result for appraised evidence and the binding that was checked against it.

    Raises:
        VerificationError: `ear.unbound` when the statement appraised is not the binding's.
        ValueError: the result would end before it begins.
    """
    if appraised.statement != binding.claims:
        raise VerificationError("ear.unbound", "the appraised statement is not the one that the evidence covers")
    if expires_at <= issued_at:
        raise ValueError("a result ends after it begins")
    verified = appraised.verified
    return AttestationResult(
        trust_domain=verified.trust_domain,
        tee=verified.kind,
        measurement=verified.measurement,
        platform_id=verified.platform_id,
        tcb_status=verified.tcb_status,
        tolerated=appraised.tolerated,
        evidence_digest=verified.evidence_digest,
        vector=_vector(appraised),
        service=binding.service,
        node_id=binding.node_id,
        deployment_id=binding.deployment_id,
        policy_hash=binding.policy_hash,
        tls_spki_digest=hashlib.sha256(binding.tls_spki).digest(),
        sealing_key_digest=hashlib.sha256(binding.sealing_key).digest(),
        statement=binding.claims,
        issued_at=issued_at,
        expires_at=expires_at,
    )


def issue(result: AttestationResult, key: SigningKey) -> str:
    """Sign the result as a compact JWS.

    Raises:
        EncodingError: `ear.key` when the key is not P-256.
    """
    signed = f"{_part(_header(key.public))}.{_part(_claims(result))}"
    try:
        r, s = decode_dss_signature(key.sign(signed.encode()))
    except ValueError as error:
        raise EncodingError("ear.key", "an attestation result is signed with a P-256 key") from error
    signature = r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")
    return f"{signed}.{to_base64url(signature)}"


def verify(token: str, *, key: PublicKey, now: int) -> AttestationResult:
    """Return the result that this key signed and that is in force.

    Raises:
        EncodingError: `ear.malformed`, or a JSON, base64, hex or statement code.
        VerificationError: `ear.header` or `signature.invalid`.
        FreshnessError: `ear.expired` or `ear.not_yet_valid`.
    """
    if len(token) > MAX_TOKEN_BYTES or not token.isascii():
        raise EncodingError("ear.malformed", "the token is too long or not ASCII")
    parts = token.split(".")
    if len(parts) != 3:
        raise EncodingError("ear.malformed", "not a compact JWS of three parts")
    # 1. The header is compared, never obeyed: no algorithm of the sender's choice, no `none`, no embedded key.
    if parts[0] != _part(_header(key)):
        raise VerificationError("ear.header", "not the one header that this key's results have")
    # 2. The signature, before the payload is parsed.
    signature = from_base64url(parts[2], size=2 * _COORDINATE_BYTES)
    r, s = (int.from_bytes(half, "big") for half in (signature[:_COORDINATE_BYTES], signature[_COORDINATE_BYTES:]))
    key.verify(f"{parts[0]}.{parts[1]}".encode(), encode_dss_signature(r, s))
    # 3. The content, then the times.
    result = _read(strict_json.decode(from_base64url(parts[1]), max_bytes=MAX_TOKEN_BYTES))
    if now + _CLOCK_SKEW < result.issued_at:
        raise FreshnessError("ear.not_yet_valid", "the attestation result is dated in the future", now=now)
    if now > result.expires_at:
        raise FreshnessError("ear.expired", "the attestation result has expired", now=now)
    return result


def _vector(appraised: Appraised) -> dict[str, int]:
    verified, statement = appraised.verified, appraised.statement
    genuine = _WARNING if verified.simulated else _AFFIRMING
    isolated = statement.isolation >= Isolation.FULL
    has_roots = isinstance(statement, LaunchClaims) and appraised.variant.roots is not None
    return {
        "configuration": _AFFIRMING,
        "executables": _AFFIRMING,
        "file-system": _AFFIRMING if has_roots else _NO_CLAIM,
        "hardware": genuine if verified.tcb_status == UP_TO_DATE else _WARNING,
        "instance-identity": _NO_CLAIM if isinstance(appraised.variant.platforms, AnyPlatform) else _AFFIRMING,
        "runtime-opaque": genuine if isolated else _WARNING,
    }


def _header(key: PublicKey) -> dict[str, str]:
    return {"alg": "ES256", "kid": key.key_id, "typ": _TYPE}


def _part(value: dict[str, Any]) -> str:
    return to_base64url(strict_json.encode(value))


def _claims(result: AttestationResult) -> dict[str, Any]:
    submodule = {
        "ear_appraisal_policy_ids": [f"urn:secfl:policy:{result.policy_hash.hex()}"],
        "ear_status": result.status,
        "ear_trustworthiness_vector": dict(result.vector),
        "secfl": {
            "deployment": result.deployment_id,
            "evidence_sha256": result.evidence_digest.hex(),
            "measurement": result.measurement.hex(),
            "node": result.node_id,
            "platform": result.platform_id.hex(),
            "policy": result.policy_hash.hex(),
            "sealing_key_sha256": result.sealing_key_digest.hex(),
            "simulated": result.simulated,
            "statement": result.statement.encode().decode(),
            "tcb_status": result.tcb_status,
            "tee": result.tee,
            "tls_spki_sha256": result.tls_spki_digest.hex(),
            "tolerated": list(result.tolerated),
            "trust_domain": result.trust_domain,
        },
    }
    return {
        "ear_verifier_id": dict(_VERIFIER),
        "eat_profile": EAR_PROFILE,
        "exp": result.expires_at,
        "iat": result.issued_at,
        "submods": {result.service: submodule},
    }


def _read(document: Any) -> AttestationResult:
    try:
        ((service, submodule),) = document["submods"].items()
        own = submodule["secfl"]
        result = AttestationResult(
            trust_domain=_text(own["trust_domain"]),
            tee=_text(own["tee"]),
            measurement=from_hex(own["measurement"]),
            platform_id=from_hex(own["platform"]),
            tcb_status=_text(own["tcb_status"]),
            tolerated=tuple(_text(item) for item in own["tolerated"]),
            evidence_digest=from_hex(own["evidence_sha256"], size=32),
            vector={_text(name): _number(value) for name, value in submodule["ear_trustworthiness_vector"].items()},
            service=_text(service),
            node_id=_text(own["node"]),
            deployment_id=_text(own["deployment"]),
            policy_hash=from_hex(own["policy"], size=32),
            tls_spki_digest=from_hex(own["tls_spki_sha256"], size=32),
            sealing_key_digest=from_hex(own["sealing_key_sha256"], size=32),
            statement=decode_statement(_text(own["statement"]).encode()),
            issued_at=_number(document["iat"]),
            expires_at=_number(document["exp"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EncodingError("ear.malformed", "not an attestation result of this profile") from error
    # Whatever was not read above, or says something else than its source, shows here: one result has one encoding.
    if _claims(result) != document:
        raise EncodingError("ear.malformed", "the attestation result contradicts itself or has further claims")
    return result


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("not a number")
    return value
