"""Genuine evidence, signed by Intel, gives the recorded verdicts without a network."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secfl.attestation.claims import SgxIdentity, TdxIdentity
from secfl.attestation.evidence import Evidence
from secfl.errors import EncodingError, VerificationError
from secfl.tee.anchor import intel_anchor
from secfl.tee.collateral import Collateral
from secfl.tee.endorsement import check_collateral
from secfl.tee.quote import parse
from secfl.tee.verifier import verify
from secfl.testing.forge import Case, Forge

VECTORS = Path(os.environ.get("SECFL_SHARED", "../shared")) / "vectors"
KINDS = ("sgx", "tdx")
PEM_END = b"-----END CERTIFICATE-----\n"
APPENDED = "tdx_v4_no_matching_tcb_50806f"
"""This sample carries bytes of its own test suite after the quote: refused as it is, and read when they are cut."""
CODES = {
    "Debug mode is enabled": "evidence.debug",
    "No matching TCB level found": "evidence.tcb_unknown",
    "SEPT_VE_DISABLE is not enabled": "evidence.td_attributes",
    "Invalid MR service TD": "evidence.service_td",
}


def load() -> list[tuple[str, dict[str, Any]]]:
    """All vectors of both kinds, none when the shared folder is absent."""
    found = []
    for kind in KINDS:
        index = VECTORS / kind / "vectors.json"
        found += [(kind, vector) for vector in json.loads(index.read_text())] if index.exists() else []
    return found


ALL = load()
needs_vectors = pytest.mark.skipif(not ALL, reason="SECFL_SHARED has no vectors")
EACH = pytest.mark.parametrize(("kind", "vector"), [pytest.param(k, v, id=v["name"]) for k, v in ALL])
WITH_COLLATERAL = [pytest.param(k, v, id=v["name"]) for k, v in ALL if "collateral" in v]


def blob_of(kind: str, vector: dict[str, Any]) -> bytes:
    """The quote, after comparing it with the recorded hash."""
    blob = Path(VECTORS / kind / str(vector["quote"])).read_bytes()
    assert hashlib.sha256(blob).hexdigest() == vector["sha256"]
    return blob


def case_of(kind: str, vector: dict[str, Any]) -> Case:
    """Evidence, collateral and time of one vector under the hardware root."""
    collateral = Collateral.decode((VECTORS / kind / vector["collateral"]).read_bytes())
    return Case(Evidence(kind, blob_of(kind, vector)), collateral, intel_anchor(), vector["now"])


def without_appended_bytes(case: Case) -> Case:
    """The same quote, cut where its own lengths end."""
    blob = case.evidence.blob
    return replace(case, evidence=Evidence(case.evidence.kind, blob[: blob.rindex(PEM_END) + len(PEM_END)]))


@needs_vectors
def test_both_kinds_have_accepted_and_refused_vectors() -> None:
    """The loader found genuine evidence of both kinds, good and bad."""
    for kind in KINDS:
        verdicts = [set(vector["expect"]) for name, vector in ALL if name == kind]
        assert {"status"} in verdicts
        assert {"error"} in verdicts


@needs_vectors
@EACH
def test_every_vector_is_read_completely(kind: str, vector: dict[str, Any]) -> None:
    """A genuine quote parses, with its version and the certificate chain to the pinned root."""
    blob = blob_of(kind, vector)
    if vector["name"] == APPENDED:
        with pytest.raises(EncodingError, match=r"quote\.trailing_bytes"):
            parse(blob)
        blob = blob[: blob.rindex(PEM_END) + len(PEM_END)]
    quote = parse(blob)
    assert (quote.kind, quote.version) == (kind, vector["quote_version"])
    assert blob.startswith(quote.raw)


@needs_vectors
@pytest.mark.parametrize(("kind", "vector"), WITH_COLLATERAL)
def test_every_vector_gives_its_recorded_verdict(kind: str, vector: dict[str, Any]) -> None:
    """Status and advisories, or the reason for the refusal, are as recorded."""
    case = case_of(kind, vector)
    expected = vector["expect"]
    if "error" in expected:
        if vector["name"] == APPENDED:
            with pytest.raises(EncodingError, match=r"quote\.trailing_bytes"):
                case.verify()
            case = without_appended_bytes(case)
        with pytest.raises(VerificationError) as caught:
            case.verify()
        assert caught.value.code == CODES[expected["error"]]
        return
    verified = case.verify()
    assert verified.tcb_status == expected["status"]
    assert list(verified.advisory_ids) == sorted(vector["observed_dcap_qvl_0_7_0"]["advisory_ids"])
    assert verified.fmspc.hex().upper() == vector["fmspc"]
    assert verified.trust_domain == "hardware:intel"
    assert isinstance(verified.identity, SgxIdentity if kind == "sgx" else TdxIdentity)


@needs_vectors
def test_a_known_quote_gives_its_known_claims() -> None:
    """Measurement, registers and report data are read from the right places."""
    (vector,) = [vector for _, vector in ALL if vector["name"] == "tdx_v4_uptodate_b0c06f"]
    verified = case_of("tdx", vector).verify()
    assert verified.measurement.hex().startswith("91eb2b44d141d4ece09f0c75c2c53d24")
    assert verified.report_data.hex().startswith("9a9d48e7f6799642d3d1b34e1e5e1742")
    assert verified.platform_id.hex() == "811dca2a26b952e85bb6448b097ba4fd"
    assert isinstance(verified.identity, TdxIdentity)
    assert verified.identity.rtmrs[2].hex().startswith("d833feef2cd945148aa38ead2c53e9b7")
    assert verified.identity.seam.hex().startswith("5b38e33a6487958b72c3c12a938eaa5e")
    assert (verified.smt, verified.evaluation_number) == (True, 17)


@needs_vectors
@pytest.mark.parametrize(("kind", "vector"), WITH_COLLATERAL)
def test_ev_17_genuine_collateral_ends(kind: str, vector: dict[str, Any]) -> None:
    """Genuine collateral is accepted until its stated end and not a second longer."""
    case = case_of(kind, vector)
    endorsements = check_collateral(case.collateral, case.anchor, case.now)
    assert endorsements.kind == kind
    check_collateral(case.collateral, case.anchor, endorsements.expires)
    with pytest.raises(Exception, match=r"collateral\.expired"):
        check_collateral(case.collateral, case.anchor, endorsements.expires + 1)


@needs_vectors
def test_ev_28_genuine_and_simulated_evidence_do_not_mix() -> None:
    """Genuine evidence fails under a simulated root, simulated evidence with genuine collateral fails too."""
    (vector,) = [vector for _, vector in ALL if vector["name"] == "tdx_v4_uptodate_b0c06f"]
    genuine, forge = case_of("tdx", vector), Forge("tdx")
    simulated = forge.case()
    for mixed in (
        replace(genuine, anchor=simulated.anchor),
        replace(genuine, anchor=simulated.anchor, collateral=simulated.collateral, now=simulated.now),
        replace(genuine, evidence=simulated.evidence),
    ):
        with pytest.raises(VerificationError, match=r"collateral\.root|evidence\.root"):
            verify(mixed.evidence, mixed.collateral, mixed.anchor, mixed.now)


@needs_vectors
def test_the_pinned_root_is_intels() -> None:
    """The root in the code is the root in the vectors."""
    assert intel_anchor().root_der == (VECTORS / "sgx/roots/intel_sgx_root_ca.der").read_bytes()
