"""Trust anchors: the one root under which evidence is verified, and the trust domain that names it.

The hardware root is pinned by its digest in code. A simulated root is never built in: its domain is the digest of the
root itself, so that whoever accepts one has to name it, and a simulated root can never pass for a hardware one
(EV-28).
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID

from secfl.crypto.x509 import PARSE_ERRORS
from secfl.errors import VerificationError

__all__ = [
    "HARDWARE_INTEL",
    "SIMULATED_ORGANIZATION",
    "SIMULATED_PREFIX",
    "TrustAnchor",
    "intel_anchor",
    "simulated_anchor",
]

HARDWARE_INTEL = "hardware:intel"
SIMULATED_PREFIX = "simulated:"
SIMULATED_ORGANIZATION = "simulated platform (no hardware)"
"""Organization in every certificate of a simulated vendor."""
_INTEL_ROOT_SHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
_MAX_ROOT_BYTES = 4096
_INTEL_ROOT = base64.b64decode(
    "MIICjzCCAjSgAwIBAgIUImUM1lqdNInzg7SVUr9QGzknBqwwCgYIKoZIzj0EAwIwaDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3Qg"
    "Q0ExGjAYBgNVBAoMEUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYT"
    "AlVTMB4XDTE4MDUyMTEwNDUxMFoXDTQ5MTIzMTIzNTk1OVowaDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNVBAoM"
    "EUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYTAlVTMFkwEwYHKoZI"
    "zj0CAQYIKoZIzj0DAQcDQgAEC6nEwMDIYZOj/iPWsCzaEKi71OiOSLRFhWGjbnBVJfVnkY4u3IjkDYYL0MxO4mqsyYjlBalTVYxF"
    "P2sJBK5zlKOBuzCBuDAfBgNVHSMEGDAWgBQiZQzWWp00ifODtJVSv1AbOScGrDBSBgNVHR8ESzBJMEegRaBDhkFodHRwczovL2Nl"
    "cnRpZmljYXRlcy50cnVzdGVkc2VydmljZXMuaW50ZWwuY29tL0ludGVsU0dYUm9vdENBLmRlcjAdBgNVHQ4EFgQUImUM1lqdNInz"
    "g7SVUr9QGzknBqwwDgYDVR0PAQH/BAQDAgEGMBIGA1UdEwEB/wQIMAYBAf8CAQEwCgYIKoZIzj0EAwIDSQAwRgIhAOW/5QkR+S9C"
    "iSDcNoowLuPRLsWGf/Yi7GSX94BgwTwgAiEA4J0lrHoMs+Xo5o/sX6O9QWxHRAvZUGOdRQ7cvqRXaqI="
)


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """A root certificate under the name of its trust domain.

    Attributes:
        domain: `hardware:intel`, or `simulated:` and the SHA-256 of the root in hex.
        root_der: the root certificate.
    """

    domain: str
    root_der: bytes

    def __post_init__(self) -> None:
        """Refuse a root that is not the domain's.

        Raises:
            VerificationError: `anchor.unknown_domain`, `anchor.wrong_root` or `anchor.not_simulated`.
        """
        digest = hashlib.sha256(self.root_der).hexdigest()
        if self.domain == HARDWARE_INTEL:
            if digest != _INTEL_ROOT_SHA256:
                raise VerificationError("anchor.wrong_root", "not the pinned Intel root", actual=digest)
            return
        if not self.domain.startswith(SIMULATED_PREFIX):
            raise VerificationError("anchor.unknown_domain", "an unknown trust domain", actual=self.domain[:64])
        if self.domain != SIMULATED_PREFIX + digest:
            raise VerificationError("anchor.wrong_root", "the root is not the one that the domain names", actual=digest)
        if len(self.root_der) > _MAX_ROOT_BYTES or _organization(self.root_der) != SIMULATED_ORGANIZATION:
            raise VerificationError("anchor.not_simulated", "the root does not call itself simulated")

    @property
    def simulated(self) -> bool:
        """Whether evidence under this root says nothing about hardware."""
        return self.domain.startswith(SIMULATED_PREFIX)

    @property
    def vendor(self) -> str:
        """First word of every common name below this root."""
        return "Simulated" if self.simulated else "Intel"


def intel_anchor() -> TrustAnchor:
    """The anchor for Intel SGX and TDX hardware."""
    return TrustAnchor(HARDWARE_INTEL, _INTEL_ROOT)


def simulated_anchor(root_der: bytes) -> TrustAnchor:
    """The anchor of a simulated vendor, under the domain that its root gives.

    Raises:
        VerificationError: `anchor.not_simulated`.
    """
    return TrustAnchor(SIMULATED_PREFIX + hashlib.sha256(root_der).hexdigest(), root_der)


def _organization(root_der: bytes) -> str | None:
    try:
        subject = x509.load_der_x509_certificate(root_der).subject
    except PARSE_ERRORS:
        return None
    values = [attribute.value for attribute in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None
