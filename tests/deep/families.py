"""The parsers by family: valid inputs to start from, and what has to hold for any input.

A target returns when the input was accepted and every promise held, raises `SecflError` when it was refused, and
anything else is a failure. What is accepted encodes to the same bytes, or means the same as the valid input.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from manager_world import Heart
from secfl.attestation import ear
from secfl.attestation.evidence import Evidence
from secfl.attestation.statement import Isolation, ManagerClaims, decode_statement
from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, from_hex, to_base64url
from secfl.crypto.hpke import SealingKey
from secfl.crypto.signing import SigningKey, verify_envelope
from secfl.crypto.x509 import from_pem, to_pem, unverified_public_key
from secfl.errors import EncodingError, SecflError
from secfl.linux.program import ProgramSpec
from secfl.manager.core import Outcome
from secfl.policy.decode import decode as decode_policy
from secfl.policy.grants import Grant
from secfl.policy.yaml_tree import parse_tree
from secfl.protocol.failure import decode_failure, encode_failure
from secfl.protocol.message import Message
from secfl.protocol.routes import ROUTES, Role, route
from secfl.protocol.session import Ends, Offer, respond
from secfl.shield.rules import Rules
from secfl.tee.bundle import TrustBundle
from secfl.tee.collateral import Collateral
from secfl.tee.quote import parse
from secfl.tee.verifier import verify
from secfl.testing.attested import AttestedWorkload
from secfl.testing.deployment import Member
from secfl.testing.forge import NOW, Forge
from secfl.testing.volume_world import MemoryFile, MemoryKeeper, memory_files
from secfl.volume.image_manifest import ImageEntry, Kind, Mode, decode_manifest, encode_manifest
from secfl.volume.journal import JournalCipher, read_links
from secfl.volume.records import FILE, ROOT_INODE, decode_changes, encode_changes
from secfl.volume.storage import VolumeFiles
from secfl.volume.tree import NewNode
from secfl.volume.volume import create_volume, open_volume

__all__ = ["FAMILIES", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """One parser.

    Attributes:
        name: says what is parsed.
        seeds: valid inputs.
        take: accepts (returns), refuses (raises `SecflError`) or fails (raises anything else).
        accepts: whether the first seed has to be accepted, which shows that the target works.
    """

    name: str
    seeds: Sequence[bytes]
    take: Callable[[bytes], object]
    accepts: bool = True


def _same(decode: Callable[[bytes], Any], encode: Callable[[Any], bytes]) -> Callable[[bytes], object]:
    def take(data: bytes) -> None:
        if encode(decode(data)) != data:
            raise AssertionError("two spellings of one value")

    return take


def _stable(decode: Callable[[bytes], Any]) -> Callable[[bytes], object]:
    def take(data: bytes) -> None:
        value = decode(data)
        if decode(value.encode()) != value:
            raise AssertionError("another value after encoding")

    return take


def evidence() -> list[Target]:
    """Decoders of everything around evidence."""
    workload = AttestedWorkload(Forge("tdx"))
    case = workload.case()
    bundle = TrustBundle(case.anchor, {"tdx": case.collateral}).encode()
    claims = [workload.good.claims.encode(), ManagerClaims(Isolation.FULL, "m", (), 1, bytes(32), "none").encode()]
    leaf = workload.good.manager_certificate
    quotes = [Forge(kind).case().evidence.blob for kind in ("sgx", "tdx")]

    def token(data: bytes) -> None:
        ear.verify(data.decode("latin-1"), key=workload.tls.public, now=NOW)
        raise AssertionError("a result that nobody signed")

    def layout(data: bytes) -> None:
        quote = parse(data)
        if not data.startswith(quote.raw) or data[len(quote.raw) :].strip(b"\0"):
            raise AssertionError("bytes were left over")

    def encode(value: Any) -> bytes:
        encoded: bytes = value.encode()
        return encoded

    return [
        Target("evidence record", [case.evidence.encode()], _same(Evidence.decode, encode)),
        Target("statement", claims, _same(decode_statement, encode)),
        Target("collateral", [case.collateral.encode()], _stable(Collateral.decode)),
        Target("trust bundle", [bundle], _stable(TrustBundle.decode)),
        Target("attestation result", [b"eyJhbGciOiJFUzI1NiJ9.e30." + b"A" * 86], token, accepts=False),
        Target("quote layout", quotes, layout),
        Target("certificate, DER", [leaf], unverified_public_key),
        Target("certificate, PEM", [to_pem(leaf)], from_pem),
    ]


def quotes() -> list[Target]:
    """Quotes and collateral through the whole verifier: what it accepts states what the genuine quote states."""
    targets = []
    for kind in ("sgx", "tdx"):
        case = Forge(kind).case(report_data=bytes(range(64)))
        genuine = case.verify()

        def blob(data: bytes, case: Any = case, genuine: Any = genuine, kind: str = kind) -> None:
            found = verify(Evidence(kind, data), case.collateral, case.anchor, case.now)
            if (found.measurement, found.report_data) != (genuine.measurement, genuine.report_data):
                raise AssertionError("changed evidence was accepted")

        def collateral(data: bytes, case: Any = case, genuine: Any = genuine) -> None:
            found = verify(case.evidence, Collateral.decode(data), case.anchor, case.now)
            if (found.measurement, found.tcb_status) != (genuine.measurement, genuine.tcb_status):
                raise AssertionError("changed collateral was believed")

        targets += [
            Target(f"{kind} quote", [case.evidence.blob], blob),
            Target(f"{kind} collateral", [case.collateral.encode()], collateral),
        ]
    return targets


def policy() -> list[Target]:
    """The policy language: the restricted YAML, the closed schema, and grants."""
    heart = Heart()
    fragments = [heart.policy[at : at + 240] for at in range(0, len(heart.policy), 120)]
    small = [b"a: 1\nb: [x, y]\n", b'"k": {"l": "m", "n": [1, true]}\n', b"- a\n- b: c\n  d: 'e'\n"]

    def document(data: bytes) -> None:
        decode_policy(data, source="fuzz")

    def tree(data: bytes) -> None:
        parse_tree(data, source="fuzz")

    def grant(data: bytes) -> None:
        if Grant.decode(data).encode() != data:
            raise AssertionError("two spellings of one grant")

    sample = Grant.model_validate(
        {
            "deployment_id": heart.deployment.deployment_id,
            "policy": "cleveland/cohort",
            "volume": "cohort",
            "root": bytes(32),
            "rights": ("read",),
            "study": "heart",
            "study_policy_hash": bytes.fromhex(heart.policy_hash),
            "expires": NOW,
        }
    ).encode()
    return [
        Target("policy tree", [*small, *fragments], tree),
        Target("policy tree, small", small, tree),
        Target("policy document", [heart.owner], document),
        Target("grant", [sample], grant),
    ]


def _volume_files(slots: bytes, journal: bytes) -> VolumeFiles:
    files = memory_files()
    if not isinstance(files.slots, MemoryFile) or not isinstance(files.journal, MemoryFile):
        raise TypeError("memory files are needed")
    files.slots.data[:] = slots
    files.journal.data[:] = journal
    return files


def volume() -> list[Target]:
    """Manifests of images, records and journals of volumes."""
    chunk = hashlib.sha256(b"x").digest()
    entries = [
        ImageEntry(path="d", kind=Kind.DIRECTORY, mode=0o755),
        ImageEntry(path="d/f", kind=Kind.FILE, mode=0o644, size=1, digest=chunk, chunk_digests=chunk),
        ImageEntry(path="l", kind=Kind.SYMLINK, mode=0o777, target="d/f"),
    ]
    manifest = encode_manifest(Mode.AUTHENTICATED, entries)
    files, keeper = memory_files(), MemoryKeeper()
    key, volume_id = bytes(range(32)), bytes(range(16))
    keeper.push(*create_volume(files, key=key, volume_id=volume_id, mode=0o700, now=0))
    opened = open_volume(files, key=key, volume_id=volume_id, keeper=keeper)
    for number in range(3):
        node = opened.tree.create(ROOT_INODE, b"f%d" % number, NewNode(FILE, 0o600), now=1)
        opened.contents.write(node, 0, b"marker" * 20, now=2)
        opened.commit(keeper)
    size = files.journal.size()
    slots, journal = files.slots.pread(0, files.slots.size()), files.journal.pread(0, size)
    links = list(read_links(files.journal, JournalCipher(key, volume_id)))
    root = keeper.head()

    def journaled(data: bytes) -> None:
        head = MemoryKeeper(root=root)
        found = open_volume(_volume_files(slots, data), key=key, volume_id=volume_id, keeper=head)
        if found.root != root:
            raise AssertionError("an older or forged state was opened")

    def slotted(data: bytes) -> None:
        found = open_volume(_volume_files(data, journal), key=key, volume_id=volume_id, keeper=MemoryKeeper(root=root))
        for number in found.tree.inode(ROOT_INODE).entries.values():
            child = found.tree.inode(number)
            if found.contents.read(child, 0, child.size) != b"marker" * 20:
                raise AssertionError("forged bytes were read")

    return [
        Target(
            "image manifest",
            [manifest],
            _same(
                lambda data: decode_manifest(Mode.AUTHENTICATED, data),
                lambda value: encode_manifest(Mode.AUTHENTICATED, value),
            ),
        ),
        Target(
            "volume record", [encode_changes(link.changes) for link in links], _same(decode_changes, encode_changes)
        ),
        Target("journal", [journal], journaled),
        Target("slots", [slots], slotted),
    ]


def strict() -> list[Target]:
    """Canonical JSON and the text encodings."""
    seeds = [
        b'{"a":1,"b":[true,null,"x"],"c":{"d":-5}}',
        b'[[[["deep"]]],{}]',
        '{"text":"ä\\u0001\\"\\\\"}'.encode(),
        b"9007199254740991",
    ]
    return [
        Target("canonical JSON", seeds, _same(strict_json.decode, strict_json.encode)),
        Target("foreign JSON", seeds, strict_json.decode_any),
        Target(
            "base64url",
            [to_base64url(bytes(range(n))).encode() for n in range(1, 9)],
            _same(lambda data: from_base64url(data.decode("latin-1")), lambda value: to_base64url(value).encode()),
        ),
        Target(
            "hex",
            [bytes(range(8)).hex().encode()],
            _same(lambda data: from_hex(data.decode("latin-1")), lambda value: value.hex().encode()),
        ),
    ]


def _all_messages() -> list[type[Message]]:
    found, waiting = [], [Message]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            found.append(kind)
            waiting.append(kind)
    return sorted(found, key=lambda kind: kind.__name__)


def _life() -> tuple[dict[type[Message], set[bytes]], dict[str, bytes]]:
    """Live a study's life; give what was encoded, by class, and the last body that was signed for each route."""
    heard: dict[type[Message], set[bytes]] = {}
    signed: dict[str, bytes] = {}
    genuine, sign = Message.encode, Member.sign

    def listening(self: Message) -> bytes:
        data = genuine(self)
        heard.setdefault(type(self), set()).add(data)
        return data

    def signing(self: Member, name: str, message: Message | Grant) -> bytes:
        signed[name] = message.encode()
        return sign(self, name, message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Message, "encode", listening)
        patch.setattr(Member, "sign", signing)
        heart = Heart()
        for workload in (heart.aggregator(), heart.trainer()):
            workload.attest()
            workload.renew()
    return heard, signed


def messages() -> list[Target]:
    """Every message class, failures, envelopes, launch files."""
    heard, _ = _life()
    every = sorted(set().union(*heard.values()), key=len)
    targets = [
        Target(
            kind.__name__,
            sorted(heard.get(kind, ())) or every[:20],
            _same(kind.decode, kind.encode),
            accepts=kind in heard,
        )
        for kind in _all_messages()
    ]
    key = SigningKey.generate()
    envelope = key.sign_envelope("fuzz", b'{"a":1}')

    def opened(data: bytes) -> None:
        if verify_envelope(data, purpose="fuzz", keys=[key.public]).payload != b'{"a":1}':
            raise AssertionError("another payload was believed")

    failure = encode_failure(EncodingError("json.malformed", "x", hint="y"))[1]
    spec = ProgramSpec(argv=("/bin/true",), env={"A": "b"}).encode()
    return [
        *targets,
        Target("failure", [failure], decode_failure),
        Target("envelope", [envelope], opened),
        Target("program", [spec], ProgramSpec.decode),
    ]


def sessions() -> list[Target]:
    """What a peer sends through the network shield: offers, sealed bodies, request targets."""
    trainer, gateway = SealingKey.generate(), SealingKey.generate()
    ends = Ends(b"\1" * 32, b"\2" * 32)
    mine, theirs = (hashlib.sha256(key.public).digest() for key in (trainer, gateway))
    offer = Offer(trainer, ends, responder_key=gateway.public, responder_key_hash=theirs)
    responder, answer = respond(gateway, ends, offer.message, initiator_key_hash=mine)
    initiator = offer.finish(answer)
    sealed = [initiator.seal_request("POST", "/v1/fleet/x", b"%d" % n * 30)[1] for n in range(4)]
    rules = Rules.parse(["POST /v1/fleet/*"])

    def offered(data: bytes) -> None:
        respond(gateway, ends, data, initiator_key_hash=mine)
        if data != offer.message:
            raise AssertionError("a changed offer was accepted")

    def body(data: bytes) -> None:
        # Genuine bodies are spliced with each other, so an unchanged one may come along; it opens at most once.
        for sequence in range(4):
            try:
                found = responder.open_request(sequence, "POST", "/v1/fleet/x", data)
            except SecflError:
                continue
            if data != sealed[sequence] or found != b"%d" % sequence * 30:
                raise AssertionError("a forged body was opened")
            return
        raise EncodingError("session.refused", "no sequence opened it")

    def target(data: bytes) -> None:
        permitted = rules.authorize("POST", data.decode("latin-1")).target
        if not (permitted + "/").startswith("/v1/fleet/") or ".." in permitted.split("/") or "%" in permitted:
            raise AssertionError("a target outside of the rule")

    paths = [b"/v1/fleet/PullMessages", b"/v1/fleet/a/b", b"/v1/fleet/../control", b"/v1/fleet/%2e%2e/x"]
    return [
        Target("session offer", [offer.message], offered),
        Target("sealed body", sealed, body),
        Target("request target", paths, target),
    ]


def manager() -> list[Target]:
    """Requests to the manager, properly signed over changed contents: refused, or accepted, but never a defect."""
    heart = Heart()
    deployment = heart.deployment
    member = deployment.members["cleveland"]
    _, bodies = _life()
    deployment_ids = re.compile(rb'"deployment_id":"[0-9a-f]{32}"')
    here = b'"deployment_id":"%s"' % deployment.deployment_id.encode()

    def handled(name: str, body: bytes) -> None:
        outcome = deployment.manager.handle(route(name), body, now=deployment.now, random=os.urandom)
        if outcome.status >= 500:
            raise AssertionError(f"status {outcome.status}")
        if outcome.status != 200:
            raise decode_failure(outcome.body)

    def signed(name: str) -> Callable[[bytes], object]:
        return lambda data: handled(name, member.signing.sign_envelope(route(name).purpose, data))

    def attest(data: bytes) -> None:
        outcome = deployment.manager.begin(route("attest"), data, now=deployment.now, random=os.urandom)
        if isinstance(outcome, Outcome):
            raise decode_failure(outcome.body)

    parties = [entry.name for entry in ROUTES if entry.role is Role.PARTY]
    seeds = sorted({deployment_ids.sub(here, body) for body in bodies.values()})
    envelope = member.sign("policies/propose", deployment.proposal("x", b"y"))
    request = heart.trainer().request(deployment.nonce()).encode()
    return [
        *(Target(f"signed request {name}", seeds, signed(name), accepts=False) for name in parties),
        Target("envelope to the manager", [envelope], lambda data: handled("policies/propose", data), accepts=False),
        Target("attestation request", [request], attest),
    ]


FAMILIES: dict[str, Callable[[], list[Target]]] = {
    "evidence": evidence,
    "quotes": quotes,
    "policy": policy,
    "volume": volume,
    "json": strict,
    "messages": messages,
    "sessions": sessions,
    "manager": manager,
}
