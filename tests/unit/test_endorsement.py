"""Collateral: signed statements of another form, and the library's answers of another form."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dcap_qvl
import pytest

from secfl.errors import EncodingError, SecflError, VerificationError
from secfl.tee import dcap, sgx, tdx
from secfl.tee.collateral import Collateral
from secfl.tee.endorsement import PemChain, check_collateral
from secfl.tee.quote import parse
from secfl.tee.simulated.tcb import Statements, TcbLevel, VersionLevel
from secfl.tee.simulated.vendor import COLLATERAL_SECONDS, Revocations, sign_text
from secfl.testing.forge import NOW, Forge

FORGE = Forge("tdx")
GOOD = FORGE.case().collateral
Change = Callable[[dict[str, Any]], Any]


def resigned(member: str, change: Change | str) -> Collateral:
    """The good collateral with one text changed and signed by the true signer."""
    text = change if isinstance(change, str) else None
    if callable(change):
        document = json.loads(getattr(GOOD, member))
        change(document)
        text = json.dumps(document, separators=(",", ":"))
    assert text is not None
    members: dict[str, Any] = {member: text, f"{member}_signature": sign_text(FORGE.vendor.tcb_signer.key, text)}
    return replace(GOOD, **members)


def code_of(collateral: Collateral) -> str:
    """The code with which collateral is refused."""
    with pytest.raises(SecflError) as caught:
        check_collateral(collateral, FORGE.vendor.anchor(), NOW)
    return caught.value.code


def test_good_collateral_says_what_it_covers() -> None:
    """Kind, family, number, end and revocations are those that were signed."""
    statements = Statements(issued=NOW - 300, expires=NOW + 100, evaluation_number=7)
    collateral = FORGE.vendor.endorse("tdx", statements, Revocations(by_pck_ca=frozenset({5})))
    endorsements = check_collateral(collateral, FORGE.vendor.anchor(), NOW)
    assert (endorsements.kind, endorsements.fmspc, endorsements.evaluation_number) == ("tdx", b"SIMFL\x01", 7)
    assert (endorsements.expires, endorsements.revoked) == (NOW + 100, frozenset({5}))
    assert check_collateral(GOOD, FORGE.vendor.anchor(), NOW).expires == NOW + COLLATERAL_SECONDS


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("[]", "collateral.malformed"),
        ("{}", "collateral.malformed"),
        ("{", "json.malformed"),
        ('{"id":"TDX","id":"SGX"}', "json.malformed"),
        (lambda d: d.update(id="SEV"), "collateral.malformed"),
        (lambda d: d.update(version=4), "collateral.malformed"),
        (lambda d: d.update(version="3"), "collateral.malformed"),
        (lambda d: d.pop("nextUpdate"), "collateral.malformed"),
        (lambda d: d.update(nextUpdate="2030-13-01T00:00:00Z"), "collateral.malformed"),
        (lambda d: d.update(nextUpdate="2030-01-01"), "collateral.malformed"),
        (lambda d: d.update(issueDate=1), "collateral.malformed"),
        (lambda d: d.update(nextUpdate="2020-01-01T00:00:00Z"), "collateral.expired"),
        (lambda d: d.update(fmspc="x"), "collateral.malformed"),
        (lambda d: d.pop("fmspc"), "collateral.malformed"),
        (lambda d: d.update(tcbEvaluationDataNumber=True), "collateral.malformed"),
        (lambda d: d.update(tcbEvaluationDataNumber=-1), "collateral.malformed"),
        (lambda d: d.update(tcbLevels={}), "collateral.tcb_levels"),
        (lambda d: d.update(tcbLevels=[1]), "collateral.tcb_levels"),
        (lambda d: d.update(tcbLevels=d["tcbLevels"] * 257), "collateral.tcb_levels"),
        (lambda d: d.update(tcbLevels=d["tcbLevels"] * 2), "collateral.tcb_levels"),
        (lambda d: d["tcbLevels"][0].pop("tcbStatus"), "collateral.tcb_levels"),
        (lambda d: d["tcbLevels"][0].pop("tcb"), "collateral.tcb_levels"),
        (lambda d: d["tcbLevels"][0]["tcb"].pop("sgxtcbcomponents"), "collateral.tcb_levels"),
        (lambda d: d["tcbLevels"][0]["tcb"].pop("tdxtcbcomponents"), "collateral.tcb_levels"),
        (lambda d: d["tcbLevels"][0]["tcb"].pop("pcesvn"), "collateral.malformed"),
        (lambda d: d["tcbLevels"][0]["tcb"].update(pcesvn="13"), "collateral.malformed"),
        (lambda d: d["tcbLevels"][0]["tcb"]["sgxtcbcomponents"].__setitem__(0, 4), "collateral.malformed"),
        (lambda d: d["tcbLevels"][0]["tcb"]["sgxtcbcomponents"][0].update(svn=256), "collateral.malformed"),
        (lambda d: d.update(tdxModuleIdentities={}), "collateral.malformed"),
        (lambda d: d.update(tdxModuleIdentities=[1]), "collateral.tcb_levels"),
        (lambda d: d["tdxModuleIdentities"][0].pop("tcbLevels"), "collateral.tcb_levels"),
    ],
)
def test_ev_24_signed_tcb_information_of_another_form_is_refused(change: Change | str, code: str) -> None:
    """A right signature does not help a document that is incomplete, out of range or unsorted."""
    assert code_of(resigned("tcb_info", change)) == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("[]", "collateral.malformed"),
        (lambda d: d.update(id="QE"), "collateral.kind"),
        (lambda d: d.update(version=1), "collateral.malformed"),
        (lambda d: d.update(tcbLevels=[]), "collateral.tcb_levels"),
        (lambda d: d["tcbLevels"][0]["tcb"].update(isvsvn=2**16), "collateral.malformed"),
    ],
)
def test_ev_05_a_signed_qe_identity_of_another_form_is_refused(change: Change | str, code: str) -> None:
    """The same for the quoting enclave's identity."""
    assert code_of(resigned("qe_identity", change)) == code


def test_ev_17_each_part_of_the_collateral_has_its_own_end() -> None:
    """The end of the whole is the end of its first part, whichever that is."""
    for member in ("tcb_info", "qe_identity"):
        collateral = resigned(member, lambda d: d.update(nextUpdate="2026-09-22T00:00:00Z"))
        endorsements = check_collateral(collateral, FORGE.vendor.anchor(), NOW)
        assert endorsements.expires == 1_790_035_200
        with pytest.raises(SecflError, match=r"collateral\.expired"):
            check_collateral(collateral, FORGE.vendor.anchor(), endorsements.expires + 1)


def test_unreadable_lists_and_chains_are_refused() -> None:
    """Junk in a list or chain, a chain of another length or order is refused."""
    assert code_of(replace(GOOD, pck_crl=b"junk")) == "collateral.crl"
    chain = GOOD.tcb_info_issuer_chain
    end = "-----END CERTIFICATE-----\n"
    signer, root = (part + end for part in chain.split(end)[:2])
    for text in ("junk", signer, chain + signer, "x" + chain, signer + "\n" + root, signer + "# note\n" + root):
        assert code_of(replace(GOOD, tcb_info_issuer_chain=text)) == "chain.malformed"
    assert code_of(replace(GOOD, tcb_info_issuer_chain=root + signer)) == "collateral.root"
    with pytest.raises(EncodingError, match=r"chain\.malformed"):
        PemChain.decode(b"", length=0)


def test_a_collateral_document_has_exactly_nine_members() -> None:
    """A tenth member, which would override the quote's chain, and members that are no text are refused."""
    document = json.loads(GOOD.encode())
    others: list[Any] = [{**document, "pck_certificate_chain": ""}, {**document, "tcb_info": 1}, {}, []]
    for changed in others:
        with pytest.raises(EncodingError, match=r"collateral\.malformed"):
            Collateral.decode(json.dumps(changed).encode())
    with pytest.raises(EncodingError, match=r"collateral\.size"):
        replace(GOOD, tcb_info_signature=b"short")
    assert Collateral.decode(json.dumps(document, indent=1).encode()) == GOOD


QUOTE = parse(FORGE.case().evidence.blob)
ENDORSEMENTS = check_collateral(GOOD, FORGE.vendor.anchor(), NOW)
ANSWER = dcap._run(QUOTE, ENDORSEMENTS, FORGE.vendor.anchor(), NOW)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("tcb"),
        lambda a: a["tcb"].update(status="Fine"),
        lambda a: a["tcb"].update(status=None),
        lambda a: a["tcb"].update(status="Revoked"),
        lambda a: a["platform"]["pck"].update(fmspc=[0] * 6),
        lambda a: a["platform"]["pck"].update(ppid=[]),
        lambda a: a["platform"]["pck"].update(ppid=[0] * 16),
        lambda a: a["platform"]["pck"].update(smt_enabled="Maybe"),
        lambda a: a.update(report={}),
        lambda a: a["report"]["TD10"].update(report_data="00"),
        lambda a: a["report"]["TD10"].update(report_data="ff" * 64),
    ],
)
def test_ev_36_an_answer_of_another_form_is_a_refusal(change: Change) -> None:
    """Should the library's answer ever miss, change or contradict something, the evidence is refused."""
    assert dcap._read(ANSWER, QUOTE, ENDORSEMENTS) == dcap.verify_quote(QUOTE, ENDORSEMENTS, FORGE.vendor.anchor(), NOW)
    answer = copy.deepcopy(ANSWER)
    change(answer)
    with pytest.raises(VerificationError):
        dcap._read(answer, QUOTE, ENDORSEMENTS)


@pytest.mark.parametrize("status", ["OutOfDate", "SWHardeningNeeded", "ConfigurationNeeded"])
def test_the_library_takes_weak_statuses_for_success(status: str) -> None:
    """The reason for our own allow-list: the library's verification alone is no policy."""
    case = FORGE.tcb_status(status)
    collateral = dcap_qvl.QuoteCollateralV3.from_json(case.collateral.encode().decode())
    report = dcap_qvl.verify_with_root_ca(case.evidence.blob, collateral, case.anchor.root_der, NOW)
    assert report.status == status


def test_the_library_merges_the_quoting_enclaves_status() -> None:
    """An out-of-date quoting enclave or TDX module makes the whole out of date."""
    for changes in (
        {"qe_levels": (VersionLevel(9), VersionLevel(8, "OutOfDate"))},
        {"module_levels": (VersionLevel(6), VersionLevel(5, "OutOfDate"))},
        {"levels": (TcbLevel(status="OutOfDate"),)},
    ):
        collateral = FORGE.endorsed(**changes)
        assert FORGE.case(collateral=collateral).verify().tcb_status == "OutOfDate"


def test_ev_07_debug_and_service_tds_are_refused_even_if_the_library_let_them_pass() -> None:
    """Our own reading of the attributes does not rely on the library's."""
    tdx._check_attributes(tdx.SEPT_VE_DISABLE)
    sgx._check_attributes(sgx.FLAG_INIT | sgx.FLAG_MODE64)
    tdx._check_service_td(bytes(584 + 64))
    attempts: list[tuple[Callable[[], object], str]] = [
        (lambda: tdx._check_attributes(tdx.SEPT_VE_DISABLE | 1), "evidence.debug"),
        (lambda: tdx._check_attributes(0), "evidence.td_attributes"),
        (lambda: sgx._check_attributes(sgx.FLAG_INIT | sgx.FLAG_MODE64 | 2), "evidence.debug"),
        (lambda: sgx._check_attributes(sgx.FLAG_INIT), "evidence.enclave_attributes"),
        (lambda: tdx._check_service_td(bytes(584 + 63) + b"\1"), "evidence.service_td"),
    ]
    for refuse, code in attempts:
        with pytest.raises(VerificationError) as caught:
            refuse()
        assert caught.value.code == code
