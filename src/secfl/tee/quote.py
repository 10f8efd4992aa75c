"""The layout of DCAP quotes: SGX version 3, TDX versions 4 and 5.

A quote is read completely: every length must fit, the certificate chain must be in its one spelling, and nothing but
zero padding may follow, so that no byte is left that nobody signed. An ECDSA signature still has a twin: the identity
of evidence is the digest of its signed region, never of the quote. Nothing read here is authentic yet.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from secfl.crypto.transcript import digest256
from secfl.errors import EncodingError
from secfl.tee.endorsement import PemChain

__all__ = [
    "INTEL_QE_VENDOR",
    "QE_AUTH_BYTES",
    "SGX_BODY_BYTES",
    "TDX_BODY_BYTES",
    "TDX_BODY_TYPES",
    "TEE_TYPES",
    "UnverifiedQuote",
    "parse",
]

INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
QE_AUTH_BYTES = 32
SGX_BODY_BYTES = 384
TDX_BODY_BYTES = 584
TDX_BODY_TYPES = {2: TDX_BODY_BYTES, 3: TDX_BODY_BYTES + 64}
"""Body types of version 5: TD report 1.0 and 1.5."""
TEE_TYPES = {0x00: "sgx", 0x81: "tdx"}
_HEADER_BYTES = 48
_ECDSA_P256 = 2
_PCK_CHAIN, _QE_REPORT = 5, 6
_CHAIN_LENGTH = 3
_VERSIONS = {"sgx": (3,), "tdx": (4, 5)}


@dataclass(frozen=True, slots=True)
class UnverifiedQuote:
    """The parts of a quote that nobody has verified.

    Attributes:
        kind: `sgx` or `tdx`.
        version: 3, 4 or 5.
        body: the report.
        signed_region: header and body, what the attestation key signs.
        chain: PCK certificate, PCK CA, root.
        raw: the quote without padding.
    """

    kind: str
    version: int
    body: bytes
    signed_region: bytes
    chain: PemChain
    raw: bytes

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the attester chose: the last of an SGX report and of a TD report 1.0."""
        end = SGX_BODY_BYTES if self.kind == "sgx" else TDX_BODY_BYTES
        return self.body[end - 64 : end]

    @property
    def digest(self) -> bytes:
        """The identity of this evidence."""
        return digest256("evidence", self.kind.encode(), self.signed_region)


def parse(blob: bytes) -> UnverifiedQuote:
    """Read a quote and drop zero padding after it.

    Raises:
        EncodingError: `quote.truncated`, `quote.trailing_bytes`, `quote.version`, `quote.key_type`,
            `quote.tee_type`, `quote.body_type`, `quote.vendor`, `quote.malformed` or `chain.malformed`.
    """
    reader = _Reader(blob)
    kind, version = _header(reader.take(_HEADER_BYTES))
    size = SGX_BODY_BYTES if kind == "sgx" else TDX_BODY_BYTES
    if version == 5:
        body_type, stated = struct.unpack("<HI", reader.take(6))
        if TDX_BODY_TYPES.get(body_type) != stated:
            raise EncodingError("quote.body_type", "an unknown type of report", actual=body_type)
        size = stated
    body = reader.take(size)
    signed_region = blob[: reader.position]
    # The attestation signature and key (64 bytes each) are the cryptographic verifier's business.
    data = _Reader(reader.take(reader.length()))
    data.take(128)
    if version >= 4:
        data.expect_type(_QE_REPORT)
        data = data.nested()
    data.take(SGX_BODY_BYTES + 64)
    if data.short() != QE_AUTH_BYTES:
        raise EncodingError("quote.malformed", "QE authentication data has 32 bytes")
    data.take(QE_AUTH_BYTES)
    data.expect_type(_PCK_CHAIN)
    chain = data.nested().rest()
    raw, padding = blob[: reader.position], blob[reader.position :]
    if padding.strip(b"\0"):
        raise EncodingError("quote.trailing_bytes", "bytes other than zero padding follow the quote")
    pem = PemChain.decode(chain.removesuffix(b"\0"), length=_CHAIN_LENGTH)
    return UnverifiedQuote(kind, version, body, signed_region, pem, raw)


def _header(header: bytes) -> tuple[str, int]:
    version, key_type, tee_type = struct.unpack_from("<HHI", header)
    if tee_type not in TEE_TYPES:
        raise EncodingError("quote.tee_type", "an unknown TEE type", actual=tee_type)
    kind = TEE_TYPES[tee_type]
    if version not in _VERSIONS[kind]:
        raise EncodingError("quote.version", "an unknown quote version for this TEE", actual=version)
    if key_type != _ECDSA_P256:
        raise EncodingError("quote.key_type", "only ECDSA P-256 attestation keys", actual=key_type)
    if header[12:28] != INTEL_QE_VENDOR:
        raise EncodingError("quote.vendor", "an unknown vendor of the quoting enclave")
    return kind, version


class _Reader:
    # Takes bytes from the front; never reads past the end.

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise EncodingError("quote.truncated", "the quote ends too early", expected=end, actual=len(self._data))
        part = self._data[self.position : end]
        self.position = end
        return part

    def short(self) -> int:
        return int.from_bytes(self.take(2), "little")

    def length(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def expect_type(self, expected: int) -> None:
        actual = self.short()
        if actual != expected:
            raise EncodingError("quote.malformed", "another type of certification data", actual=actual)

    def nested(self) -> _Reader:
        # The last member of its parent: it must fill the parent exactly.
        inner = _Reader(self.take(self.length()))
        if self.rest():
            raise EncodingError("quote.malformed", "bytes between the parts of the quote")
        return inner

    def rest(self) -> bytes:
        return self.take(len(self._data) - self.position)
