"""Attacks on the manager's store and audit log, by whoever owns the disk."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from manager_world import COHORT_KEY, Heart, report_rounds
from secfl.crypto import strict_json
from secfl.crypto.encoding import to_base64url
from secfl.crypto.signing import PublicKey, SigningKey
from secfl.errors import EncodingError, FreshnessError, SecflError, StateError, UnavailableError, VerificationError
from secfl.manager.audit import KnownHead, verify_bundle
from secfl.manager.audit_chain import AuditError
from secfl.manager.export import make_bundle
from secfl.manager.journal import Journal
from secfl.manager.log import Log, Row
from secfl.manager.opening import open_manager, store_key
from secfl.manager.sealer import AttesterSealer
from secfl.manager.store import MemoryStore, SqliteStore
from secfl.protocol.public import Founders
from secfl.protocol.service import Exit, Released, ReleaseKeyAsk, RootUpdate
from secfl.tee.bundle import TrustBundle
from secfl.tee.verifier import InProcessVerifier
from secfl.testing.deployment import Deployment
from secfl.testing.enclaves import KIND, MANAGER_MEASUREMENT, MachineAttester


class Tampered(MemoryStore):
    """A store whose rows went through an attacker's hands."""

    def __init__(self, meta: dict[str, bytes], rows: list[Row]) -> None:
        super().__init__()
        self.create(meta, rows)


def _reopen(heart: Heart, rows: list[Row]) -> None:
    deployment = heart.deployment
    store = Tampered(deployment.store.meta(), rows)
    open_manager(store, deployment.sealer, deployment.founders, now=deployment.now, random=os.urandom)


def _changed(row: Row, **changes: bytes | int) -> Row:
    values = {"sequence": row.sequence, "public": row.public, "sealed": row.sealed, "hash": row.hash} | changes
    return Row(**values)  # type: ignore[arg-type]


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.fixture(scope="module")
def heart() -> Heart:
    """A study that ran to its end; the tests only read its store."""
    heart = Heart()
    deployment = heart.deployment
    bundle = TrustBundle(deployment.vendor.anchor(), {KIND: deployment.vendor.collateral(KIND, deployment.now)})
    deployment.note_collateral(bundle)
    aggregator, trainer = heart.aggregator(), heart.trainer()
    aggregator.attest()
    trainer.attest()
    trainer.renew()
    with pytest.raises(SecflError):
        heart.trainer(root=b"\x33" * 32).attest()
    aggregator.call("service/roots", RootUpdate(volume="model", sequence=1, tag="aa" * 32))
    aggregator.call("service/release-key", ReleaseKeyAsk(volume="model"))
    aggregator.call("service/released", Released(volume="model", root="cd" * 32))
    report_rounds(aggregator)
    aggregator.call("service/exit", Exit(status=0))
    deployment.take_release("model-owner", "heart", "model")
    return heart


@pytest.mark.parametrize("part", ["public", "sealed", "hash"])
def test_pb_20_an_edited_row_keeps_the_manager_from_starting(heart: Heart, part: str) -> None:
    """One changed bit in any part of any entry is found at load."""
    rows = list(heart.deployment.store.rows())
    for index, row in enumerate(rows):
        data = getattr(row, part)
        edited = [*rows[:index], _changed(row, **{part: _flip(data, len(data) // 2)}), *rows[index + 1 :]]
        with pytest.raises((VerificationError, FreshnessError), match=r"log\.(edited|reordered)"):
            _reopen(heart, edited)


def test_pb_20_removed_and_moved_rows_keep_the_manager_from_starting(heart: Heart) -> None:
    """A missing, doubled, swapped or renumbered entry is found at load."""
    rows = list(heart.deployment.store.rows())
    one, two = rows[3], rows[4]
    cases = {
        "log.removed": [*rows[:3], *rows[4:]],
        "log.reordered": [*rows[:3], _changed(two, sequence=3), _changed(one, sequence=4), *rows[5:]],
        "log.edited": [*rows[:3], _changed(one, sealed=two.sealed), *rows[4:]],
    }
    for code, tampered in cases.items():
        with pytest.raises(SecflError) as caught:
            _reopen(heart, tampered)
        assert caught.value.code == code
    with pytest.raises(FreshnessError, match=r"log\.removed"):
        _reopen(heart, [])


def test_pb_20_other_founders_cannot_be_put_over_a_store(heart: Heart) -> None:
    """A launch with other founding parties on existing data is refused."""
    deployment = heart.deployment
    others = Founders(founders=deployment.founders.founders[:1])
    with pytest.raises(StateError, match=r"founders\.differ"):
        open_manager(deployment.store, deployment.sealer, others, now=deployment.now, random=os.urandom)


def test_se_14_a_copied_store_gives_nothing(tmp_path: Path) -> None:
    """The whole file holds no secret in clear, and neither other code nor another machine opens it."""
    store = SqliteStore(tmp_path / "manager.sqlite")
    heart = Heart(Deployment("cleveland", "model-owner", "outsider", sites=("cleveland", "hub", "other"), store=store))
    token = heart.aggregator().attest().environment["TOKEN"].encode()
    heart.trainer().attest()
    store.close()
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    tls_key = heart.deployment.manager.state.identity.tls_key.to_pem()
    secrets = (COHORT_KEY, to_base64url(COHORT_KEY).encode(), token, tls_key, tls_key.splitlines()[1])
    assert not any(secret in data for secret in secrets)
    machines = heart.deployment.machines
    copied = SqliteStore(tmp_path / "manager.sqlite")
    for attester in (
        MachineAttester(machines["manager"], b"\x01" * 48),
        MachineAttester(machines["other"], MANAGER_MEASUREMENT),
    ):
        with pytest.raises(VerificationError, match=r"store\.sealed_elsewhere"):
            store_key(copied, AttesterSealer(attester))
    copied.close()


def test_one_process_holds_a_store(tmp_path: Path) -> None:
    """A second manager on the same file does not start: two writers would fork the log."""
    first = SqliteStore(tmp_path / "manager.sqlite")
    first.create({"deployment_id": bytes(16)}, [])
    with pytest.raises(UnavailableError, match=r"store\.unavailable"):
        SqliteStore(tmp_path / "manager.sqlite")
    first.close()


def test_sv_01_a_crash_at_any_write_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Killed at each step of each write, a restarted manager has every acknowledged entry and no half one."""
    path = tmp_path / "manager.sqlite"
    for crash_at in range(8):
        path.unlink(missing_ok=True)
        acknowledged = _write_until_killed(path, crash_at)
        database = sqlite3.connect(path)
        (count,) = database.execute("SELECT count(*) FROM log").fetchone()
        complete = database.execute("SELECT count(*) FROM log WHERE public IS NULL OR hash IS NULL").fetchone()
        database.close()
        assert count in (acknowledged, acknowledged + 2)
        assert complete == (0,)


def _write_until_killed(path: Path, crash_at: int) -> int:
    # A child writes two rows at a time and dies without any clean-up at the chosen database callback.
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        store = SqliteStore(path)
        steps = 0

        def step(_: str) -> None:
            nonlocal steps
            steps += 1
            if steps > crash_at:
                os._exit(9)

        store._db.set_trace_callback(step)
        sequence = 0
        while True:
            store.append([Row(sequence + n, b"p", b"s", b"h") for n in range(2)])
            sequence += 2
            os.write(writing, b"..")
    os.close(writing)
    os.waitpid(child, 0)
    acknowledged = b""
    while part := os.read(reading, 4096):
        acknowledged += part
    os.close(reading)
    return len(acknowledged)


def test_sv_01_after_a_failed_write_nothing_is_acknowledged(tmp_path: Path) -> None:
    """A store that failed once takes no further entry, and the journal acknowledges none."""
    import asyncio

    store = SqliteStore(tmp_path / "manager.sqlite")
    store.create({"deployment_id": bytes(16)}, [])
    log = Log(bytes(16), bytes(32))
    from secfl.manager.log import Event

    entries = [log.append(Event("exported", {}), now=1, salt=bytes(32)) for _ in range(3)]
    store.append([entries[0].row])

    async def run() -> None:
        journal = Journal(store)
        journal.add([entries[0]])  # the same row again: the database refuses it
        with pytest.raises(UnavailableError, match=r"store\.write_failed"):
            await journal.durable()
        journal.add([entries[1]])
        with pytest.raises(UnavailableError, match=r"store\.write_failed"):
            await journal.durable()

    asyncio.run(run())
    assert len(list(store.rows())) == 1
    store.close()


def _bundle(heart: Heart) -> bytes:
    deployment = heart.deployment
    log = Log(*store_key(deployment.store, deployment.sealer))
    identity = deployment.manager.state.identity
    return make_bundle(deployment.store, log, deployment.manager.log.length, identity)


def _key(heart: Heart) -> PublicKey:
    return heart.deployment.manager.state.identity.tls_key.public


def _audit(heart: Heart, data: bytes, known: KnownHead | None = None) -> None:
    verify_bundle(data, key=_key(heart), founders=heart.deployment.founders, verifier=InProcessVerifier(), known=known)


def test_fr_09_a_whole_log_is_found_in_order(heart: Heart) -> None:
    """The audit of an untouched bundle reports versions, attestations and releases, and that they are simulated."""
    report = verify_bundle(
        _bundle(heart), key=_key(heart), founders=heart.deployment.founders, verifier=InProcessVerifier()
    )
    assert report.policies["heart"] == (heart.policy_hash,)
    assert report.counts["attested"] == 2
    assert report.counts["renewed"] == 1
    assert report.releases == (("heart", "model", "model-owner"),)
    assert report.trust_domains == {heart.deployment.domain}
    assert report.head == heart.deployment.manager.log.head


def _drop_front(entries: list[object]) -> list[object]:
    return entries[2:]


def _drop_back(entries: list[object]) -> list[object]:
    return entries[:-2]


def _drop_middle(entries: list[object]) -> list[object]:
    return [*entries[:4], *entries[6:]]


def _swap(entries: list[object]) -> list[object]:
    return [*entries[:4], entries[5], entries[4], *entries[6:]]


def _double(entries: list[object]) -> list[object]:
    return [*entries[:4], entries[3], *entries[4:]]


@pytest.mark.parametrize(
    ("code", "attack"),
    [
        ("audit.truncated_front", _drop_front),
        ("audit.truncated_back", _drop_back),
        ("audit.removed", _drop_middle),
        ("audit.reordered", _swap),
        ("audit.inserted", _double),
    ],
)
def test_fr_09_each_attack_on_the_log_has_its_code(
    heart: Heart, code: str, attack: Callable[[list[object]], list[object]]
) -> None:
    """Deleting, inserting, moving and cutting at either end are told apart, also by exit code."""
    document = strict_json.decode(_bundle(heart))
    document["entries"] = attack(document["entries"])
    with pytest.raises(AuditError) as caught:
        _audit(heart, strict_json.encode(document))
    assert caught.value.code == code
    assert (
        caught.value.exit_code
        == {
            "audit.removed": 21,
            "audit.inserted": 22,
            "audit.reordered": 23,
            "audit.truncated_front": 24,
            "audit.truncated_back": 25,
        }[code]
    )


def test_fr_09_one_changed_byte_anywhere_is_found(heart: Heart) -> None:
    """Changing any byte of a bundle, tried at several hundred places, is an error."""
    data = _bundle(heart)
    step = max(1, len(data) // 400)
    for at in range(0, len(data), step):
        with pytest.raises((AuditError, EncodingError)):
            _audit(heart, _flip(data, at))


def test_fr_09_a_log_signed_by_another_manager_is_refused(heart: Heart) -> None:
    """A head under another key, or other founders, is a forgery."""
    data = _bundle(heart)
    for key, founders in (
        (SigningKey.generate_p256().public, heart.deployment.founders),
        (_key(heart), Founders(founders=heart.deployment.founders.founders[:2])),
    ):
        with pytest.raises(AuditError, match=r"audit\.forged"):
            verify_bundle(data, key=key, founders=founders, verifier=InProcessVerifier())


def test_fr_09_a_fork_is_found_by_a_remembered_head(heart: Heart) -> None:
    """A log that does not contain a head seen before was forked or rolled back."""
    length = heart.deployment.manager.log.length
    _audit(heart, _bundle(heart), KnownHead(length, heart.deployment.manager.log.head))
    for known in (KnownHead(length, bytes(32)), KnownHead(length + 1, heart.deployment.manager.log.head)):
        with pytest.raises(AuditError, match=r"audit\.forked"):
            _audit(heart, _bundle(heart), known)


def test_fr_09_a_dishonest_manager_is_found(heart: Heart) -> None:
    """An entry that a manager with its own key wrote without the votes, evidence or signatures is not justified."""
    document = strict_json.decode(_bundle(heart))
    for kind in ("voted", "attested", "deposited", "granted", "proposed"):
        forged = heart.deployment.forged_bundle(document, kind)
        with pytest.raises(AuditError, match=r"audit\.unjustified"):
            _audit(heart, forged)
