"""Attacks on policies, votes and placeholders, each named after its row."""

from __future__ import annotations

import hashlib
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secfl.crypto.encoding import to_base64url
from secfl.crypto.signing import PublicKey, SigningKey
from secfl.errors import AuthorizationError, EncodingError, FreshnessError, StateError, VerificationError
from secfl.policy.board import Ballot, Decision, Lineage, Motion, Outcome, authorize_proposer, electorate, tally
from secfl.policy.decode import decode
from secfl.policy.findings import PolicyError
from secfl.policy.placeholders import Context, substitute
from secfl.policy.resolve import resolve_service
from secfl.policy.secret_values import SecretValues, generate
from secfl.policy.version import PolicyVersion
from secfl.policy.yaml_tree import MAX_BYTES

VALID = Path(__file__).parents[1] / "vectors" / "policy" / "valid"
HEART = (VALID / "heart.yaml").read_text()
DEPLOYMENT = "0" * 31 + "1"
MEMBERS = ("cleveland", "hungary", "model-owner")


def signing_key(name: str) -> SigningKey:
    """A party's key, as in the vectors."""
    seed = hashlib.sha256(b"vector signing " + name.encode()).digest()
    return SigningKey(Ed25519PrivateKey.from_private_bytes(seed))


def public(name: str) -> PublicKey:
    """Its public half."""
    return signing_key(name).public


FOUNDERS = {name: public(name) for name in MEMBERS}


def version(*edits: tuple[str, str]) -> PolicyVersion:
    """The example study with edits."""
    text = HEART
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return PolicyVersion.read(text.encode())


V1 = version()
V2 = version(("rounds: 15\n", "rounds: 16\n"))
FIRST = Lineage(None, frozenset())
SECOND = Lineage(V1, frozenset())


def motion(proposed: PolicyVersion, lineage: Lineage) -> Motion:
    """A fitting motion."""
    predecessor = lineage.current.hash if lineage.current else None
    return Motion(DEPLOYMENT, "aa" * 32, proposed.policy.name, proposed.hash, predecessor)


def count(
    proposed: PolicyVersion, lineage: Lineage, voters: tuple[str, ...], change: Callable[[Motion], Motion] = lambda m: m
) -> Decision:
    """Tally approvals of the voters, cast on a changed motion."""
    right = motion(proposed, lineage)
    cast = [Ballot(change(right), approve=True, signer=public(name)) for name in voters]
    return tally(right, cast, proposed=proposed, lineage=lineage, founders=FOUNDERS)


def test_pb_01_too_few_votes_do_not_activate() -> None:
    """One member fewer than demanded leaves the motion open."""
    for missing in MEMBERS:
        decision = count(V2, SECOND, tuple(name for name in MEMBERS if name != missing))
        assert decision.outcome is Outcome.OPEN
        assert decision.missing == (missing,)


def test_pb_02_a_second_vote_of_one_key_counts_nothing() -> None:
    """Three votes of one key are one vote."""
    decision = count(V2, SECOND, ("cleveland", "cleveland", "cleveland"))
    assert decision.approvals == ("cleveland",)
    assert len(decision.void) == 2
    assert decision.outcome is Outcome.OPEN


def test_pb_02_one_key_under_two_names_is_no_policy() -> None:
    """A party cannot be listed twice under different names."""
    key = to_base64url(public("cleveland").spki)
    with pytest.raises(PolicyError) as caught:
        version((to_base64url(public("hungary").spki), key))
    assert caught.value.code == "policy.duplicate_key_material"


def test_pb_02_a_key_in_another_encoding_is_refused() -> None:
    """A signing key with padding, or without its DER frame, is no key."""
    good = to_base64url(public("hungary").spki)
    for other in (good + "=", to_base64url(public("hungary").spki[12:]), good[:-1]):
        with pytest.raises(PolicyError) as caught:
            version((good, other))
        assert caught.value.code == "policy.signing_key"


@pytest.mark.parametrize("board", ["[]", "[nobody]", "[cleveland, cleveland]", "[cleveland, zurich]"])
def test_pb_03_an_empty_or_impossible_board_is_no_policy(board: str) -> None:
    """A board that nobody or everybody could satisfy is refused at creation."""
    with pytest.raises(PolicyError):
        version(("[cleveland, hungary, model-owner]}", board + "}"))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: replace(m, proposal="bb" * 32),
        lambda m: replace(m, deployment_id="2" * 32),
        lambda m: replace(m, predecessor=None),
        lambda m: replace(m, name="liver"),
    ],
)
def test_pb_04_a_vote_on_another_motion_does_not_count(change: Callable[[Motion], Motion]) -> None:
    """Votes from another proposal, deployment, version or policy are void."""
    decision = count(V2, SECOND, MEMBERS, change)
    assert decision.approvals == ()
    assert len(decision.void) == 3


@pytest.mark.parametrize("predecessor", [None, bytes(32), V2.hash])
def test_pb_06_a_stale_or_missing_predecessor_is_a_conflict(predecessor: bytes | None) -> None:
    """A proposal must follow the version in force."""
    with pytest.raises(StateError) as caught:
        tally(replace(motion(V2, SECOND), predecessor=predecessor), [], proposed=V2, lineage=SECOND, founders=FOUNDERS)
    assert caught.value.code == "board.predecessor"
    assert caught.value.details == {"expected": V1.hash.hex(), "actual": predecessor.hex() if predecessor else None}


def test_pb_06_a_first_version_follows_nothing() -> None:
    """A first version that names a predecessor claims a past that this manager does not know."""
    with pytest.raises(StateError) as caught:
        tally(replace(motion(V1, FIRST), predecessor=V2.hash), [], proposed=V1, lineage=FIRST, founders=FOUNDERS)
    assert caught.value.code == "board.predecessor"
    assert caught.value.details == {"expected": None, "actual": V2.hash.hex()}


def test_pb_06_a_version_does_not_follow_another_policy() -> None:
    """A motion that names the right predecessor, but of a policy with another name, is a conflict."""
    lineage = Lineage(version(("name: heart\n", "name: liver\n")), frozenset())
    with pytest.raises(StateError) as caught:
        count(V1, lineage, MEMBERS)
    assert caught.value.code == "board.predecessor"


def test_pb_07_an_older_version_cannot_return_with_its_old_votes() -> None:
    """After V1, V2, V1' the votes for V2 after V1 would fit again if bytes could be reused."""
    lineage = Lineage(V1, frozenset({V2.hash}))
    with pytest.raises(FreshnessError) as caught:
        count(V2, lineage, MEMBERS)
    assert caught.value.code == "board.version_reused"


def test_pb_07_the_version_in_force_is_no_successor_of_itself() -> None:
    """Proposing the bytes in force again is refused."""
    with pytest.raises(FreshnessError):
        count(V1, SECOND, MEMBERS)


def test_pb_09_one_refusal_rejects() -> None:
    """Under require-all every member has a veto, and cannot be outvoted or take it back."""
    right = motion(V2, SECOND)
    cast = [Ballot(right, approve=name != "hungary", signer=public(name)) for name in MEMBERS]
    cast.append(Ballot(right, approve=True, signer=public("hungary")))
    decision = tally(right, cast, proposed=V2, lineage=SECOND, founders=FOUNDERS)
    assert decision.outcome is Outcome.REJECTED
    assert decision.rejections == ("hungary",)


def test_pb_10_changed_bytes_void_the_votes() -> None:
    """Votes bind to the hash, and a motion must name the bytes that it brings."""
    edited = version(("rounds: 15\n", "rounds: 16 \n"))
    decision = count(V2, SECOND, MEMBERS, lambda m: replace(m, policy_hash=edited.hash))
    assert decision.approvals == ()
    with pytest.raises(VerificationError) as caught:
        tally(motion(V2, SECOND), [], proposed=edited, lineage=SECOND, founders=FOUNDERS)
    assert caught.value.code == "board.motion_mismatch"


def test_pb_10_a_motion_under_another_name_is_refused() -> None:
    """Bytes cannot be put in force under a name that they do not bear."""
    with pytest.raises(VerificationError) as caught:
        tally(replace(motion(V1, FIRST), name="liver"), [], proposed=V1, lineage=FIRST, founders=FOUNDERS)
    assert caught.value.code == "board.motion_mismatch"


def test_pb_11_a_removed_members_key_does_not_count() -> None:
    """Who left the board in the version in force has no vote on the next one."""
    without = version(("[cleveland, hungary, model-owner]}", "[cleveland, model-owner]}"))
    following = version(
        ("[cleveland, hungary, model-owner]}", "[cleveland, model-owner]}"), ("rounds: 15\n", "rounds: 16\n")
    )
    decision = count(following, Lineage(without, frozenset({V1.hash})), ("hungary", "cleveland"))
    assert decision.approvals == ("cleveland",)
    assert [void.reason for void in decision.void] == ["not a key of the board"]


def test_pb_12_the_board_in_force_decides_about_a_new_board() -> None:
    """A proposal that makes cleveland the only member still needs all three."""
    coup = version(("[cleveland, hungary, model-owner]}", "[cleveland]}"))
    decision = count(coup, SECOND, ("cleveland",))
    assert decision.outcome is Outcome.OPEN
    assert decision.missing == ("hungary", "model-owner")


def test_pb_12_a_first_board_consists_of_founders() -> None:
    """A stranger cannot found a policy, nor a founder's name with a stranger's key."""
    stranger = to_base64url(signing_key("mallory").public.spki)
    with pytest.raises(AuthorizationError) as caught:
        electorate(proposed=V1, lineage=FIRST, founders={"cleveland": public("cleveland")})
    assert caught.value.code == "board.not_a_founder"
    forged = version((to_base64url(public("hungary").spki), stranger))
    with pytest.raises(AuthorizationError) as caught:
        electorate(proposed=forged, lineage=FIRST, founders=FOUNDERS)
    assert caught.value.code == "board.founder_key"


def test_pb_14_a_name_that_the_board_in_force_knows_keeps_its_key() -> None:
    """A founder who took another key elsewhere does not lock a study whose board knows him by the former one."""
    moved = FOUNDERS | {"cleveland": public("mallory")}
    members = electorate(proposed=V2, lineage=SECOND, founders=moved)
    assert members["cleveland"] == public("cleveland")
    with pytest.raises(AuthorizationError, match=r"board\.founder_key"):
        electorate(proposed=V1, lineage=FIRST, founders=moved)


def test_pb_13_only_its_party_creates_in_a_namespace() -> None:
    """Another member of the board may not bring the first version of `cleveland/…`, but may bring a later one."""
    owned = version(("name: heart\n", "name: cleveland/heart\n"))
    assert authorize_proposer(public("cleveland"), proposed=owned, lineage=FIRST, founders=FOUNDERS) == "cleveland"
    with pytest.raises(AuthorizationError) as caught:
        authorize_proposer(public("hungary"), proposed=owned, lineage=FIRST, founders=FOUNDERS)
    assert caught.value.code == "board.namespace"
    later = Lineage(owned, frozenset())
    assert authorize_proposer(public("hungary"), proposed=owned, lineage=later, founders=FOUNDERS) == "hungary"
    with pytest.raises(AuthorizationError) as caught:
        authorize_proposer(public("mallory"), proposed=owned, lineage=FIRST, founders=FOUNDERS)
    assert caught.value.code == "board.proposer"


@pytest.mark.parametrize(
    "name",
    [
        "Hungary",
        "hung\u0430ry",
        "hungary.",
        "hungary..x",
        "'hungary '",
        "..",
        "a" * 64,
        "deadbeef" * 4,
        "deadbeef-dead-beef-dead-beefdeadbeef",
        "any",
        "-x",
    ],
)
def test_pb_14_confusing_names_are_refused(name: str) -> None:
    """Names that look like another name or like an id are no names."""
    with pytest.raises(PolicyError) as caught:
        version(("name: hungary\n    signing", f"name: {name}\n    signing"))
    assert "policy.name" in {finding.rule for finding in caught.value.findings}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('measurement: ["' + "a1" * 48 + '"]', "measurement: any"),
        ('measurement: ["' + "a1" * 48 + '"]', "measurement: []"),
        ('measurement: ["' + "a1" * 48 + '"]', 'measurement: ["*"]'),
        ("tcb_status: [UpToDate]", 'tcb_status: "*"'),
        ("tcb_status: [UpToDate]", "tcb_status: []"),
        ('platforms: ["' + "01" * 16 + '"]', "platforms: []"),
        ('app_bundle: "' + "f0" * 32 + '"', "app_bundle: latest"),
        ("peers: [trainer-cleveland, trainer-hungary]", "peers: []"),
        ('allow: ["POST /v1/fleet/*"]', "allow: []"),
        ('allow: ["POST /v1/fleet/*"]', 'allow: ["*"]'),
    ],
)
def test_pb_17_wildcards_and_empty_lists_are_no_policy(old: str, new: str) -> None:
    """What would accept anything, or nothing by accident, is an error."""
    with pytest.raises(PolicyError):
        version((old, new))


def test_pb_19_bidirectional_text_is_refused_even_in_comments() -> None:
    """A reader of the file sees the bytes in the order in which they stand."""
    with pytest.raises(PolicyError) as caught:
        version(("# A study", "# A \u202estudy"))
    assert caught.value.code == "policy.character"


def values() -> SecretValues:
    """Values of the example study."""

    def draw(size: int) -> bytes:
        draw.state = hashlib.sha256(draw.state).digest()  # type: ignore[attr-defined]  # a counter on the function
        return hashlib.shake_256(draw.state).digest(size)  # type: ignore[attr-defined]

    draw.state = b"seed"  # type: ignore[attr-defined]
    return generate(V1.policy, SecretValues(), random=draw, now=1_800_000_000)


def test_se_01_a_service_gets_no_secret_of_another() -> None:
    """Nothing of the aggregator's secrets stands in a trainer's configuration."""
    made = values()
    trainer = resolve_service(V1.policy, "trainer-cleveland", made)
    assert trainer.released == {"superlink-ca", "sidecar-cert", "sidecar-key"}
    everything = [*trainer.command, *trainer.environment.values(), *(str(file.content) for file in trainer.files)]
    everything += [str(egress.tls_key) + str(egress.tls_certificate) for egress in trainer.egress]
    for name in ("api-token", "superexec"):
        assert made[name].value.decode("latin-1") not in "".join(everything)
        assert made[name].value.hex() not in "".join(everything)
    with pytest.raises(StateError) as caught:
        resolve_service(V1.policy, "trainer-zurich", made)
    assert caught.value.code == "policy.unknown_service"


@pytest.mark.parametrize(
    "path",
    [
        "/run/../etc/passwd",
        "run/secret",
        "/etc/passwd",
        "/run/%252e%252e/x",
        "/run/a\\b",
        "C:/run/x",
        "/run//x",
        "/run/x/",
        "/run/./x",
        "/run/" + "a" * 101,
        "/run" + "/aaaaaaaa" * 40,
        "/run/\u00e4",
        "/run/x y",
        "/run",
        "/run/secfl/peers.json",
        "/proc/self/mem",
    ],
)
def test_se_03_injection_paths_stay_in_their_place(path: str) -> None:
    """Only plain paths below the enclave's own memory file systems are accepted."""
    with pytest.raises(PolicyError) as caught:
        version(("path: /run/secrets/superexec,", f"path: '{path}',"))
    assert {finding.rule for finding in caught.value.findings} <= {
        "policy.path",
        "policy.injection_path",
        "policy.reserved_path",
        "policy.path_clash",
    }


def test_se_03_a_nul_in_a_path_is_refused() -> None:
    """An escaped NUL never reaches a path."""
    with pytest.raises(PolicyError) as caught:
        version(("path: /run/secrets/superexec,", 'path: "/run/x\\0y",'))
    assert caught.value.code == "policy.character"


def test_se_05_a_value_that_looks_like_a_placeholder_stays_a_value() -> None:
    """Substitution is one pass."""
    filled = substitute(
        "$$SECFL::a$$",
        Context.FILE,
        kinds={"a": "ascii", "b": "ascii"},
        lookup=lambda name, chosen: {"a": b"$$SECFL::b$$", "b": b"hidden"}[name],
    )
    assert filled == b"$$SECFL::b$$"


@pytest.mark.parametrize(
    "text",
    ["$$SECFL::zzz$$", "$$SECFL::api-token", "$$SECFL::$$", "$$SECFL::a b$$", "$$SECFL::$$SECFL::api-token$$$$"],
)
def test_se_05_unknown_or_unfinished_placeholders_are_errors(text: str) -> None:
    """Never an empty text, never the literal."""
    with pytest.raises(PolicyError) as caught:
        version(("$$SECFL::api-token$$", text))
    assert caught.value.code in {"policy.placeholder", "policy.placeholder_unknown"}
    with pytest.raises(EncodingError):
        substitute(text, Context.FILE, kinds={"api-token": "ascii"}, lookup=lambda name, chosen: b"x")


@pytest.mark.parametrize("value", [b"a\nB=1", b"a\0b", b"a\rb"])
@pytest.mark.parametrize("context", [Context.ARGUMENT, Context.ENVIRONMENT])
def test_se_06_a_value_cannot_smuggle_a_line(value: bytes, context: Context) -> None:
    """Line ends and NUL never reach arguments or variables."""
    with pytest.raises(EncodingError) as caught:
        substitute("$$SECFL::a$$", context, kinds={"a": "ascii"}, lookup=lambda name, chosen: value)
    assert caught.value.code == "policy.placeholder_value"


@pytest.mark.parametrize(
    "name",
    ["LD_PRELOAD", "LD_AUDIT", "PYTHONPATH", "PYTHONSTARTUP", "PATH", "BASH_ENV", "IFS", "A=B", "GLIBC_TUNABLES"],
)
def test_se_06_variables_that_change_the_loader_are_refused(name: str) -> None:
    """The attested program must stay the program that runs."""
    with pytest.raises(PolicyError) as caught:
        version(("FLWR_HOME: /tmp/flwr, TOKEN", f"{name}: /tmp/flwr, TOKEN"))
    assert caught.value.code == "policy.environment_name"


def test_sv_10_a_typing_error_names_file_line_and_key() -> None:
    """An unknown key is reported at its place, with what the language has there."""
    with pytest.raises(PolicyError) as caught:
        decode(HEART.replace("minimum_clients", "minimal_clients").encode(), source="study.yaml")
    assert [(f.source, f.line, f.path, f.rule) for f in caught.value.findings] == [
        ("study.yaml", 126, "federation.minimum_clients", "policy.missing_key"),
        ("study.yaml", 131, "federation.minimal_clients", "policy.unknown_key"),
    ]


BOMBS = {
    "100-mb": b"a: " + b"x" * 100_000_000,
    "flow": b"[" * MAX_BYTES,
    "maps": b"{" * MAX_BYTES,
    "block": b"- " * (MAX_BYTES // 2),
    "complex-keys": b"? " * (MAX_BYTES // 2),
    "many": b"- a\n" * (MAX_BYTES // 4),
    "aliases": b"a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: [*b,*b,*b,*b]\n",
    "words": b"a: " + b"x " * (MAX_BYTES // 2 - 4),
    "escapes": b'a: "' + b"\\x41" * (MAX_BYTES // 4 - 2) + b'"',
    "comments": b"#\n" * (MAX_BYTES // 2),
}


@pytest.mark.parametrize("name", BOMBS)
def test_ev_37_bombs_are_refused_quickly(name: str) -> None:
    """Large, deep or expanding input costs no more than the largest policy does: under a second of an idle core."""
    started = time.process_time()
    with pytest.raises(PolicyError):
        decode(BOMBS[name])
    assert time.process_time() - started < 2  # twice the bound, as cores are shared


@pytest.mark.parametrize("name", ["100-mb", "flow", "many", "aliases"])
def test_ev_37_bombs_take_little_memory(name: str) -> None:
    """The decoder's peak stays below 64 MiB."""
    tracemalloc.start()
    try:
        with pytest.raises(PolicyError):
            decode(BOMBS[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024 * 1024
