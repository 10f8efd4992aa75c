"""Attacks on evidence, for both kinds of quote: rows EV of the attack catalogue."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secfl.attestation.appraise import Tolerance, appraise
from secfl.attestation.binding import Binding, Purpose, check
from secfl.attestation.challenge import ChallengeBook
from secfl.attestation.evidence import MAX_BLOB_BYTES, Evidence
from secfl.attestation.statement import Isolation, LaunchClaims, decode_statement
from secfl.crypto.hpke import SealingKey, seal_to
from secfl.crypto.signing import SigningKey
from secfl.errors import (
    AppraisalError,
    EncodingError,
    FreshnessError,
    SecflError,
    UnavailableError,
    VerificationError,
)
from secfl.tee.anchor import TrustAnchor, intel_anchor
from secfl.tee.collateral import MAX_COLLATERAL_BYTES, Collateral
from secfl.tee.pool import VerifierPool
from secfl.tee.simulated.machine import SimulatedMachine
from secfl.testing.attested import AttestedWorkload
from secfl.testing.forge import DEFECTS, NOW, Case, Defect, Forge

KINDS = ("sgx", "tdx")
REFUSALS = (EncodingError, VerificationError, FreshnessError)
CASES = [pytest.param(defect, kind, id=f"{kind}-{defect.name}") for defect in DEFECTS for kind in defect.kinds]
REPORT_BYTES = {"sgx": 48 + 384, "tdx": 48 + 584}


@pytest.fixture(scope="module", params=KINDS)
def workload(request: pytest.FixtureRequest) -> AttestedWorkload:
    """A workload on a machine of its own vendor."""
    return AttestedWorkload(Forge(request.param))


def refused(case: Case) -> SecflError:
    """The error with which the verifier refuses."""
    with pytest.raises(REFUSALS) as caught:
        case.verify()
    return caught.value


def accepted(workload: AttestedWorkload, binding: Binding | None = None, **factors: Any) -> None:
    """Run the whole way: verify, check the binding, appraise."""
    wanted = binding if binding is not None else workload.good
    verified = workload.case(wanted).verify()
    bound = check(wanted, verified)
    appraise(verified, workload.reference(**factors), NOW, statement=bound.claims)


@pytest.mark.parametrize(("defect", "kind"), CASES)
def test_ev_03_04_05_07_17_21_24_28_one_defect_is_refused_with_its_code(defect: Defect, kind: str) -> None:
    """Evidence with exactly one defect is refused with the code of that defect, and is good without it."""
    forge = Forge(kind)
    forge.case().verify()
    assert refused(defect.build(forge)).code == defect.code


@pytest.mark.parametrize("row", ["EV-03", "EV-04", "EV-05", "EV-07", "EV-17", "EV-21", "EV-24", "EV-28"])
@pytest.mark.parametrize("kind", KINDS)
def test_ev_rows_have_a_forged_case_of_each_kind(row: str, kind: str) -> None:
    """The table of defects covers these rows for both kinds of evidence."""
    assert any(defect.row == row and kind in defect.kinds for defect in DEFECTS)


def signed_part(blob: bytes, kind: str) -> int:
    """Where the certificate chain begins: everything before is signed, or is a length."""
    return blob.index(b"-----BEGIN")


def flips_accepted(case: Case, bits: list[int]) -> list[int]:
    """Those bits whose flip the verifier does not refuse."""
    good = case.verify()
    passed = []
    for bit in bits:
        blob = bytearray(case.evidence.blob)
        blob[bit // 8] ^= 1 << bit % 8
        try:
            result = replace(case, evidence=Evidence(case.evidence.kind, bytes(blob))).verify()
        except REFUSALS:
            continue
        assert result.evidence_digest == good.evidence_digest
        passed.append(bit)
    return passed


@pytest.mark.slow
def test_ev_01_any_flipped_bit_of_the_signed_fields_is_refused(workload: AttestedWorkload) -> None:
    """Flipping any single bit before the certificate chain makes the verifier refuse."""
    case = workload.case()
    assert flips_accepted(case, list(range(8 * signed_part(case.evidence.blob, workload.forge.kind)))) == []


def test_ev_01_a_flipped_bit_of_every_byte_of_the_quote_is_refused(workload: AttestedWorkload) -> None:
    """One flipped bit in any byte of the whole quote, certificate chain included, makes the verifier refuse."""
    case = workload.case()
    chooser = random.Random(1)
    bits = [8 * index + chooser.randrange(8) for index in range(len(case.evidence.blob))]
    assert flips_accepted(case, bits) == []


def test_ev_01_flipped_bits_of_the_collateral_are_refused(workload: AttestedWorkload) -> None:
    """A flipped bit in any byte of a signed member of the collateral makes the verifier refuse."""
    case = workload.case()
    for name in ("tcb_info", "qe_identity", "root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"):
        value = getattr(case.collateral, name)
        data = value.encode() if isinstance(value, str) else value
        for index in range(0, len(data), 7):
            changed = data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]
            member: Any = changed.decode() if isinstance(value, str) else changed
            refused(replace(case, collateral=replace(case.collateral, **{name: member})))


P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def test_ev_08_a_quote_with_the_twin_signature_is_the_same_evidence(workload: AttestedWorkload) -> None:
    """Every ECDSA signature has a twin, so that a quote has two byte forms: both have one evidence digest."""
    case, kind = workload.case(), workload.forge.kind
    blob, s = bytearray(case.evidence.blob), REPORT_BYTES[kind] + 4 + 32
    twin = P256_ORDER - int.from_bytes(blob[s : s + 32], "big")
    blob[s : s + 32] = twin.to_bytes(32, "big")
    other = replace(case, evidence=Evidence(kind, bytes(blob)))
    assert other.evidence != case.evidence
    assert other.verify().evidence_digest == case.verify().evidence_digest


def test_ev_02_truncation_at_every_length_is_refused(workload: AttestedWorkload) -> None:
    """A quote cut at any length is refused as malformed."""
    case = workload.case()
    blob = case.evidence.blob
    for size in range(1, len(blob)):
        error = refused(replace(case, evidence=Evidence(workload.forge.kind, blob[:size])))
        assert isinstance(error, EncodingError), size


def test_ev_02_trailing_bytes_are_refused_and_zero_padding_is_not_part_of_the_evidence(
    workload: AttestedWorkload,
) -> None:
    """Junk after a quote is refused; zero padding, which clouds append, changes nothing."""
    case, kind = workload.case(), workload.forge.kind
    padded = replace(case, evidence=Evidence(kind, case.evidence.blob + bytes(3000)))
    assert padded.verify() == case.verify()
    for tail in (b"x", bytes(100) + b"\1", b"\n-----BEGIN CERTIFICATE-----\n"):
        error = refused(replace(case, evidence=Evidence(kind, case.evidence.blob + tail)))
        assert error.code == "quote.trailing_bytes"


def test_ev_02_bytes_between_the_parts_of_a_quote_are_refused(workload: AttestedWorkload) -> None:
    """A byte that the outer length covers but no part needs is refused, and so is another vendor's header."""
    case, kind = workload.case(), workload.forge.kind
    blob, at = bytearray(case.evidence.blob), REPORT_BYTES[kind]
    blob[at : at + 4] = (int.from_bytes(blob[at : at + 4], "little") + 1).to_bytes(4, "little")
    assert refused(replace(case, evidence=Evidence(kind, bytes(blob) + b"\0"))).code == "quote.malformed"
    head = workload.forge.good_header()
    foreign = workload.forge.headed(head[:12] + bytes(16) + head[28:])
    assert refused(replace(case, evidence=foreign)).code == "quote.vendor"


def test_ev_02_junk_around_documents_is_refused(workload: AttestedWorkload) -> None:
    """Bytes before or after a CMW record, a collateral document or a statement are a typed error."""
    case = workload.case()
    for decode, data in (
        (Evidence.decode, case.evidence.encode()),
        (Collateral.decode, case.collateral.encode()),
        (decode_statement, workload.good.claims.encode()),
    ):
        assert decode(data) is not None
        for changed in (data + b"x", b"x" + data, data + data, data[:-1], b""):
            with pytest.raises(EncodingError):
                decode(changed)


def test_ev_04_a_root_that_calls_itself_hardware_is_no_anchor(workload: AttestedWorkload) -> None:
    """An own root is accepted neither as the hardware root nor under another simulated root's name."""
    root, other = workload.forge.vendor.root_der, Forge("sgx").vendor.anchor()
    for domain in ("hardware:intel", other.domain, "simulated:", "hardware:own"):
        with pytest.raises(VerificationError):
            TrustAnchor(domain, root)


@pytest.mark.parametrize("nonce", [b"", b"\0" * 32, b"n" * 31, b"n" * 33], ids=["empty", "zero", "short", "long"])
def test_ev_10_a_bad_nonce_is_refused(workload: AttestedWorkload, nonce: bytes) -> None:
    """An empty, all-zero, short or long nonce can be bound by nobody."""
    with pytest.raises(FreshnessError) as caught:
        workload.binding(nonce=nonce)
    assert caught.value.code == "binding.nonce"


def test_ev_10_a_missing_or_foreign_nonce_is_refused(workload: AttestedWorkload) -> None:
    """A nonce that was never issued, was issued to someone else, or was used before is refused."""
    book, nonce = ChallengeBook(), os.urandom(32)
    book.issue(nonce, purpose=Purpose.ATTEST, subject="heart/trainer-a", now=NOW)
    with pytest.raises(FreshnessError, match=r"challenge\.unknown"):
        book.redeem(os.urandom(32), purpose=Purpose.ATTEST, subject="heart/trainer-a", now=NOW)
    with pytest.raises(FreshnessError, match=r"challenge\.unknown"):
        book.redeem(nonce, purpose=Purpose.ATTEST, subject="heart/trainer-b", now=NOW)
    with pytest.raises(FreshnessError, match=r"challenge\.unknown"):
        book.redeem(nonce, purpose=Purpose.ATTEST, subject="heart/trainer-a", now=NOW)
    verified = workload.case().verify()
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        check(workload.binding(nonce=os.urandom(32)), verified)


def test_ev_11_challenges_are_unique_and_a_constant_source_is_noticed() -> None:
    """A hundred thousand challenges differ; a source that repeats itself or gives a pattern is refused."""
    book = ChallengeBook(limit=100_000)
    for _ in range(100_000):
        book.issue(os.urandom(32), purpose=Purpose.ATTEST, subject="s", now=NOW)
    assert len(book) == 100_000
    broken, constant = ChallengeBook(), bytes(range(32))
    broken.issue(constant, purpose=Purpose.ATTEST, subject="s", now=NOW)
    for nonce in (constant, b"\7" * 32, b"short"):
        with pytest.raises(FreshnessError, match=r"challenge\.weak"):
            broken.issue(nonce, purpose=Purpose.ATTEST, subject="s", now=NOW)


def test_ev_12_relayed_evidence_is_refused(workload: AttestedWorkload) -> None:
    """A relay that puts its own TLS key, sealing key, nonce or manager certificate in gets a mismatch."""
    verified = workload.case().verify()
    check(workload.good, verified)
    relay = AttestedWorkload(workload.forge)
    for field in ("tls_spki", "sealing_key", "manager_certificate", "nonce"):
        with pytest.raises(VerificationError, match=r"binding\.mismatch"):
            check(workload.binding(**{field: getattr(relay.good, field)}), verified)


def test_ev_12_a_relay_cannot_open_the_answer(workload: AttestedWorkload) -> None:
    """What is sealed to the attested key opens for the workload only."""
    sealed = seal_to(workload.good.sealing_key, b"secret", purpose="release", context=workload.good.nonce)
    assert workload.sealing.open(sealed, purpose="release", context=workload.good.nonce) == b"secret"
    with pytest.raises(VerificationError, match=r"crypto\.open_failed"):
        SealingKey.generate().open(sealed, purpose="release", context=workload.good.nonce)


def test_ev_13_an_unlisted_platform_is_refused(workload: AttestedWorkload) -> None:
    """The right measurement on a machine that the policy does not list is refused as such."""
    accepted(workload)
    other = SimulatedMachine.enroll(workload.forge.vendor, now=NOW)
    evidence = other.quote(workload.forge.kind, workload.forge.measurement, workload.good.report_data())
    verified = replace(workload.case(), evidence=evidence).verify()
    check(workload.good, verified)
    with pytest.raises(AppraisalError) as caught:
        appraise(verified, workload.reference(), NOW, statement=workload.good.claims)
    assert [finding.rule for finding in caught.value.findings] == ["appraisal.platform_not_listed"]
    with pytest.raises(AppraisalError, match=r"appraisal\.platform_not_listed"):
        accepted(workload, platforms=frozenset())


def test_ev_14_an_old_key_with_old_evidence_is_refused(workload: AttestedWorkload) -> None:
    """Evidence for an earlier nonce does not fit a new challenge, whether the key is the same or not."""
    old = workload.case().verify()
    fresh = os.urandom(32)
    for changes in ({"nonce": fresh}, {"nonce": fresh, "tls_spki": SigningKey.generate_p256().public.spki}):
        with pytest.raises(VerificationError, match=r"binding\.mismatch"):
            check(workload.binding(**changes), old)


@pytest.mark.parametrize(
    "changes",
    [{"service": "heart/aggregator"}, {"service": "heart/trainer-b"}, {"node_id": "hospital-b"}],
    ids=["as aggregator", "as another trainer", "as another site"],
)
def test_ev_15_evidence_of_one_role_or_site_does_not_serve_another(
    workload: AttestedWorkload, changes: dict[str, Any]
) -> None:
    """Service and node are bound."""
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        check(workload.binding(**changes), workload.case().verify())


@pytest.mark.parametrize(
    "changes",
    [
        {"policy_hash": b"q" * 32},
        {"deployment_id": "deployment-2"},
        {"purpose": Purpose.RENEW},
        {"purpose": Purpose.PEER},
        {"claims": LaunchClaims(Isolation.FULL, "instance-2", roots={"cohort": b"r" * 32})},
        {"claims": LaunchClaims(Isolation.FULL, "instance-1", roots={"cohort": b"s" * 32})},
        {"claims": LaunchClaims(Isolation.ENCLAVE, "instance-1", roots={"cohort": b"r" * 32})},
    ],
    ids=["policy", "deployment", "renewal", "peer", "instance", "root", "isolation"],
)
def test_ev_16_evidence_for_one_policy_purpose_or_launch_does_not_serve_another(
    workload: AttestedWorkload, changes: dict[str, Any]
) -> None:
    """Policy, deployment, purpose and launch claims are bound."""
    with pytest.raises(VerificationError, match=r"binding\.mismatch"):
        check(workload.binding(**changes), workload.case().verify())


def test_ev_16_a_challenge_for_one_purpose_does_not_serve_another() -> None:
    """A nonce issued for a first attestation is unknown to a renewal, and burnt by the attempt."""
    book, nonce = ChallengeBook(), os.urandom(32)
    book.issue(nonce, purpose=Purpose.ATTEST, subject="s", now=NOW)
    for purpose in (Purpose.RENEW, Purpose.ATTEST):
        with pytest.raises(FreshnessError, match=r"challenge\.unknown"):
            book.redeem(nonce, purpose=purpose, subject="s", now=NOW)


@pytest.mark.parametrize("member", ["root_ca_crl", "pck_crl"])
def test_ev_21_a_missing_revocation_list_is_no_empty_one(workload: AttestedWorkload, member: str) -> None:
    """Collateral without a revocation list is refused, as bytes and as a document."""
    collateral = workload.case().collateral
    changes: dict[str, Any] = {member: b""}
    with pytest.raises(EncodingError, match=r"collateral\.size"):
        replace(collateral, **changes)
    text = collateral.encode().decode()
    with pytest.raises(EncodingError, match=r"collateral\.size"):
        Collateral.decode(re.sub(f'"{member}":"[^"]*"', f'"{member}":""', text).encode())
    with pytest.raises(EncodingError, match=r"collateral\.malformed"):
        Collateral.decode(re.sub(f'"{member}":"[^"]*",', "", text).encode())


STATUSES = ["OutOfDate", "ConfigurationNeeded", "SWHardeningNeeded", "ConfigurationAndSWHardeningNeeded"]


def _appraise_status(
    workload: AttestedWorkload, status: str, advisories: tuple[str, ...], *tolerances: Tolerance
) -> None:
    case = replace(workload.forge.tcb_status(status, advisories), evidence=workload.case().evidence)
    verified = case.verify()
    assert verified.tcb_status == status
    appraise(verified, workload.reference(tolerances=tolerances), NOW, statement=workload.good.claims)


@pytest.mark.parametrize("status", STATUSES)
def test_ev_23_a_weak_status_needs_a_live_tolerance_of_status_and_advisories(
    workload: AttestedWorkload, status: str
) -> None:
    """A status short of UpToDate is refused unless status and every advisory are listed and unexpired."""
    old, new = "INTEL-SA-00001", "INTEL-SA-00002"
    listed = Tolerance(status, frozenset({old}), NOW)
    _appraise_status(workload, status, (old,), listed)
    attempts: list[tuple[str, tuple[str, ...], tuple[Tolerance, ...]]] = [
        ("appraisal.tcb_status", (), ()),
        ("appraisal.tcb_status", (old,), ()),
        ("appraisal.tcb_status", (old,), (Tolerance("TDRelaunchAdvised", frozenset({old}), NOW),)),
        ("appraisal.tolerance_expired", (old,), (Tolerance(status, frozenset({old}), NOW - 1),)),
        ("appraisal.advisory", (old, new), (listed,)),
        ("appraisal.advisory", (old, new), (listed, Tolerance(status, frozenset({new}), NOW))),
    ]
    for code, advisories, tolerances in attempts:
        with pytest.raises(AppraisalError) as caught:
            _appraise_status(workload, status, advisories, *tolerances)
        assert caught.value.code == code


def test_ev_23_revoked_is_tolerated_by_no_policy() -> None:
    """A tolerance for a revoked or unknown status cannot be written."""
    for status in ("Revoked", "Fine", ""):
        with pytest.raises(ValueError, match="cannot be tolerated"):
            Tolerance(status, frozenset(), NOW)


def test_ev_28_simulated_evidence_fails_a_hardware_policy(workload: AttestedWorkload) -> None:
    """Even with the right measurement and platform, simulated evidence does not pass for hardware."""
    assert refused(replace(workload.case(), anchor=intel_anchor())).code == "collateral.root"
    with pytest.raises(AppraisalError) as caught:
        accepted(workload, trust_domain="hardware:intel")
    assert [finding.rule for finding in caught.value.findings] == ["appraisal.trust_domain"]
    with pytest.raises(AppraisalError, match=r"appraisal\.trust_domain"):
        accepted(workload, trust_domain=Forge("sgx").vendor.anchor().domain)


def test_ev_32_a_killed_or_hanging_verifier_refuses_and_recovers(workload: AttestedWorkload) -> None:
    """A worker that dies or hangs refuses the request that it worked on; those behind it are verified all the same."""
    case = workload.case()
    arguments = (case.evidence, case.collateral, case.anchor, case.now)

    async def kill() -> None:
        with VerifierPool(1) as pool:
            assert await pool.verify(*arguments) == case.verify()
            (pid,) = pool.pids
            os.kill(pid, signal.SIGSTOP)
            tasks = [asyncio.create_task(pool.verify(*arguments)) for _ in range(6)]
            await asyncio.sleep(0.1)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(UnavailableError, match=r"verifier\.crashed"):
                await tasks[0]
            assert await asyncio.gather(*tasks[1:]) == [case.verify()] * 5
            assert pool.pids != [pid]

    async def hang() -> int:
        with VerifierPool(1, timeout=4) as pool:
            await pool.verify(*arguments)
            (pid,) = pool.pids
            os.kill(pid, signal.SIGSTOP)
            first = asyncio.create_task(pool.verify(*arguments))
            await asyncio.sleep(3.5)  # so that a fresh worker has time to start before the second gives up
            second = asyncio.create_task(pool.verify(*arguments))
            with pytest.raises(UnavailableError, match=r"verifier\.timeout"):
                await first
            assert await second == case.verify()
            return pid

    asyncio.run(kill())
    assert not Path(f"/proc/{asyncio.run(hang())}").exists()


@pytest.mark.parametrize("answer", [b"\0\0\0\2[]", b"\0\0\0\2{}", b"\xff\xff\xff\xff", b"\0\0\0\1", b""])
def test_ev_36_an_answer_out_of_form_is_a_refusal(
    workload: AttestedWorkload, answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a broken worker writes, short, long, empty or unasked for, nobody takes it for a result."""
    case = workload.case()
    broken = tmp_path / "broken"
    broken.write_text(
        f"#!{sys.executable} -I\nimport os\nos.read(0, 1 << 20)\nos.write(1, {answer!r})\n", encoding="utf-8"
    )
    broken.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(broken))

    async def ask() -> None:
        with VerifierPool(1) as pool, pytest.raises(UnavailableError, match=r"verifier\.crashed"):
            await pool.verify(case.evidence, case.collateral, case.anchor, case.now)

    asyncio.run(ask())


def test_ev_36_a_failure_never_looks_like_a_result(workload: AttestedWorkload) -> None:
    """Empty and odd inputs raise typed errors at every entrance; no reference value accepts nothing."""
    for blob in (b"\0", b"{}", b"null", b"[]", bytes(5000)):
        refused(replace(workload.case(), evidence=Evidence(workload.forge.kind, blob)))
    with pytest.raises(EncodingError):
        Evidence(workload.forge.kind, b"")
    verified = workload.case().verify()
    with pytest.raises(AppraisalError, match=r"appraisal\.no_reference"):
        appraise(verified, replace(workload.reference(), variants=()), NOW, statement=workload.good.claims)
    with pytest.raises(AppraisalError, match=r"appraisal\.measurement"):
        accepted(workload, measurements=frozenset())
    unverified: Any = workload.case().evidence
    with pytest.raises(TypeError):
        appraise(unverified, workload.reference(), NOW, statement=workload.good.claims)
    with pytest.raises(TypeError):
        replace(verified, seal=object())  # type: ignore[arg-type]


def test_ev_36_evidence_under_another_kind_is_refused(workload: AttestedWorkload) -> None:
    """A quote in a record of the other kind is refused, not dispatched by what the sender says."""
    case = workload.case()
    other = "tdx" if workload.forge.kind == "sgx" else "sgx"
    assert refused(replace(case, evidence=Evidence(other, case.evidence.blob))).code == "evidence.kind_mismatch"


def test_ev_37_huge_and_deep_inputs_are_refused_quickly_and_without_memory() -> None:
    """A hundred megabytes and ten thousand levels of nesting are refused within a second and 64 MiB."""
    huge = b"[" + b'"' + b"A" * (100 * 1024 * 1024) + b'",0]'
    deep = b"[" * 10_000 + b"]" * 10_000
    deep_collateral = b'{"tcb_info":' * 10_000
    tracemalloc.start()
    started = time.monotonic()
    for decode in (Evidence.decode, Collateral.decode, decode_statement):
        for data in (huge, deep, deep_collateral):
            with pytest.raises(EncodingError):
                decode(data)
    with pytest.raises(EncodingError, match=r"evidence\.size"):
        Evidence("tdx", huge)
    elapsed = time.monotonic() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert elapsed < 1
    assert peak < 64 * 1024 * 1024


def test_ev_37_lengths_inside_a_quote_cannot_make_it_allocate(workload: AttestedWorkload) -> None:
    """A stated length beyond the quote is refused as truncation, and a document at its limit stays quick."""
    kind, blob = workload.forge.kind, bytearray(workload.case().evidence.blob)
    blob[REPORT_BYTES[kind] : REPORT_BYTES[kind] + 4] = b"\xff\xff\xff\xff"
    assert refused(replace(workload.case(), evidence=Evidence(kind, bytes(blob)))).code == "quote.truncated"
    started = time.monotonic()
    refused(replace(workload.case(), evidence=Evidence(kind, b"\xff" * MAX_BLOB_BYTES)))
    with pytest.raises(EncodingError):
        Collateral.decode(b'{"tcb_info":"' + b"A" * (MAX_COLLATERAL_BYTES - 100) + b'"}')
    assert time.monotonic() - started < 1
