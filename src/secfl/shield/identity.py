"""Who is at the other end: the enclave's own TLS identity, and the check of a peer's attested certificate.

TLS 1.3 only, certificates on both sides, no tickets and no resumption, so that every connection authenticates anew
(NW-01, NW-04). The only trust anchor is the study's CA; the system's store is never read (NW-02). What counts is not
the name in a certificate but the attestation result that it carries: service, policy hash, lease (NW-15).
"""

from __future__ import annotations

import base64
import hashlib
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from secfl.attestation.result_certificate import verify_result
from secfl.attestation.statement import LaunchClaims
from secfl.crypto import x509
from secfl.crypto.x509 import Usage
from secfl.errors import AuthorizationError, ConfigError, EncodingError, FreshnessError, SecflError, VerificationError

__all__ = [
    "Authenticate",
    "Identity",
    "Peer",
    "PeerRules",
    "attested_peers",
    "checking_context",
    "client_context",
    "node_key_header",
    "pinned_client_context",
    "plain_server_context",
    "require_channel",
    "server_context",
]


@dataclass(frozen=True, slots=True)
class Peer:
    """What a peer's attestation result vouches for.

    Attributes:
        service: the service's name in the policy.
        site: the node id.
        node_key: the engine's node key in OpenSSH form, empty when there is none.
        sealing_key_hash: SHA-256 of the peer's HPKE key.
        lease_until: Unix seconds; after that the peer must not be served.
        policy_hash: 32 bytes.
    """

    service: str
    site: str
    node_key: str
    sealing_key_hash: bytes
    lease_until: int
    policy_hash: bytes


Authenticate = Callable[[bytes, int], Peer]
"""Checks a peer's DER certificate at a time; returns the peer or raises `SecflError`."""


@dataclass(frozen=True, slots=True)
class PeerRules:
    """What a peer must be.

    Attributes:
        services: the accepted services; empty accepts nobody.
        policy_hash: the policy under which both ends must have been attested.
    """

    services: frozenset[str]
    policy_hash: bytes

    def admit(self, peer: Peer, now: float, *, lease_until: int | None = None) -> Peer:
        """Return the peer when it is an accepted one now.

        Args:
            lease_until: a later lease that the manager reported, when there is one.

        Raises:
            AuthorizationError: `peer.service_not_listed` or `peer.policy_differs`.
            FreshnessError: `peer.lease_lapsed`.
        """
        if peer.service not in self.services:
            raise AuthorizationError("peer.service_not_listed", "this service may not connect", actual=peer.service)
        if peer.policy_hash != self.policy_hash:
            raise AuthorizationError("peer.policy_differs", "the peer was attested under another policy")
        if now >= max(peer.lease_until, lease_until or 0):
            raise FreshnessError("peer.lease_lapsed", "the peer's attestation has lapsed", site=peer.site)
        return peer


def attested_peers(study_ca: bytes, *, study: str, usage: Usage) -> Authenticate:
    """Make the check of result certificates of one study's CA.

    Args:
        study_ca: DER certificate.
        study: the policy's name.
        usage: how the peer uses its certificate: a gateway's peers are clients.
    """

    def authenticate(certificate: bytes, now: int) -> Peer:
        result = verify_result(certificate, authority=study_ca, now=now, usage=usage).result
        name = result.service.removeprefix(f"{study}/")
        if name == result.service or not isinstance(result.statement, LaunchClaims):
            raise AuthorizationError("peer.service_not_listed", "not a service of this study", actual=result.service)
        return Peer(
            service=name,
            site=result.node_id,
            node_key=result.statement.node_key,
            sealing_key_hash=result.sealing_key_digest,
            lease_until=result.expires_at,
            policy_hash=result.policy_hash,
        )

    return authenticate


@dataclass(frozen=True, slots=True)
class Identity:
    """A leaf certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes

    @property
    def leaf_hash(self) -> bytes:
        """SHA-256 of the DER certificate.

        Raises:
            EncodingError: `certificate.malformed`.
        """
        return hashlib.sha256(x509.from_pem(self.certificate)).digest()

    def __repr__(self) -> str:
        """Keep the key out of logs and tracebacks."""
        return "Identity(...)"


def server_context(identity: Identity, study_ca: bytes) -> ssl.SSLContext:
    """TLS for the gateway: clients must show a certificate of the study's CA (PEM).

    Raises:
        ConfigError: `tls.identity` or `tls.authority`.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity)
    context.verify_mode = ssl.CERT_REQUIRED
    _trust(context, study_ca)
    return context


def client_context(identity: Identity, study_ca: bytes) -> ssl.SSLContext:
    """TLS for the sidecar: the gateway must show a certificate of the study's CA (PEM).

    Raises:
        ConfigError: `tls.identity` or `tls.authority`.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, identity)
    # The peer is an attested service; where its site lives on the network says nothing about it.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    _trust(context, study_ca)
    return context


def checking_context(context: ssl.SSLContext, check: Callable[[ssl.SSLObject], None]) -> ssl.SSLContext:
    """Make a client context run `check` as the last step of each handshake, so before a byte of a request leaves.

    `check` raises `SecflError` to refuse; the connection then fails as with a bad certificate.
    """

    class CheckedObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            try:
                check(self)
            except SecflError as error:
                raise ssl.SSLCertVerificationError(error.code) from error

    context.sslobject_class = CheckedObject
    return context


def plain_server_context(identity: Identity) -> ssl.SSLContext:
    """TLS towards the program inside, which shows no certificate.

    Raises:
        ConfigError: `tls.identity`.
    """
    return _context(ssl.PROTOCOL_TLS_SERVER, identity)


def pinned_client_context(authority: bytes) -> ssl.SSLContext:
    """TLS towards the program inside, whose own CA (PEM) is pinned.

    Raises:
        ConfigError: `tls.authority`.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, None)
    _trust(context, authority)
    return context


def require_channel(channel: ssl.SSLObject) -> bytes:
    """Return the peer's DER certificate of an established, fresh TLS 1.3 connection.

    Raises:
        VerificationError: `tls.version`, `tls.resumed` or `tls.no_certificate`.
    """
    if channel.version() != "TLSv1.3":
        raise VerificationError("tls.version", "only TLS 1.3 is accepted", actual=channel.version())
    if channel.session_reused:
        raise VerificationError("tls.resumed", "a resumed session proves nothing about the peer")
    certificate = channel.getpeercert(binary_form=True)
    if certificate is None:
        raise VerificationError("tls.no_certificate", "the peer showed no certificate")
    return certificate


def node_key_header(node_key: str) -> str:
    """The header value that names a node key: base64 of its PEM SubjectPublicKeyInfo.

    Raises:
        EncodingError: `peer.node_key`.
    """
    try:
        key = load_ssh_public_key(node_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EncodingError("peer.node_key", "the peer's evidence names no usable node key") from error
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(pem).decode("ascii")


def _context(protocol: int, identity: Identity | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    if identity is not None:
        _load(context, identity)
    return context


def _load(context: ssl.SSLContext, identity: Identity) -> None:
    # `ssl` reads key files only; an anonymous memory file never touches a file system.
    descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(identity.key + b"\n" + identity.certificate)
        # The empty password keeps OpenSSL from asking on a terminal.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError("tls.identity", "the certificate and key cannot be loaded") from error
    finally:
        os.close(descriptor)


def _trust(context: ssl.SSLContext, authority: bytes) -> None:
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cadata=authority.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError("tls.authority", "the CA certificate cannot be loaded") from error
    if not context.get_ca_certs():
        raise ConfigError("tls.authority", "the CA file holds no CA certificate")
