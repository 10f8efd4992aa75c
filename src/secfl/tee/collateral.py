"""Collateral: the vendor's signed statements that a quote is verified with, strictly decoded but not yet verified.

It comes from the relying party's own store or caching service, never from the attester: whoever chooses the
collateral chooses how old the known vulnerabilities are. `secfl.tee.endorsement.check_collateral` verifies it, and
only what passed there is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

from secfl.crypto import strict_json
from secfl.crypto.encoding import from_hex
from secfl.errors import EncodingError

__all__ = ["MAX_COLLATERAL_BYTES", "Collateral"]

MAX_COLLATERAL_BYTES = 2 * 1024 * 1024
"""Largest collateral document, in bytes; real ones have 10 to 30 KiB, CRLs grow."""
_SIGNATURE_BYTES = 64
_MAX_TEXT: Final = {
    "pck_crl_issuer_chain": 16 * 1024,
    "tcb_info_issuer_chain": 16 * 1024,
    "qe_identity_issuer_chain": 16 * 1024,
    "tcb_info": 256 * 1024,
    "qe_identity": 64 * 1024,
}
_MAX_BINARY: Final = {
    "root_ca_crl": 256 * 1024,
    "pck_crl": 512 * 1024,
    "tcb_info_signature": _SIGNATURE_BYTES,
    "qe_identity_signature": _SIGNATURE_BYTES,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """Unverified collateral for one platform family and one kind of enclave; members as in Intel's QuoteCollateralV3.

    Attributes:
        pck_crl_issuer_chain: PEM, the PCK CA and the root.
        root_ca_crl: DER.
        pck_crl: DER.
        tcb_info_issuer_chain: PEM, the TCB signer and the root.
        tcb_info: the JSON text exactly as signed.
        tcb_info_signature: 64 bytes.
        qe_identity_issuer_chain: PEM, the TCB signer and the root.
        qe_identity: the JSON text exactly as signed.
        qe_identity_signature: 64 bytes.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes

    def __post_init__(self) -> None:
        """Refuse members that are absent or too large: a missing CRL is no empty one (EV-21).

        Raises:
            EncodingError: `collateral.size`.
        """
        for name, limit in (*_MAX_TEXT.items(), *_MAX_BINARY.items()):
            size = len(getattr(self, name))
            if not 0 < size <= limit:
                raise EncodingError("collateral.size", f"{name} is empty or too large", expected=limit, actual=size)
        if len(self.tcb_info_signature) != _SIGNATURE_BYTES or len(self.qe_identity_signature) != _SIGNATURE_BYTES:
            raise EncodingError("collateral.size", "a signature has 64 bytes")

    def encode(self) -> bytes:
        """Write canonical JSON; binary members in hex."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return strict_json.encode({k: v.hex() if isinstance(v, bytes) else v for k, v in values.items()})

    @classmethod
    def decode(cls, data: bytes) -> Collateral:
        """Read a QuoteCollateralV3 JSON document, ours or a caching service's.

        The optional tenth member `pck_certificate_chain` is refused: it would override the chain in the quote.

        Raises:
            EncodingError: `collateral.malformed`, `collateral.size`, or a JSON or hex code.
        """
        document = strict_json.decode_any(data, max_bytes=MAX_COLLATERAL_BYTES)
        if not isinstance(document, dict) or set(document) != set(_MAX_TEXT) | set(_MAX_BINARY):
            raise EncodingError("collateral.malformed", "not the nine members of QuoteCollateralV3")
        if not all(isinstance(value, str) for value in document.values()):
            raise EncodingError("collateral.malformed", "a member is not text")
        members: dict[str, Any] = {}
        for name, text in document.items():
            members[name] = from_hex(text) if name in _MAX_BINARY else text
        return cls(**members)
