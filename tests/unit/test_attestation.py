"""Binding, statements, challenges, claims and appraisal."""

from __future__ import annotations

import ast
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

import secfl
from secfl.attestation.appraise import (
    TOLERABLE_STATUSES,
    AnyPlatform,
    Appraised,
    ReferenceValues,
    SgxReference,
    Tolerance,
    appraise,
)
from secfl.attestation.binding import Purpose, check
from secfl.attestation.challenge import ChallengeBook
from secfl.attestation.evidence import MAX_BLOB_BYTES, Evidence
from secfl.attestation.statement import Isolation, LaunchClaims, ManagerClaims, decode_statement
from secfl.crypto import strict_json
from secfl.crypto.encoding import to_base64url
from secfl.errors import AppraisalError, EncodingError, Finding, FreshnessError, UnavailableError
from secfl.policy.services import TcbStatus
from secfl.tee.simulated.machine import MachineProfile
from secfl.testing.attested import AttestedWorkload
from secfl.testing.forge import NOW, Forge

SGX = AttestedWorkload(Forge("sgx"))
TDX = AttestedWorkload(Forge("tdx"))
MANAGER = ManagerClaims(Isolation.FULL, "manager-1", ("ab" * 32,), 3, b"h" * 32, "none")


def findings(workload: AttestedWorkload, claims: LaunchClaims | None = None, **factors: Any) -> list[str]:
    """The rules that good evidence does not meet under changed reference values; empty when accepted."""
    verified = workload.case().verify()
    statement = claims if claims is not None else workload.good.claims
    found: tuple[Finding, ...] = ()
    try:
        appraise(verified, workload.reference(**factors), NOW, statement=statement)
    except AppraisalError as error:
        found = error.findings
    assert all(finding.expected and finding.actual and finding.remedy for finding in found)
    return [finding.rule for finding in found]


def test_good_evidence_is_appraised() -> None:
    """The result names the claims, the statement and the variant that fits."""
    for workload in (SGX, TDX):
        verified, reference = workload.case().verify(), workload.reference()
        appraised = appraise(verified, reference, NOW, statement=workload.good.claims)
        assert (appraised.verified, appraised.variant, appraised.tolerated) == (verified, reference.variants[0], ())


@pytest.mark.parametrize(
    ("factors", "rule"),
    [
        ({"trust_domain": "hardware:intel"}, "appraisal.trust_domain"),
        ({"tee": "snp"}, "appraisal.tee"),
        ({"measurements": frozenset({b"m" * 48})}, "appraisal.measurement"),
        ({"measurements": frozenset()}, "appraisal.measurement"),
        ({"platforms": frozenset({b"p" * 16})}, "appraisal.platform_not_listed"),
        ({"platforms": frozenset()}, "appraisal.platform_not_listed"),
        ({"minimum_evaluation": 21}, "appraisal.evaluation_number"),
        ({"minimum_isolation": Isolation.ENCLAVE}, "appraisal.isolation"),
        ({"roots": {}}, "appraisal.roots"),
        ({"roots": {"cohort": b"s" * 32}}, "appraisal.roots"),
        ({"roots": {"cohort": b"r" * 32, "model": b"m" * 32}}, "appraisal.roots"),
        ({"sgx": SgxReference(frozenset({bytes(32)}), 0, 0)}, "appraisal.signer"),
    ],
)
def test_each_factor_alone_refuses(factors: dict[str, Any], rule: str) -> None:
    """One factor that does not hold gives exactly one finding, its own."""
    assert findings(TDX, **factors) == [rule]


@pytest.mark.parametrize(
    ("reference", "rules"),
    [
        (SgxReference(frozenset({bytes(32)}), 0, 0), []),
        (SgxReference(frozenset(), 0, 0), ["appraisal.signer"]),
        (SgxReference(frozenset({b"s" * 32}), 1, 1), ["appraisal.signer", "appraisal.product", "appraisal.svn"]),
    ],
)
def test_an_enclaves_signer_product_and_version_are_factors(reference: SgxReference, rules: list[str]) -> None:
    """All of them are reported at once."""
    assert findings(SGX, sgx=reference) == rules


def test_all_findings_of_the_closest_variant_are_reported() -> None:
    """With several variants, the one with the fewest findings speaks; one that fits entirely accepts."""
    far = TDX.reference(measurements=frozenset(), platforms=frozenset(), tee="sgx").variants
    near = TDX.reference(platforms=frozenset(), minimum_evaluation=99).variants
    verified, claims = TDX.case().verify(), TDX.good.claims
    for variants in (far + near, near + far):
        with pytest.raises(AppraisalError) as caught:
            appraise(verified, ReferenceValues(variants), NOW, statement=claims)
        rules = [finding.rule for finding in caught.value.findings]
        assert rules == ["appraisal.platform_not_listed", "appraisal.evaluation_number"]
    good = TDX.reference().variants
    assert appraise(verified, ReferenceValues(far + good), NOW, statement=claims).variant == good[0]


def test_the_launch_is_appraised_too() -> None:
    """A lower isolation level, an unlisted taint and other roots are refused; a listed taint is not."""
    tainted = LaunchClaims(Isolation.UNPACKED, "i", ("debug-shell",), {"cohort": b"x" * 32})
    assert findings(TDX, tainted) == ["appraisal.isolation", "appraisal.taint", "appraisal.roots"]
    relaxed = {"minimum_isolation": Isolation.UNPACKED, "allow_taints": frozenset({"debug-shell"}), "roots": None}
    assert findings(TDX, tainted, **relaxed) == []


def test_a_managers_statement_has_an_isolation_level_but_no_roots() -> None:
    """A manager below the level is refused, and so is one under a variant that demands roots."""
    verified = TDX.case().verify()
    assert appraise(verified, TDX.reference(roots=None), NOW, statement=MANAGER).statement == MANAGER
    with pytest.raises(AppraisalError) as caught:
        appraise(verified, TDX.reference(minimum_isolation=Isolation.ENCLAVE), NOW, statement=MANAGER)
    assert [finding.rule for finding in caught.value.findings] == ["appraisal.isolation", "appraisal.roots"]


def test_the_statuses_that_a_policy_can_write_are_those_that_can_be_tolerated() -> None:
    """The language and the appraiser have one list."""
    assert frozenset(get_args(TcbStatus)) == TOLERABLE_STATUSES


def test_hyper_threading_must_be_off_or_allowed() -> None:
    """On and unknown both need the policy's word."""
    workload = AttestedWorkload(Forge("tdx", profile=MachineProfile(smt=True)))
    assert findings(workload) == ["appraisal.smt"]
    assert findings(workload, allow_smt=True) == []
    said = []
    for smt in (True, None):
        with pytest.raises(AppraisalError, match=r"appraisal\.smt") as caught:
            appraise(replace(TDX.case().verify(), smt=smt), TDX.reference(), NOW, statement=TDX.good.claims)
        said.append(caught.value.findings[0].actual)
    assert said[0] == "on"
    assert said[1] != "on"


def test_old_collateral_and_debug_are_refused_at_appraisal_as_well() -> None:
    """A verdict reached later than the collateral's end, or on a debug workload, is none."""
    verified = TDX.case().verify()
    for claims, now, rule in (
        (verified, verified.collateral_expires + 1, "appraisal.collateral_expired"),
        (replace(verified, debug=True), NOW, "appraisal.debug"),
    ):
        with pytest.raises(AppraisalError) as caught:
            appraise(claims, TDX.reference(), now, statement=TDX.good.claims)
        assert caught.value.code == rule
    last = verified.collateral_expires
    assert appraise(verified, TDX.reference(), last, statement=TDX.good.claims).verified is verified


def test_an_open_advisory_of_an_up_to_date_platform_must_be_named() -> None:
    """UpToDate with an advisory needs a tolerance that names it."""
    case = replace(TDX.forge.tcb_status("UpToDate", ("INTEL-SA-9",)), evidence=TDX.case().evidence)
    verified = case.verify()
    for tolerances, accepted in (
        ((), False),
        ((Tolerance("UpToDate", frozenset({"INTEL-SA-8"}), NOW),), False),
        ((Tolerance("UpToDate", frozenset({"INTEL-SA-9"}), NOW),), True),
    ):
        reference = TDX.reference(tolerances=tolerances)
        if accepted:
            assert appraise(verified, reference, NOW, statement=TDX.good.claims).tolerated == ("INTEL-SA-9",)
            continue
        with pytest.raises(AppraisalError, match=r"appraisal\.advisory") as caught:
            appraise(verified, reference, NOW, statement=TDX.good.claims)
        expected = caught.value.findings[0].expected
        assert expected == "INTEL-SA-8" if tolerances else expected


@pytest.mark.parametrize(
    "status",
    [
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "TDRelaunchAdvised",
        "TDRelaunchAdvisedConfigurationNeeded",
    ],
)
def test_every_status_of_intels_list_but_revoked_can_be_tolerated_by_name(status: str) -> None:
    """The names are Intel's, letter by letter; a tolerance lets pass its own status and no other."""
    verified = replace(TDX.case().verify(), tcb_status=status)
    reference = TDX.reference(tolerances=(Tolerance(status, frozenset(), NOW),))
    assert appraise(verified, reference, NOW, statement=TDX.good.claims).tolerated == (status,)
    with pytest.raises(AppraisalError, match=r"appraisal\.tcb_status"):
        appraise(verified, TDX.reference(), NOW, statement=TDX.good.claims)


@pytest.mark.parametrize("purpose", ["attest", "renew", "peer", "manager"])
def test_report_data_is_the_specified_digest(purpose: str) -> None:
    """SHA-512 over label and fields, a length of eight bytes before each: computed here by hand for every purpose."""
    own: dict[str, Any] = {"claims": MANAGER, "manager_certificate": b""} if purpose == "manager" else {}
    bound = TDX.binding(purpose=Purpose(purpose), **own)
    fields = [
        b"secfl/v1/binding-" + purpose.encode(),
        bound.service.encode(),
        bound.policy_hash,
        bound.nonce,
        bound.tls_spki,
        bound.sealing_key,
        bound.manager_certificate,
        bound.deployment_id.encode(),
        bound.node_id.encode(),
        hashlib.sha256(bound.claims.encode()).digest(),
    ]
    expected = hashlib.sha512(b"".join(len(field).to_bytes(8, "big") + field for field in fields)).digest()
    assert bound.report_data() == expected


def test_any_platform_needs_a_reason() -> None:
    """Skipping the platform list is a value with a reason."""
    assert findings(TDX, platforms=AnyPlatform("machines of one rack")) == []
    with pytest.raises(ValueError, match="reason"):
        AnyPlatform(" ")


def test_verdicts_and_claims_are_made_in_one_place_each() -> None:
    """Neither can be constructed by hand."""
    verified = TDX.case().verify()
    appraised = appraise(verified, TDX.reference(), NOW, statement=TDX.good.claims)
    with pytest.raises(TypeError):
        Appraised(verified, TDX.good.claims, appraised.variant, (), object())
    with pytest.raises(TypeError):
        replace(verified, seal=None)  # type: ignore[arg-type]


def test_only_verifiers_use_the_seal_and_nobody_imports_the_forge() -> None:
    """The modules that name the verifier's seal, and those that import the forge, are a short list."""
    root = Path(secfl.__file__).parent
    sealing, forging = set(), set()
    for path in root.rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        module = path.relative_to(root).as_posix()
        if "VERIFIER_SEAL" in names:
            sealing.add(module)
        if "secfl.testing.forge" in modules and not module.startswith("testing/"):
            forging.add(module)
    assert sealing == {"tee/dcap.py", "tee/claims_record.py"}
    assert forging == set()


def test_a_manager_binds_manager_claims_and_no_manager() -> None:
    """The manager's purpose and its claims come together, and only there is the manager certificate absent."""
    changes: dict[str, Any] = {"purpose": Purpose.MANAGER, "claims": MANAGER, "manager_certificate": b""}
    bound = TDX.binding(**changes)
    assert check(bound, TDX.case(bound).verify()) == bound
    for missing in changes:
        with pytest.raises(EncodingError, match=r"binding\.malformed"):
            TDX.binding(**{key: value for key, value in changes.items() if key != missing})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"service": ""}, "binding.malformed"),
        ({"node_id": ""}, "binding.malformed"),
        ({"deployment_id": "d" * 513}, "binding.malformed"),
        ({"policy_hash": b"p" * 31}, "binding.malformed"),
        ({"sealing_key": b""}, "binding.malformed"),
        ({"manager_certificate": bytes(65_537)}, "binding.malformed"),
        ({"tls_spki": b"key"}, "key.unsupported"),
    ],
)
def test_absent_and_oversized_fields_bind_nothing(changes: dict[str, Any], code: str) -> None:
    """Every field must be there in its size; the shortest and the longest are good."""
    TDX.binding(service="s", deployment_id="d" * 512, manager_certificate=bytes(65_536))
    with pytest.raises(EncodingError) as caught:
        TDX.binding(**changes)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "changes",
    [
        {"instance": ""},
        {"instance": "UPPER"},
        {"taints": ("b", "a")},
        {"taints": ("a", "a")},
        {"taints": ("not a token",)},
        {"roots": {"v": b"short"}},
        {"roots": {"../v": b"r" * 32}},
        {"roots": {f"v{index}": b"r" * 32 for index in range(257)}},
        {"node_key": "two\nlines"},
        {"node_key": "k" * 513},
    ],
)
def test_launch_claims_without_a_single_encoding_are_refused(changes: dict[str, Any]) -> None:
    """Unsorted, oversized or odd members are errors at construction."""
    good: dict[str, Any] = {"isolation": Isolation.FULL, "instance": "i"}
    with pytest.raises(EncodingError, match=r"statement\.malformed"):
        LaunchClaims(**good | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"founders": ("zz" * 32,)},
        {"founders": ("ab",)},
        {"founders": ("b" * 64, "a" * 64)},
        {"log_length": -1},
        {"log_length": True},
        {"log_head": b""},
        {"rollback_protection": ""},
    ],
)
def test_manager_claims_without_a_single_encoding_are_refused(changes: dict[str, Any]) -> None:
    """Unsorted founders, lengths and heads of another form are errors."""
    with pytest.raises(EncodingError, match=r"statement\.malformed"):
        replace(MANAGER, **changes)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "other"},
        {"isolation": "perfect"},
        {"isolation": 3},
        {"further": 1},
        {"roots": []},
        {"roots": {"v": 1}},
        {"taints": "a"},
        {"taints": [1]},
    ],
)
def test_statements_of_another_form_are_refused(change: dict[str, Any]) -> None:
    """Unknown types, levels and members are refused."""
    document = strict_json.decode(TDX.good.claims.encode())
    with pytest.raises(EncodingError, match=r"statement\."):
        decode_statement(strict_json.encode(document | change))
    with pytest.raises(EncodingError, match=r"statement\."):
        decode_statement(b"[]")


MEDIA_TYPE = "application/vnd.secfl.tdx-quote"


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ({}, "evidence.malformed"),
        ([MEDIA_TYPE, "QQ"], "evidence.malformed"),
        ([MEDIA_TYPE, "QQ", 8], "evidence.malformed"),
        ([MEDIA_TYPE, "QQ", True], "evidence.malformed"),
        ([MEDIA_TYPE, 1, 4], "evidence.malformed"),
        ([MEDIA_TYPE, "", 4], "evidence.size"),
        ([MEDIA_TYPE, "QR", 4], "base64.malformed"),
        (["application/other", "QQ", 4], "evidence.kind"),
        ([MEDIA_TYPE, to_base64url(bytes(MAX_BLOB_BYTES + 1)), 4], "evidence.size"),
    ],
)
def test_records_of_another_form_are_refused(record: Any, code: str) -> None:
    """Type, value and indicator each have one form."""
    with pytest.raises(EncodingError) as caught:
        Evidence.decode(strict_json.encode(record))
    assert caught.value.code == code


def test_a_challenge_serves_once_in_its_time() -> None:
    """It is gone after use, after its time, and when the clock ran backwards."""
    book = ChallengeBook(ttl=10)
    for age, code in ((0, None), (10, None), (11, "challenge.expired"), (-1, "challenge.expired")):
        nonce = os.urandom(32)
        book.issue(nonce, purpose=Purpose.PEER, subject="s", now=NOW)
        if code is None:
            assert book.redeem(nonce, purpose=Purpose.PEER, subject="s", now=NOW + age) == nonce
        else:
            with pytest.raises(FreshnessError) as caught:
                book.redeem(nonce, purpose=Purpose.PEER, subject="s", now=NOW + age)
            assert caught.value.code == code
        with pytest.raises(FreshnessError, match=r"challenge\.unknown"):
            book.redeem(nonce, purpose=Purpose.PEER, subject="s", now=NOW + age)
    assert len(book) == 0


def test_ev_08_a_restarted_manager_knows_no_earlier_challenge() -> None:
    """A nonce issued by one book is unknown to another, such as a replica's."""
    nonce = os.urandom(32)
    ChallengeBook().issue(nonce, purpose=Purpose.ATTEST, subject="s", now=NOW)
    with pytest.raises(FreshnessError, match=r"challenge\.unknown"):
        ChallengeBook().redeem(nonce, purpose=Purpose.ATTEST, subject="s", now=NOW)


def test_a_flood_of_challenges_is_refused_until_they_expire() -> None:
    """The book is bounded; honest open challenges are not pushed out."""
    book = ChallengeBook(ttl=10, limit=2)
    kept = [book.issue(os.urandom(32), purpose=Purpose.ATTEST, subject="s", now=NOW) for _ in range(2)]
    with pytest.raises(UnavailableError, match=r"challenge\.too_many"):
        book.issue(os.urandom(32), purpose=Purpose.ATTEST, subject="s", now=NOW + 10)
    assert book.redeem(kept[0], purpose=Purpose.ATTEST, subject="s", now=NOW + 10) == kept[0]
    book.issue(os.urandom(32), purpose=Purpose.ATTEST, subject="s", now=NOW + 10)
    book.issue(os.urandom(32), purpose=Purpose.ATTEST, subject="s", now=NOW + 11)
    assert len(book) == 2


@pytest.mark.parametrize("bounds", [{"ttl": 0}, {"limit": 0}])
def test_a_challenge_book_has_positive_bounds(bounds: dict[str, int]) -> None:
    """One second and one challenge are enough for a book, zero of either is an error."""
    assert len(ChallengeBook(ttl=1, limit=1)) == 0
    with pytest.raises(ValueError, match="positive"):
        ChallengeBook(**bounds)
