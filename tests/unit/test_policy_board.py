"""The board's count, grants, imports and reference values on the ordinary paths."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secfl.attestation.appraise import Tolerance
from secfl.crypto.signing import PublicKey, SigningKey
from secfl.errors import AuthorizationError, EncodingError, FreshnessError, StateError, VerificationError
from secfl.policy.board import Ballot, Lineage, Motion, Outcome, authorize_proposer, tally
from secfl.policy.grants import Grant, check_grant
from secfl.policy.references import check_import
from secfl.policy.requirements import reference_values
from secfl.policy.storage import ImportReference
from secfl.policy.version import PolicyVersion

VALID = Path(__file__).parents[1] / "vectors" / "policy" / "valid"
STUDY = PolicyVersion.read((VALID / "heart.yaml").read_bytes())
OWNER = PolicyVersion.read((VALID / "cohort.yaml").read_bytes())
DEPLOYMENT = "0" * 31 + "1"
PARTIES = ("cleveland", "hungary", "model-owner")


def key(name: str) -> PublicKey:
    """The example party's public key."""
    seed = hashlib.sha256(b"vector signing " + name.encode()).digest()
    return SigningKey(Ed25519PrivateKey.from_private_bytes(seed)).public


FOUNDERS = {name: key(name) for name in PARTIES}
MOTION = Motion(DEPLOYMENT, "aa" * 32, "heart", STUDY.hash, None)
FIRST = Lineage(None, frozenset())


def ballots(**choices: bool) -> list[Ballot]:
    """Votes on the motion; a name's underscore is a dash."""
    return [Ballot(MOTION, choice, key(name.replace("_", "-"))) for name, choice in choices.items()]


def test_a_first_version_needs_all_of_its_board() -> None:
    """Two of three leave the motion open; the third accepts it."""
    two = tally(MOTION, ballots(cleveland=True, hungary=True), proposed=STUDY, lineage=FIRST, founders=FOUNDERS)
    assert two.outcome is Outcome.OPEN
    assert two.missing == ("model-owner",)
    three = tally(
        MOTION,
        ballots(cleveland=True, hungary=True, model_owner=True),
        proposed=STUDY,
        lineage=FIRST,
        founders=FOUNDERS,
    )
    assert three.outcome is Outcome.ACCEPTED
    assert three.approvals == PARTIES


def test_outcomes_have_the_words_of_the_log() -> None:
    """What the log and a vote's answer say of a motion are these three words."""
    assert [outcome.value for outcome in Outcome] == ["open", "accepted", "rejected"]


def test_no_votes_leave_a_motion_open() -> None:
    """Proposing is not voting."""
    decision = tally(MOTION, [], proposed=STUDY, lineage=FIRST, founders=FOUNDERS)
    assert decision.outcome is Outcome.OPEN
    assert decision.missing == PARTIES


def test_members_may_propose() -> None:
    """The proposer's name comes from its key."""
    assert authorize_proposer(key("hungary"), proposed=STUDY, lineage=FIRST, founders=FOUNDERS) == "hungary"


def grant(**changes: object) -> Grant:
    """A good grant with changes."""
    fields = {
        "deployment_id": DEPLOYMENT,
        "policy": "cleveland/cohort",
        "volume": "cohort",
        "root": bytes.fromhex("d1" * 32),
        "rights": ("read",),
        "study": "heart",
        "study_policy_hash": STUDY.hash,
        "expires": 2000,
    }
    return Grant.model_validate({**fields, **changes})


def test_a_grant_keeps_its_bytes() -> None:
    """Encoding and decoding are inverse."""
    assert Grant.decode(grant().encode()) == grant()
    assert Grant.decode(grant().encode()).encode() == grant().encode()
    last = grant(expires=2**40 - 1)
    assert Grant.decode(last.encode()) == last


@pytest.mark.parametrize(
    ("payload", "code", "field"),
    [
        (b"{}", "grant.malformed", "deployment_id"),
        (b"[]", "grant.malformed", ""),
        (b"1", "grant.malformed", ""),
        (grant().encode()[:-1], "json.malformed", None),
        (grant().encode().replace(b"read", b"gift"), "grant.malformed", "rights.0"),
        (grant().encode().replace(b"2000", b"-1"), "grant.malformed", "expires"),
        (grant().encode().replace(b"2000", b"1099511627776"), "grant.malformed", "expires"),
        (grant().encode()[:-1] + b',"' + b"z" * 200 + b'":1}', "grant.malformed", "z" * 80),
        (b'"' + b"x" * (16 * 1024 - 2) + b'"', "grant.malformed", ""),
        (b'"' + b"x" * (16 * 1024 - 1) + b'"', "json.too_large", None),
    ],
    ids=["empty", "list", "number", "cut", "right", "past", "future", "further", "longest", "too long"],
)
def test_other_bytes_are_no_grant(payload: bytes, code: str, field: str | None) -> None:
    """A malformed grant is an encoding error that names the field, in at most 80 characters."""
    with pytest.raises(EncodingError) as caught:
        Grant.decode(payload)
    assert (caught.value.code, caught.value.details.get("field")) == (code, field)


def test_a_good_grant_gives_the_volume() -> None:
    """Signed by the owner's board, for this study, in force."""
    volume = check_grant(
        grant(), signers={key("cleveland")}, deployment_id=DEPLOYMENT, owner=OWNER, study=STUDY, now=2000
    )
    assert volume.name == "cohort"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"deployment_id": "2" * 32}, "grant.other_deployment"),
        ({"policy": "hungary/cohort"}, "grant.other_policy"),
        ({"study": "liver"}, "grant.other_study"),
        ({"study_policy_hash": bytes(32)}, "grant.other_study"),
        ({"root": bytes(32)}, "grant.other_root"),
        ({"volume": "genomes"}, "policy.unknown_volume"),
        ({"expires": 1999}, "grant.expired"),
    ],
)
def test_a_grant_for_something_else_is_refused(changes: dict[str, object], code: str) -> None:
    """Each bound field stops its own misuse."""
    with pytest.raises((AuthorizationError, FreshnessError, StateError)) as caught:
        check_grant(
            grant(**changes), signers={key("cleveland")}, deployment_id=DEPLOYMENT, owner=OWNER, study=STUDY, now=2000
        )
    assert caught.value.code == code


def test_a_grant_is_for_a_deposited_volume() -> None:
    """What an owner's policy itself imports or writes is not its to give."""
    for volume in ("code", "model"):
        with pytest.raises(AuthorizationError) as caught:
            check_grant(
                grant(policy="heart", volume=volume),
                signers=set(FOUNDERS.values()),
                deployment_id=DEPLOYMENT,
                owner=STUDY,
                study=STUDY,
                now=2000,
            )
        assert caught.value.code == "grant.other_root"


def test_a_grant_needs_the_owners_board() -> None:
    """Another party's signature gives nothing."""
    with pytest.raises(AuthorizationError) as caught:
        check_grant(grant(), signers={key("hungary")}, deployment_id=DEPLOYMENT, owner=OWNER, study=STUDY, now=1)
    assert caught.value.code == "grant.not_signed"


def test_an_import_names_policy_hash_and_volume() -> None:
    """The pinned version gives its deposited volume; another hash or policy gives nothing."""
    reference = ImportReference(policy="cleveland/cohort", policy_hash=OWNER.hash, volume="cohort")
    assert check_import(reference, OWNER).root == bytes.fromhex("d1" * 32)
    for changed, error, code in (
        ({"policy_hash": bytes(32)}, StateError, "reference.policy_changed"),
        ({"policy": "hungary/cohort"}, VerificationError, "reference.policy_name"),
        ({"volume": "genomes"}, StateError, "policy.unknown_volume"),
    ):
        with pytest.raises(error) as caught:
            check_import(reference.model_copy(update=changed), OWNER)
        assert caught.value.code == code


def test_only_deposited_volumes_are_imported() -> None:
    """An import of an import or of a writable volume is refused."""
    for volume in ("code", "model"):
        reference = ImportReference(policy="heart", policy_hash=STUDY.hash, volume=volume)
        with pytest.raises(StateError) as caught:
            check_import(reference, STUDY)
        assert caught.value.code == "reference.not_deposited"


def test_reference_values_take_over_every_factor() -> None:
    """Domain, measurement, platforms, SMT and evaluation number of the entry reach the appraiser."""
    values = reference_values(STUDY.policy, "aggregator", roots={"code": bytes(32)})
    (variant,) = values.variants
    assert variant.trust_domain == "simulated:" + "5a" * 32
    assert variant.measurements == {bytes.fromhex("a1" * 48)}
    assert variant.platforms == frozenset({bytes.fromhex("01" * 16)})
    assert variant.roots == {"code": bytes(32)}
    assert variant.allow_smt
    assert variant.minimum_evaluation == 1
    assert variant.tolerances == ()


def test_tolerances_end() -> None:
    """A tolerated status carries its advisories and the last second of its day."""
    text = STUDY.data.decode().replace(
        "tcb_status: [UpToDate]\n        advisories: []",
        "tcb_status: [UpToDate, SWHardeningNeeded]\n        advisories: [INTEL-SA-00615]\n"
        '        tolerated_until: "2027-03-31"',
        1,
    )
    (variant,) = reference_values(PolicyVersion.read(text.encode()).policy, "aggregator", roots=None).variants
    advisories = frozenset({"INTEL-SA-00615"})
    assert variant.tolerances == (
        Tolerance("UpToDate", advisories, 1806537599),
        Tolerance("SWHardeningNeeded", advisories, 1806537599),
    )


def test_uptodate_needs_no_tolerance_without_advisories() -> None:
    """Only what is worse than UpToDate becomes a tolerance."""
    text = STUDY.data.decode().replace(
        "tcb_status: [UpToDate]", 'tcb_status: [UpToDate, OutOfDate]\n        tolerated_until: "2027-03-31"', 1
    )
    (variant,) = reference_values(PolicyVersion.read(text.encode()).policy, "aggregator", roots=None).variants
    assert variant.tolerances == (Tolerance("OutOfDate", frozenset(), 1806537599),)


def test_a_lineage_has_no_gap() -> None:
    """Earlier versions without a current one are a programming error."""
    with pytest.raises(ValueError, match="in force"):
        Lineage(None, frozenset({bytes(32)}))
    assert dataclasses.replace(FIRST, current=STUDY).current is STUDY
