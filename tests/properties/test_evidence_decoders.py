"""Every decoder of attestation documents: what it accepts encodes to the same bytes; the rest is one error class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.attestation import ear
from secfl.attestation.binding import Binding
from secfl.attestation.evidence import Evidence
from secfl.attestation.statement import Isolation, LaunchClaims, ManagerClaims, decode_statement
from secfl.crypto.signing import SigningKey
from secfl.crypto.x509 import from_pem, unverified_public_key
from secfl.errors import EncodingError, FreshnessError, VerificationError
from secfl.tee.collateral import Collateral
from secfl.tee.quote import parse
from secfl.testing.attested import AttestedWorkload
from secfl.testing.forge import NOW, Forge

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
TOKEN = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
ROOT = st.binary(min_size=32, max_size=32)
LAUNCH = st.builds(
    LaunchClaims,
    st.sampled_from(Isolation),
    TOKEN,
    st.sets(TOKEN, max_size=4).map(lambda taints: tuple(sorted(taints))),
    st.dictionaries(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,20}", fullmatch=True), ROOT, max_size=4),
    st.from_regex(r"[\x20-\x7e]{0,100}", fullmatch=True),
)
MANAGER = st.builds(
    ManagerClaims,
    st.sampled_from(Isolation),
    TOKEN,
    st.sets(ROOT.map(bytes.hex), max_size=4).map(lambda founders: tuple(sorted(founders))),
    st.integers(0, 2**63 - 1),
    ROOT,
    TOKEN,
)
EVIDENCE = st.builds(Evidence, st.sampled_from(["sgx", "tdx"]), st.binary(min_size=1, max_size=200))
WORKLOAD = AttestedWorkload(Forge("tdx"))
COLLATERAL = WORKLOAD.case().collateral.encode()
QUOTES = [Forge(kind).case().evidence.blob for kind in ("sgx", "tdx")]


@given(st.one_of(LAUNCH, MANAGER))
def test_statements_have_one_encoding(statement: LaunchClaims | ManagerClaims) -> None:
    """Decoding gives the statement back, and encoding it again the same bytes."""
    assert decode_statement(statement.encode()) == statement
    assert decode_statement(statement.encode()).encode() == statement.encode()


@given(EVIDENCE)
def test_evidence_has_one_encoding(evidence: Evidence) -> None:
    """Decoding a CMW record gives the evidence back."""
    assert Evidence.decode(evidence.encode()) == evidence


def mutated(good: bytes) -> st.SearchStrategy[bytes]:
    """The good bytes with a slice replaced."""

    def edit(parts: tuple[int, int, bytes]) -> bytes:
        start, size, middle = parts
        return good[:start] + middle + good[start + size :]

    return st.tuples(st.integers(0, len(good)), st.integers(0, 20), st.binary(max_size=20)).map(edit)


DECODERS: list[tuple[Callable[[bytes], Any], bytes]] = [
    (Evidence.decode, Evidence("tdx", b"quote").encode()),
    (decode_statement, WORKLOAD.good.claims.encode()),
    (decode_statement, ManagerClaims(Isolation.FULL, "m", (), 1, bytes(32), "none").encode()),
]


@pytest.mark.parametrize(("decode", "good"), DECODERS)
@given(data=st.data())
def test_any_other_document_is_an_encoding_error(
    decode: Callable[[bytes], Any], good: bytes, data: st.DataObject
) -> None:
    """Changed and arbitrary bytes are refused with an encoding error, or are themselves the one encoding of a value."""
    candidate = data.draw(st.one_of(mutated(good), st.binary(max_size=300)))
    try:
        value = decode(candidate)
    except EncodingError:
        return
    assert value.encode() == candidate


@given(st.one_of(mutated(COLLATERAL), st.binary(max_size=300)))
def test_any_other_collateral_is_an_encoding_error(candidate: bytes) -> None:
    """A collateral document decodes to something that decodes again to the same, or is an encoding error."""
    try:
        value = Collateral.decode(candidate)
    except EncodingError:
        return
    assert Collateral.decode(value.encode()) == value


@given(st.one_of(*(mutated(quote) for quote in QUOTES), st.binary(max_size=1000)))
def test_any_other_quote_is_an_encoding_error(candidate: bytes) -> None:
    """The layout reader takes a quote with nothing left over, or raises an encoding error."""
    try:
        quote = parse(candidate)
    except EncodingError:
        return
    assert candidate.startswith(quote.raw)
    assert not candidate[len(quote.raw) :].strip(b"\0")


@given(st.text(max_size=300))
def test_any_other_token_is_refused(token: str) -> None:
    """Arbitrary text is never an attestation result."""
    with pytest.raises((EncodingError, VerificationError, FreshnessError)):
        ear.verify(token, key=WORKLOAD.tls.public, now=NOW)


@given(st.one_of(mutated(WORKLOAD.good.manager_certificate), st.binary(max_size=300)))
def test_any_other_certificate_is_an_encoding_error(candidate: bytes) -> None:
    """Changed and arbitrary certificates are read or are an encoding error, in both forms."""
    for read in (unverified_public_key, from_pem):
        try:
            read(candidate)
        except EncodingError:
            continue


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "service": st.text(min_size=1, max_size=20),
        "deployment_id": st.text(min_size=1, max_size=20),
        "node_id": st.text(min_size=1, max_size=20),
        "policy_hash": ROOT,
        "nonce": ROOT.filter(any),
        "manager_certificate": st.binary(min_size=1, max_size=40),
        "claims": LAUNCH,
    },
)
KEYS = [SigningKey.generate_p256().public.spki for _ in range(2)]


@given(FIELDS, FIELDS, st.sampled_from(KEYS), st.sampled_from(KEYS))
def test_two_bindings_have_one_digest_only_when_they_are_equal(
    first: dict[str, Any], second: dict[str, Any], one: bytes, other: bytes
) -> None:
    """The digest is injective over all fields: no byte can move from one field to the next."""

    def bound(fields: dict[str, Any], key: bytes) -> Binding:
        return WORKLOAD.binding(tls_spki=key, **fields)

    a, b = bound(first, one), bound(second, other)
    assert (a.report_data() == b.report_data()) == (a == b)
