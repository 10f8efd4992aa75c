"""Attestation results, as tokens and in certificates."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from secfl.attestation.appraise import AnyPlatform, Tolerance, appraise
from secfl.attestation.ear import AttestationResult, issue, result_of, verify
from secfl.attestation.result_certificate import (
    ID_PE_CMW,
    issue_result,
    make_study_ca,
    service_dns_name,
    verify_result,
)
from secfl.attestation.statement import Isolation, LaunchClaims
from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.crypto.signing import SigningKey
from secfl.crypto.x509 import LeafProfile, Usage, Validity, check_leaf, issue_leaf
from secfl.errors import EncodingError, FreshnessError, SecflError, VerificationError
from secfl.testing.attested import AttestedWorkload
from secfl.testing.forge import NOW, Forge

KEY = SigningKey.generate_p256()
WORKLOAD = AttestedWorkload(Forge("tdx"))
CA = make_study_ca(KEY, study="heart", validity=Validity(NOW - 10, NOW + 86400))


def result(workload: AttestedWorkload = WORKLOAD, **factors: Any) -> AttestationResult:
    """The result for good evidence of a workload."""
    appraised = appraise(workload.case().verify(), workload.reference(**factors), NOW, statement=workload.good.claims)
    return result_of(appraised, workload.good, issued_at=NOW, expires_at=NOW + 600)


GOOD = result()
TOKEN = issue(GOOD, KEY)


def resigned(change: Any) -> str:
    """A token of the right key whose payload was changed."""
    header, payload, _ = TOKEN.split(".")
    document = json.loads(from_base64url(payload))
    change(document)
    signed = f"{header}.{to_base64url(strict_json.encode(document))}"
    der = KEY.sign(signed.encode())
    r, s = decode_dss_signature(der)
    return f"{signed}.{to_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def test_a_result_survives_its_token() -> None:
    """What was issued is what is read."""
    assert verify(TOKEN, key=KEY.public, now=NOW) == GOOD


def test_a_result_confirms_what_the_evidence_bound() -> None:
    """Keys, service, node, policy, platform and launch claims are those of binding and evidence."""
    good = WORKLOAD.good
    assert GOOD.tls_spki_digest == hashlib.sha256(good.tls_spki).digest()
    assert GOOD.sealing_key_digest == hashlib.sha256(good.sealing_key).digest()
    assert (GOOD.service, GOOD.node_id, GOOD.policy_hash) == (good.service, good.node_id, good.policy_hash)
    assert (GOOD.platform_id, GOOD.statement) == (WORKLOAD.forge.machine.platform_id, good.claims)


def test_a_token_uses_the_names_of_the_draft() -> None:
    """A consumer that knows EAR but not SECFL finds algorithm, profile, verifier, policy, status and vector."""
    assert with_header() == TOKEN
    payload = json.loads(from_base64url(TOKEN.split(".")[1]))
    (submodule,) = payload.pop("submods").values()
    del submodule["secfl"]
    assert payload == {
        "ear_verifier_id": {"build": "secfl/1", "developer": "secfl"},
        "eat_profile": "tag:ietf.org,2026:rats/ear#04",
        "exp": NOW + 600,
        "iat": NOW,
    }
    assert submodule == {
        "ear_appraisal_policy_ids": [f"urn:secfl:policy:{GOOD.policy_hash.hex()}"],
        "ear_status": "warning",
        "ear_trustworthiness_vector": GOOD.vector,
    }


@pytest.mark.parametrize(
    ("claims", "factors", "isolation", "differs"),
    [
        ({}, {}, Isolation.FULL, {}),
        ({"trust_domain": "simulated:x"}, {}, Isolation.FULL, {"hardware": 32, "runtime-opaque": 32}),
        ({"tcb_status": "OutOfDate"}, {}, Isolation.FULL, {"hardware": 32}),
        ({}, {"platforms": AnyPlatform("a test")}, Isolation.FULL, {"instance-identity": 0}),
        ({}, {"roots": None}, Isolation.FULL, {"file-system": 0}),
        ({}, {}, Isolation.UNPACKED, {"runtime-opaque": 32}),
    ],
    ids=["hardware", "simulated", "old level", "any platform", "no roots", "lower isolation"],
)
def test_the_vector_affirms_only_what_was_appraised(
    claims: dict[str, Any], factors: dict[str, Any], isolation: Isolation, differs: dict[str, int]
) -> None:
    """A hardware platform with every factor affirms all six claims; what is weaker or left open shows in its claim."""
    verified = replace(WORKLOAD.case().verify(), **{"trust_domain": "hardware:intel"} | claims)
    bound = WORKLOAD.binding(claims=replace(WORKLOAD.good.claims, isolation=isolation))
    good = {
        "trust_domain": verified.trust_domain,
        "minimum_isolation": isolation,
        "tolerances": (Tolerance("OutOfDate", frozenset(), NOW),),
    }
    appraised = appraise(verified, WORKLOAD.reference(**good | factors), NOW, statement=bound.claims)
    names = ("configuration", "executables", "file-system", "hardware", "instance-identity", "runtime-opaque")
    assert result_of(appraised, bound, issued_at=NOW, expires_at=NOW + 1).vector == dict.fromkeys(names, 2) | differs


def test_ev_28_a_simulated_platform_never_gets_an_affirming_hardware_claim() -> None:
    """The vector warns about hardware and isolation, the status is a warning, and the token says simulated."""
    assert GOOD.simulated
    assert (GOOD.vector["hardware"], GOOD.vector["runtime-opaque"], GOOD.status) == (32, 32, "warning")
    payload = json.loads(from_base64url(TOKEN.split(".")[1]))
    assert payload["submods"]["heart/trainer-a"]["secfl"]["simulated"] is True
    assert payload["eat_profile"] == "tag:ietf.org,2026:rats/ear#04"


def test_a_hardware_platform_gets_an_affirming_result() -> None:
    """The same result under the hardware domain may affirm, and an old TCB level warns."""
    vector = {**GOOD.vector, "hardware": 2, "runtime-opaque": 2}
    hardware = replace(GOOD, trust_domain="hardware:intel", vector=vector)
    assert (hardware.status, hardware.simulated) == ("affirming", False)
    assert verify(issue(hardware, KEY), key=KEY.public, now=NOW) == hardware


@pytest.mark.parametrize(("value", "status"), [(0, "none"), (2, "affirming"), (32, "warning"), (96, "contraindicated")])
def test_the_status_is_the_worst_tier(value: int, status: str) -> None:
    """The values and their names are those of AR4SI; one value below a tier belongs to the tier before."""
    assert replace(GOOD, vector={"hardware": value, "executables": 0}).status == status
    if value:
        assert replace(GOOD, vector={"hardware": value - 1}).status != status


def test_a_result_ends_after_it_begins() -> None:
    """A result of no duration cannot be stated."""
    appraised = appraise(WORKLOAD.case().verify(), WORKLOAD.reference(), NOW, statement=WORKLOAD.good.claims)
    with pytest.raises(ValueError, match="after it begins"):
        result_of(appraised, WORKLOAD.good, issued_at=NOW, expires_at=NOW)


def test_a_token_above_its_size_is_refused_before_it_is_read() -> None:
    """Neither the right signature nor a large limit of the decoder below lets a token above 32 KiB in."""
    with pytest.raises(EncodingError) as caught:
        verify(resigned(lambda document: document.update(further="a" * 40_000)), key=KEY.public, now=NOW)
    assert caught.value.code == "ear.malformed"


def test_what_was_let_pass_is_stated() -> None:
    """Tolerated status and advisories, any platform and missing roots show in the result."""
    case = replace(WORKLOAD.forge.tcb_status("OutOfDate", ("INTEL-SA-1",)), evidence=WORKLOAD.case().evidence)
    tolerance = Tolerance("OutOfDate", frozenset({"INTEL-SA-1"}), NOW)
    reference = WORKLOAD.reference(tolerances=(tolerance,), platforms=AnyPlatform("a test"), roots=None)
    appraised = appraise(case.verify(), reference, NOW, statement=WORKLOAD.good.claims)
    stated = result_of(appraised, WORKLOAD.good, issued_at=NOW, expires_at=NOW + 1)
    assert stated.tolerated == ("OutOfDate", "INTEL-SA-1")
    assert (stated.vector["instance-identity"], stated.vector["file-system"]) == (0, 0)


def test_a_result_needs_the_statement_that_the_evidence_covers() -> None:
    """Appraising another statement than the binding's gives no result."""
    other = LaunchClaims(Isolation.FULL, "other", roots=WORKLOAD.good.claims.roots)  # type: ignore[union-attr]
    appraised = appraise(WORKLOAD.case().verify(), WORKLOAD.reference(), NOW, statement=other)
    with pytest.raises(VerificationError, match=r"ear\.unbound"):
        result_of(appraised, WORKLOAD.good, issued_at=NOW, expires_at=NOW + 1)


@pytest.mark.parametrize(
    ("now", "code"), [(NOW - 6, "ear.not_yet_valid"), (NOW + 601, "ear.expired")], ids=["future", "expired"]
)
def test_a_token_out_of_time_is_refused(now: int, code: str) -> None:
    """A result counts from its issue, five seconds of skew allowed, to its end."""
    verify(TOKEN, key=KEY.public, now=NOW - 5)
    verify(TOKEN, key=KEY.public, now=NOW + 600)
    with pytest.raises(FreshnessError) as caught:
        verify(TOKEN, key=KEY.public, now=now)
    assert caught.value.code == code


def with_header(**changes: str) -> str:
    """The token under another header."""
    header = {"alg": "ES256", "kid": KEY.public.key_id, "typ": "eat+jwt"} | changes
    return ".".join([to_base64url(strict_json.encode(header)), *TOKEN.split(".")[1:]])


@pytest.mark.parametrize(
    "token",
    [
        with_header(alg="none"),
        with_header(alg="none").rsplit(".", 1)[0] + ".",
        with_header(alg="HS256"),
        with_header(typ="JWT"),
        with_header(kid="0" * 64),
        with_header(jwk="own"),
        issue(GOOD, SigningKey.generate_p256()),
    ],
    ids=["none", "none without signature", "HMAC", "typ", "kid", "embedded key", "another key"],
)
def test_another_header_is_refused(token: str) -> None:
    """The header is compared with the one expected and never obeyed."""
    with pytest.raises(VerificationError, match=r"ear\.header"):
        verify(token, key=KEY.public, now=NOW)


def test_every_changed_character_is_refused() -> None:
    """No character of a token can change."""
    for index in range(0, len(TOKEN), 3):
        other = "A" if TOKEN[index] != "A" else "B"
        with pytest.raises((EncodingError, VerificationError)):
            verify(TOKEN[:index] + other + TOKEN[index + 1 :], key=KEY.public, now=NOW)


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ("", "ear.malformed"),
        (".", "ear.malformed"),
        ("..", "ear.header"),
        ("a.b", "ear.malformed"),
        ("a.b.c.d", "ear.malformed"),
        (TOKEN + ".", "ear.malformed"),
        (TOKEN + "=", "base64.malformed"),
        (TOKEN[:-1] + "é", "ear.malformed"),
        ("a.b." + "c" * (32 * 1024 - 4), "ear.header"),
        ("a.b." + "c" * (32 * 1024 - 3), "ear.malformed"),
    ],
    ids=["empty", "dot", "dots", "two", "four", "further", "padding", "not ASCII", "longest", "too long"],
)
def test_malformed_tokens_are_refused(token: str, code: str) -> None:
    """Other texts are an error, never an empty result; size and characters are looked at first."""
    with pytest.raises((EncodingError, VerificationError)) as caught:
        verify(token, key=KEY.public, now=NOW)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("exp"),
        lambda d: d.pop("iat"),
        lambda d: d.update(exp=str(d["exp"])),
        lambda d: d.update(exp=True),
        lambda d: d.update(eat_profile="other"),
        lambda d: d.update(further=1),
        lambda d: d.update(submods={}),
        lambda d: d["submods"].update(second={}),
        lambda d: d["submods"]["heart/trainer-a"].update(ear_status="affirming"),
        lambda d: d["submods"]["heart/trainer-a"]["secfl"].update(simulated=False),
        lambda d: d["submods"]["heart/trainer-a"]["secfl"].update(tee=1),
        lambda d: d["submods"]["heart/trainer-a"]["secfl"].update(statement="{}"),
    ],
    ids=[
        *("no exp", "no iat", "text", "bool", "profile", "further", "none", "two", "status", "simulated", "number"),
        "statement",
    ],
)
def test_a_signed_token_of_another_form_is_refused(change: Any) -> None:
    """Even signed by the right key, missing, further or contradicting claims are refused."""
    assert verify(resigned(lambda _: None), key=KEY.public, now=NOW) == GOOD
    with pytest.raises(EncodingError, match=r"(ear|statement)\.malformed"):
        verify(resigned(change), key=KEY.public, now=NOW)


def test_a_result_is_signed_with_a_p256_key_only() -> None:
    """An Ed25519 key cannot sign ES256."""
    with pytest.raises(EncodingError, match=r"ear\.key"):
        issue(GOOD, SigningKey.generate())


NAME = service_dns_name("trainer-a", "heart")
LEAF = issue_result(CA, WORKLOAD.tls.public, GOOD, dns=(NAME,))


def read(leaf: bytes, **changes: Any) -> Any:
    """Verify a leaf with good arguments, changed as given."""
    good: dict[str, Any] = {"authority": CA.certificate, "now": NOW, "usage": Usage.CLIENT}
    return verify_result(leaf, **good | changes)


def test_a_result_certificate_carries_the_result() -> None:
    """The leaf is for client and server, under the service's name, and its result is the issued one."""
    for usage in Usage:
        certificate = read(LEAF, usage=usage, name="trainer-a.heart.secfl")
        assert certificate.result == GOOD
        assert certificate.public == WORKLOAD.tls.public
        assert certificate.not_after == NOW + 600


def test_nested_study_names_become_labels() -> None:
    """A name space becomes a domain, innermost label first; other characters are refused."""
    assert service_dns_name("trainer", "heart/uk") == "trainer.uk.heart.secfl"
    for bad in ("", "a.b", "A", "-a", "ä", "x" * 64):
        with pytest.raises(EncodingError, match=r"certificate\.name_invalid"):
            service_dns_name(bad, "heart")


def test_ev_35_a_certificate_for_another_key_than_the_attested_is_refused() -> None:
    """Neither issued nor accepted."""
    own = SigningKey.generate_p256()
    with pytest.raises(VerificationError, match=r"ear\.key_mismatch"):
        issue_result(CA, own.public, GOOD, dns=(NAME,))
    extension = {ID_PE_CMW: _extension_of(LEAF)}
    profile = LeafProfile("x", Validity(NOW, NOW + 60), dns=(NAME,), extensions=extension)
    with pytest.raises(VerificationError, match=r"ear\.key_mismatch"):
        read(issue_leaf(CA, own.public, profile))


def _extension_of(leaf: bytes) -> bytes:
    return check_leaf(leaf, authority=CA.certificate, now=NOW, usage=Usage.CLIENT).extensions[ID_PE_CMW]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "ear.missing"),
        (b"", "ear.malformed"),
        (b"\x0c\x02[]", "ear.malformed"),
        (b"\x0c\x81\x02[]", "ear.malformed"),
        (b"\x04\x02[]", "ear.malformed"),
        (b"\x0c\x08[1,2,3]x", "json.malformed"),
    ],
    ids=["missing", "empty", "no record", "long length", "other type", "junk"],
)
def test_a_leaf_of_the_ca_without_a_proper_result_is_refused(value: bytes | None, code: str) -> None:
    """The CA's signature alone is no attestation result."""
    extensions = {} if value is None else {ID_PE_CMW: value}
    profile = LeafProfile("x", Validity(NOW, NOW + 60), dns=(NAME,), extensions=extensions)
    with pytest.raises(SecflError) as caught:
        read(issue_leaf(CA, WORKLOAD.tls.public, profile))
    assert caught.value.code == code


def test_another_studys_certificate_is_refused() -> None:
    """Each study has a CA of its own."""
    other = make_study_ca(SigningKey.generate_p256(), study="heart", validity=Validity(NOW - 10, NOW + 86400))
    with pytest.raises(VerificationError, match=r"certificate\.issuer"):
        read(LEAF, authority=other.certificate)
    with pytest.raises(FreshnessError, match=r"certificate\.expired"):
        read(LEAF, now=NOW + 601)
