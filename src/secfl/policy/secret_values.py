"""Values of a policy's secrets: made inside the manager, kept over updates, stored encrypted, shown to nobody.

A value is kept while its entry in the policy is the same but for the name's place in the file; certificates also while
their key and issuer are the same and less than two thirds of their time is over. Everything else is made anew. The
random source and the time are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import assert_never

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, from_hex, to_base64url
from secfl.crypto.signing import SigningKey
from secfl.crypto.transcript import digest256
from secfl.crypto.x509 import Authority, LeafProfile, Usage, Validity, issue_leaf, make_ca
from secfl.errors import EncodingError, SecflError, StateError
from secfl.policy.model import Policy
from secfl.policy.secret_kinds import (
    AsciiSecret,
    AuthoritySecret,
    BinarySecret,
    CertificateSecret,
    PrivateKeySecret,
    Secret,
)

__all__ = ["SecretValue", "SecretValues", "generate"]

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_BACKDATE = 300
"""Certificates begin so many seconds early, for peers whose clock is slow."""
_ORDERS = {
    "P-256": (ec.SECP256R1(), 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551),
    "P-384": (
        ec.SECP384R1(),
        int("f" * 48 + "c7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16),
    ),
}
"""Curves and their group orders (FIPS 186-5, SP 800-186)."""
_TRIES = 128
"""More draws than this without a usable value mean a broken random source."""
_MAX_STORED = 8 * 1024 * 1024

Random = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class SecretValue:
    """One value.

    Attributes:
        kind: the kind in the policy.
        entry: digest of what the value was made from; another digest means another value.
        value: raw bytes, PKCS#8 DER or certificate DER.
        renew_at: Unix time from which a certificate is made anew; None for the other kinds.
    """

    kind: str
    entry: bytes
    value: bytes = field(repr=False)
    renew_at: int | None = None


@dataclass(frozen=True, slots=True)
class SecretValues:
    """The values of all secrets of a policy, by name."""

    values: Mapping[str, SecretValue] = field(default_factory=dict)

    def __getitem__(self, name: str) -> SecretValue:
        """Find a value.

        Raises:
            StateError: `secret.no_value`.
        """
        try:
            return self.values[name]
        except KeyError:
            raise StateError("secret.no_value", "the secret has no value yet", name=name) from None

    def encode(self) -> bytes:
        """Write as canonical JSON, to be encrypted by the caller."""
        return strict_json.encode(
            {
                name: {
                    "entry": value.entry.hex(),
                    "kind": value.kind,
                    "renew_at": value.renew_at,
                    "value": to_base64url(value.value),
                }
                for name, value in self.values.items()
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> SecretValues:
        """Read what `encode` wrote.

        Raises:
            EncodingError: `secret.store_malformed`; without detail, as the bytes are secret.
        """
        try:
            document = strict_json.decode(data, max_bytes=_MAX_STORED)
            values = {name: _stored(entry) for name, entry in document.items()}
        except (SecflError, AttributeError, KeyError, TypeError):
            raise EncodingError("secret.store_malformed", "not stored secret values") from None
        return cls(values)


def _stored(entry: object) -> SecretValue:
    if not isinstance(entry, dict) or set(entry) != {"entry", "kind", "renew_at", "value"}:
        raise TypeError("not a stored value")
    renew_at = entry["renew_at"]
    if not isinstance(entry["kind"], str) or not (renew_at is None or type(renew_at) is int):
        raise TypeError("not a stored value")
    return SecretValue(entry["kind"], from_hex(entry["entry"], size=32), from_base64url(entry["value"]), renew_at)


def generate(policy: Policy, previous: SecretValues, *, random: Random, now: int) -> SecretValues:
    """Give each secret of the policy its value: the previous one where it is kept, a new one otherwise.

    Raises:
        StateError: `secret.random_source` when the source gives too few or unusable bytes.
    """
    maker = _Maker(policy, previous, random, now)
    # Keys come before authorities and authorities before leaves: each needs what is before it.
    for secret in sorted(policy.secrets, key=_rank):
        maker.add(secret)
    return SecretValues({secret.name: maker.made[secret.name] for secret in policy.secrets})


def _rank(secret: Secret) -> int:
    return 2 if isinstance(secret, CertificateSecret) else int(isinstance(secret, AuthoritySecret))


class _Maker:
    def __init__(self, policy: Policy, previous: SecretValues, random: Random, now: int) -> None:
        self._authority_keys = {s.name: s.private_key for s in policy.secrets if isinstance(s, AuthoritySecret)}
        self._previous = previous
        self._random = random
        self._now = now
        self.made: dict[str, SecretValue] = {}

    def add(self, secret: Secret) -> None:
        entry = self._entry(secret)
        old = self._previous.values.get(secret.name)
        if old is not None and old.entry == entry and (old.renew_at is None or self._now < old.renew_at):
            self.made[secret.name] = old
            return
        renew_at = None
        if isinstance(secret, AuthoritySecret | CertificateSecret):
            renew_at = self._now + 2 * secret.valid_for // 3
        self.made[secret.name] = SecretValue(secret.kind, entry, self._value(secret), renew_at)

    def _entry(self, secret: Secret) -> bytes:
        fields = [strict_json.encode(secret.model_dump(exclude={"name"}))]
        if isinstance(secret, AuthoritySecret | CertificateSecret):
            fields.append(self._key(secret.private_key).public.spki)
        if isinstance(secret, CertificateSecret):
            fields.append(self.made[secret.issuer].value)
        return digest256("secret-entry", *fields)

    def _value(self, secret: Secret) -> bytes:
        match secret:
            case BinarySecret():
                return self._draw(secret.size)
            case AsciiSecret():
                return bytes(_ALPHABET[self._below(len(_ALPHABET))] for _ in range(secret.size))
            case PrivateKeySecret():
                return self._private_key(secret.key_type)
            case AuthoritySecret():
                return make_ca(
                    self._key(secret.private_key), name=secret.common_name, validity=self._validity(secret.valid_for)
                ).certificate
            case CertificateSecret():
                return self._leaf(secret)
            case _:
                assert_never(secret)

    def _draw(self, size: int) -> bytes:
        data = self._random(size)
        if len(data) != size:
            raise StateError("secret.random_source", "the random source gave another number of bytes")
        return data

    def _below(self, bound: int) -> int:
        for _ in range(_TRIES):
            byte = self._draw(1)[0]
            if byte < 256 - 256 % bound:  # the rest would favour the first letters
                return byte % bound
        raise StateError("secret.random_source", "the random source gives no usable bytes")

    def _private_key(self, key_type: str) -> bytes:
        key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey
        if key_type == "Ed25519":
            key = Ed25519PrivateKey.from_private_bytes(self._draw(32))
        else:
            curve, order = _ORDERS[key_type]
            key = ec.derive_private_key(self._scalar(order), curve)
        return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    def _scalar(self, order: int) -> int:
        for _ in range(_TRIES):  # FIPS 186-5 A.2.2, generation by rejection
            scalar = int.from_bytes(self._draw((order.bit_length() + 7) // 8))
            if 0 < scalar < order:
                return scalar
        raise StateError("secret.random_source", "the random source gives no usable bytes")

    def _key(self, name: str) -> SigningKey:
        key = load_der_private_key(self.made[name].value, None)
        if not isinstance(key, Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
            raise StateError("secret.no_value", "the stored key is of another kind", name=name)
        return SigningKey(key)

    def _validity(self, seconds: int) -> Validity:
        return Validity(self._now - _BACKDATE, self._now + seconds)

    def _leaf(self, secret: CertificateSecret) -> bytes:
        issuer = self.made[secret.issuer]
        authority = Authority(self._key(self._authority_keys[secret.issuer]), issuer.value)
        names = [name.partition(":") for name in secret.san]
        profile = LeafProfile(
            common_name=secret.common_name,
            validity=self._validity(secret.valid_for),
            dns=tuple(value for kind, _, value in names if kind == "dns"),
            ips=tuple(value for kind, _, value in names if kind == "ip"),
            usages=frozenset({Usage(secret.endpoint)}),
        )
        return issue_leaf(authority, self._key(secret.private_key).public, profile)
