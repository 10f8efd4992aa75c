"""The cryptographic foundation: one spelling per value, purposes kept apart, failures without detail."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from secfl.crypto import aead, encoding, hpke, strict_json
from secfl.crypto.signing import PublicKey, SigningKey, verify_envelope
from secfl.crypto.transcript import digest256, transcript
from secfl.errors import AuthorizationError, EncodingError, SecflError, VerificationError


def test_a_transcript_separates_its_fields() -> None:
    """Moving a byte from one field to the next changes the transcript."""
    assert transcript("x", b"ab", b"c") != transcript("x", b"a", b"bc")
    assert transcript("x", b"ab") != transcript("x", b"ab", b"")
    assert digest256("x", b"a") != digest256("y", b"a")


@pytest.mark.parametrize("label", ["", "é"])
def test_a_transcript_needs_an_ascii_label(label: str) -> None:
    """A label that is empty or not ASCII is refused."""
    with pytest.raises(ValueError, match="label"):
        transcript(label, b"")


def test_canonical_json_round_trips() -> None:
    """What is encoded decodes to the same value and encodes to the same bytes."""
    value = {"b": [1, None, True, "ü"], "a": {"x": -(2**63) + 1}}
    data = strict_json.encode(value)
    assert data == b'{"a":{"x":-9223372036854775807},"b":[1,null,true,"\xc3\xbc"]}'
    assert strict_json.decode(data) == value


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1}',
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b"1.0",
        b"1e3",
        b"NaN",
        b"-0",
        b"01",
        b'"\\u0061"',
        b'"\\ud800"',
        b"[1] ",
        b"[1]x",
        b"\xff",
        b"",
        b"99999999999999999999999",
        b"9223372036854775808",
        b"[" * 10_000 + b"]" * 10_000,
    ],
)
def test_another_spelling_is_refused(data: bytes) -> None:
    """A document that is malformed or not canonical ends in an encoding error."""
    with pytest.raises(EncodingError):
        strict_json.decode(data)


def test_json_size_is_bounded_before_parsing() -> None:
    """A document above the limit is refused by its length."""
    with pytest.raises(EncodingError) as caught:
        strict_json.decode(b'"' + b"a" * 100 + b'"', max_bytes=50)
    assert caught.value.code == "json.too_large"


def test_floats_have_no_canonical_form() -> None:
    """A float cannot be signed or hashed."""
    with pytest.raises(EncodingError):
        strict_json.encode({"a": 0.5})


def test_base64url_has_one_spelling() -> None:
    """Padding, other alphabets and unused bits are refused."""
    assert encoding.from_base64url(encoding.to_base64url(b"\xff\xfe")) == b"\xff\xfe"
    for text in ("__4=", "//4", "__5", "a", "_ _4"):
        with pytest.raises(EncodingError):
            encoding.from_base64url(text)


def test_hex_is_lower_case_and_sized() -> None:
    """Upper case, odd length and a wrong size are refused."""
    assert encoding.from_hex("00ff", size=2) == b"\x00\xff"
    for text, size in (("00FF", 2), ("0", None), ("00ff", 3), ("00 ff", 2)):
        with pytest.raises(EncodingError):
            encoding.from_hex(text, size=size)


def test_a_sealed_record_opens_only_as_it_was_sealed() -> None:
    """Every flipped bit, another key and other associated data fail with the same bare code."""
    key = aead.random_key()
    sealed = aead.seal(key, b"record", aad=b"a")
    assert aead.open_sealed(key, sealed, aad=b"a") == b"record"
    for position in range(len(sealed) * 8):
        broken = bytearray(sealed)
        broken[position // 8] ^= 1 << position % 8
        with pytest.raises(VerificationError) as caught:
            aead.open_sealed(key, bytes(broken), aad=b"a")
        assert (caught.value.code, caught.value.hint, caught.value.details) == ("crypto.open_failed", None, {})
    for other_key, other_aad in ((aead.random_key(), b"a"), (key, b"b")):
        with pytest.raises(VerificationError):
            aead.open_sealed(other_key, sealed, aad=other_aad)
    for size in range(len(sealed)):
        with pytest.raises(VerificationError):
            aead.open_sealed(key, sealed[:size], aad=b"a")


def test_derived_keys_differ_by_label_and_context() -> None:
    """Two purposes of one key never share a derived key."""
    key = aead.random_key()
    keys = {aead.derive_key(key, "a"), aead.derive_key(key, "b"), aead.derive_key(key, "a", b"c")}
    assert len(keys) == 3
    with pytest.raises(ValueError, match="32 bytes"):
        aead.derive_key(b"short", "a")


def test_hpke_opens_for_its_recipient_purpose_and_context_only() -> None:
    """Another recipient, purpose or context cannot open what was sealed."""
    key = hpke.SealingKey.generate()
    sealed = hpke.seal_to(key.public, b"secret", purpose="p", context=b"c")
    assert key.open(sealed, purpose="p", context=b"c") == b"secret"
    attempts = [(hpke.SealingKey.generate(), "p", b"c"), (key, "q", b"c"), (key, "p", b"d")]
    for recipient, purpose, context in attempts:
        with pytest.raises(VerificationError):
            recipient.open(sealed, purpose=purpose, context=context)


def test_hpke_uses_both_mechanisms() -> None:
    """Replacing either half of the recipient's key makes the sealed data unreadable: the hybrid holds both."""
    seed, other = hpke.SealingKey.generate_seed(), hpke.SealingKey.generate_seed()
    sealed = hpke.seal_to(hpke.SealingKey(seed).public, b"secret", purpose="p")
    for mixed in (seed[:64] + other[64:], other[:64] + seed[64:]):
        with pytest.raises(VerificationError):
            hpke.SealingKey(mixed).open(sealed, purpose="p")


@pytest.mark.parametrize("size", [0, 1, 1120, 1137])
def test_short_hpke_input_is_a_typed_error(size: int) -> None:
    """Garbage of any length ends in a verification error (SE-19)."""
    with pytest.raises(VerificationError):
        hpke.SealingKey.generate().open(os.urandom(size), purpose="p")


def test_a_public_key_of_the_wrong_size_is_refused() -> None:
    """A recipient key that is not 1,216 bytes long is an encoding error."""
    with pytest.raises(EncodingError):
        hpke.seal_to(b"\x00" * 32, b"", purpose="p")


@pytest.mark.parametrize("make", [SigningKey.generate, SigningKey.generate_p256])
def test_an_envelope_verifies_for_its_purpose_and_key_only(make: object) -> None:
    """Another purpose, another key and another payload are refused."""
    assert callable(make)
    key: SigningKey = make()
    envelope = key.sign_envelope("vote", b"yes")
    assert verify_envelope(envelope, purpose="vote", keys=[key.public]).payload == b"yes"
    with pytest.raises(VerificationError):
        verify_envelope(envelope, purpose="grant", keys=[key.public])
    with pytest.raises(AuthorizationError):
        verify_envelope(envelope, purpose="vote", keys=[make().public])
    forged = envelope.replace(encoding.to_base64url(b"yes").encode(), encoding.to_base64url(b"no!").encode())
    with pytest.raises(VerificationError):
        verify_envelope(forged, purpose="vote", keys=[key.public])


@pytest.mark.parametrize(
    "document",
    [
        b"{}",
        b"[]",
        b'{"payload":"","payloadType":"p","signatures":[]}',
        b'{"payload":1,"payloadType":"p","signatures":[{"keyid":"","sig":""}]}',
        b'{"payload":"","payloadType":"p","signatures":[{"keyid":"","sig":""},{"keyid":"","sig":""}]}',
        b'{"extra":1,"payload":"","payloadType":"p","signatures":[{"keyid":"","sig":""}]}',
    ],
)
def test_a_malformed_envelope_is_a_typed_error(document: bytes) -> None:
    """An envelope with missing, extra or repeated parts never verifies."""
    with pytest.raises(SecflError):
        verify_envelope(document, purpose="p", keys=[SigningKey.generate().public])


def test_only_the_two_key_types_are_accepted() -> None:
    """A key on another curve is refused as a verification key."""
    spki = generate_private_key(SECP384R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(EncodingError):
        PublicKey(spki)


def test_a_private_key_survives_pem() -> None:
    """A key read back from PEM has the same public key; garbage is a typed error."""
    key = SigningKey.generate()
    assert SigningKey.from_pem(key.to_pem()).public == key.public
    with pytest.raises(EncodingError):
        SigningKey.from_pem(b"garbage")
