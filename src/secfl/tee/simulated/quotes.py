"""The simulated quoting enclave: it signs SGX version 3 and TDX version 4 and 5 quotes in the hardware's format.

Its attestation key is certified by the machine's PCK key once, as on hardware. Nothing here decides what is measured:
the platform process does.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from secfl.crypto.signing import SigningKey
from secfl.crypto.transcript import digest384
from secfl.tee.quote import INTEL_QE_VENDOR, QE_AUTH_BYTES, TDX_BODY_TYPES
from secfl.tee.sgx import FLAG_INIT, FLAG_MODE64
from secfl.tee.simulated.tcb import CPU_SVN, QE_MISC_SELECT, QE_PRODUCTS, QE_SIGNER, QE_SVN, TEE_TCB_SVN
from secfl.tee.tdx import SEPT_VE_DISABLE

__all__ = ["EnclaveReport", "QeProfile", "QuotingEnclave", "TdReport", "header"]

_XFRM = (0xE7).to_bytes(8, "little")
_XFAM = bytes.fromhex("e702060000000000")
_MODULE = digest384("simulated-tdx-module")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveReport:
    """An SGX report; what is not named here is zero."""

    measurement: bytes
    report_data: bytes
    signer: bytes = bytes(32)
    product: int = 0
    svn: int = 0
    flags: int = FLAG_INIT | FLAG_MODE64
    cpu_svn: bytes = CPU_SVN
    misc_select: int = 0

    def encode(self) -> bytes:
        """The 384 bytes.

        Raises:
            ValueError: a member has the wrong size.
        """
        _sizes((self.measurement, 32), (self.report_data, 64), (self.signer, 32), (self.cpu_svn, 16))
        return b"".join(
            (
                self.cpu_svn,
                struct.pack("<I", self.misc_select) + bytes(28),
                struct.pack("<Q", self.flags) + _XFRM,
                self.measurement + bytes(32),
                self.signer + bytes(96),
                struct.pack("<HH", self.product, self.svn) + bytes(60),
                self.report_data,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """A TD report; version 1.5 adds a second TCB vector and the service TD's measurement."""

    measurement: bytes
    report_data: bytes
    attributes: int = SEPT_VE_DISABLE
    tee_tcb_svn: bytes = TEE_TCB_SVN
    service_td: bytes = bytes(48)

    def encode(self, *, body_type: int = 2) -> bytes:
        """The 584 bytes of report 1.0 (type 2) or the 648 bytes of report 1.5 (type 3).

        Raises:
            ValueError: a member has the wrong size.
        """
        _sizes((self.measurement, 48), (self.report_data, 64), (self.tee_tcb_svn, 16), (self.service_td, 48))
        body = b"".join(
            (
                self.tee_tcb_svn,
                _MODULE + bytes(48 + 8),
                struct.pack("<Q", self.attributes),
                _XFAM,
                self.measurement,
                bytes(3 * 48 + 4 * 48),
                self.report_data,
            )
        )
        return body if body_type == 2 else body + self.tee_tcb_svn + self.service_td


@dataclass(frozen=True, slots=True, kw_only=True)
class QeProfile:
    """What the quoting enclave says of itself."""

    svn: int = QE_SVN
    signer: bytes = QE_SIGNER
    product: int | None = None
    flags: int = 0x11
    misc_select: int = QE_MISC_SELECT


class QuotingEnclave:
    """Holds an attestation key that a PCK key certified; lives in the platform process only."""

    def __init__(self, kind: str, pck: SigningKey, chain: bytes, *, profile: QeProfile | None = None) -> None:
        """Make an attestation key and have it certified.

        Args:
            kind: `sgx` or `tdx`.
            chain: PEM of the PCK certificate, the PCK CA and the root.
            profile: what the enclave says of itself; the vendor's QE identity expects the default.

        Raises:
            KeyError: an unknown kind.
        """
        profile = profile if profile is not None else QeProfile()
        self.kind = kind
        self._key = SigningKey.generate_p256()
        public = _raw_public(self._key)
        auth = os.urandom(QE_AUTH_BYTES)
        report = EnclaveReport(
            measurement=hashlib.sha256(b"simulated quoting enclave").digest(),
            report_data=hashlib.sha256(public + auth).digest() + bytes(32),
            signer=profile.signer,
            product=profile.product if profile.product is not None else QE_PRODUCTS[kind],
            svn=profile.svn,
            flags=profile.flags,
            misc_select=profile.misc_select,
        ).encode()
        self._public = public
        self._certified = b"".join(
            (
                report + _raw_signature(pck, report),
                struct.pack("<H", QE_AUTH_BYTES) + auth,
                struct.pack("<HI", 5, len(chain)) + chain,
            )
        )

    def quote(self, report: EnclaveReport | TdReport, *, version: int | None = None) -> bytes:
        """Sign a report; version 3 for SGX, 4 (default) or 5 for TDX."""
        if isinstance(report, EnclaveReport):
            return self.sign(header(3, 0x00), report.encode(), nested=False)
        if version == 5:
            body = report.encode(body_type=3)
            return self.sign(header(5, 0x81) + struct.pack("<HI", 3, TDX_BODY_TYPES[3]), body, nested=True)
        return self.sign(header(4, 0x81), report.encode(), nested=True)

    def sign(self, head: bytes, body: bytes, *, nested: bool) -> bytes:
        """Sign any header and body, and add what certifies the key."""
        certified = self._certified
        if nested:
            certified = struct.pack("<HI", 6, len(certified)) + certified
        data = _raw_signature(self._key, head + body) + self._public + certified
        return head + body + struct.pack("<I", len(data)) + data


def header(version: int, tee_type: int, *, key_type: int = 2) -> bytes:
    """A quote header of 48 bytes."""
    return struct.pack("<HHIHH", version, key_type, tee_type, 0, 0) + INTEL_QE_VENDOR + bytes(20)


def _raw_public(key: SigningKey) -> bytes:
    public = load_der_public_key(key.public.spki)
    if not isinstance(public, EllipticCurvePublicKey):
        raise TypeError("an attestation key is a P-256 key")
    numbers = public.public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def _raw_signature(key: SigningKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _sizes(*pairs: tuple[bytes, int]) -> None:
    for value, size in pairs:
        if len(value) != size:
            raise ValueError(f"expected {size} bytes, not {len(value)}")
