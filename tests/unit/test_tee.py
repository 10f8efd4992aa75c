"""Verifier processes, the platform socket, trust anchors and the simulated vendor."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manager_world import InLoopVerifier
from secfl.attestation.claims import VerifiedEvidence
from secfl.crypto import strict_json
from secfl.crypto.encoding import to_base64url
from secfl.errors import EncodingError, FreshnessError, SecflError, UnavailableError, VerificationError
from secfl.tee.anchor import TrustAnchor, intel_anchor, simulated_anchor
from secfl.tee.attester import Attester
from secfl.tee.claims_record import claims_from_record
from secfl.tee.platform_socket import PlatformSocketAttester
from secfl.tee.pool import VerifierPool
from secfl.tee.quote import parse
from secfl.tee.simulated import der
from secfl.tee.simulated.machine import SimulatedMachine
from secfl.tee.simulated.quotes import TdReport
from secfl.tee.simulated.vendor import COLLATERAL_SECONDS, Vendor
from secfl.testing.forge import DEFECTS, NOW, Forge

FORGES = {kind: Forge(kind) for kind in ("sgx", "tdx")}


async def _outcome(verification: Awaitable[VerifiedEvidence]) -> object:
    try:
        return await verification
    except (EncodingError, VerificationError, FreshnessError) as error:
        return type(error), str(error), dict(error.details)


def test_worker_processes_give_the_same_answers() -> None:
    """Claims and errors, with class, code and details, are those of a verification in process."""

    async def compare() -> None:
        local = InLoopVerifier()
        with VerifierPool(1) as pool:
            for kind, forge in FORGES.items():
                cases = [forge.case()] + [
                    d.build(forge) for d in DEFECTS if kind in d.kinds and d.row in ("EV-07", "EV-17")
                ]
                for case in cases:
                    arguments = (case.evidence, case.collateral, case.anchor, case.now)
                    expected, found = [await _outcome(one.verify(*arguments)) for one in (local, pool)]
                    assert found == expected

    asyncio.run(compare())


def test_answers_reach_those_who_asked() -> None:
    """Two workers hold several requests each, of different evidence; every answer is about the evidence asked about."""

    async def ask() -> None:
        cases = [FORGES[kind].case() for kind in ("tdx", "sgx", "sgx", "tdx")] * 5
        with VerifierPool(2) as pool:
            found = await asyncio.gather(*(pool.verify(c.evidence, c.collateral, c.anchor, c.now) for c in cases))
        assert [one.evidence_digest for one in found] == [case.verify().evidence_digest for case in cases]

    asyncio.run(ask())


def test_a_closed_pool_verifies_nothing() -> None:
    """Who waits while the pool closes gets an error, and so does who asks afterwards; a pool of no worker is none."""
    case = FORGES["tdx"].case()
    arguments = (case.evidence, case.collateral, case.anchor, case.now)

    async def close() -> None:
        pool = VerifierPool(1)
        waiting = [asyncio.create_task(pool.verify(*arguments)) for _ in range(6)]
        await asyncio.sleep(0.02)  # a cold start of the worker takes longer
        pool.close()
        for task in waiting:
            with pytest.raises(UnavailableError, match=r"verifier\.closed"):
                await task
        with pytest.raises(UnavailableError, match=r"verifier\.closed"):
            await pool.verify(*arguments)

    asyncio.run(close())
    with pytest.raises(ValueError, match="positive"):
        VerifierPool(0)


def test_a_worker_has_no_environment_and_bounded_memory() -> None:
    """What the asking process knows by environment does not reach a worker, whose address space has a limit."""
    case = FORGES["sgx"].case()

    async def look() -> None:
        with VerifierPool(1) as pool:
            await pool.verify(case.evidence, case.collateral, case.anchor, case.now)
            (pid,) = pool.pids
            process = Path("/proc") / str(pid)
            names = {entry.split(b"=")[0] for entry in (process / "environ").read_bytes().split(b"\0") if entry}
            assert names == {b"LANG"}
            assert "536870912" in (process / "limits").read_text()

    asyncio.run(look())


def test_a_record_of_claims_gives_the_claims_back() -> None:
    """Round trip for both kinds; another form is no claim."""
    for forge in FORGES.values():
        verified = forge.case().verify()
        assert claims_from_record(verified.to_record()) == verified
        record = verified.to_record()
        for member in record:
            with pytest.raises(UnavailableError, match=r"verifier\.crashed"):
                claims_from_record({key: value for key, value in record.items() if key != member})


class Platform(threading.Thread):
    """The platform's end of the descriptor, with prepared answers."""

    def __init__(self, *answers: bytes) -> None:
        super().__init__(daemon=True)
        self.inside, self._outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._answers = [INFO, *answers]
        self.requests: list[object] = []
        self.start()

    def run(self) -> None:
        with self._outside:
            for answer in self._answers:
                request = self._outside.recv(1 << 17)
                if not request:
                    return
                self.requests.append(strict_json.decode(request))
                self._outside.send(answer)


INFO = strict_json.encode({"kind": "tdx", "platform_id": "0a" * 16})


def test_the_socket_attester_speaks_the_platforms_protocol() -> None:
    """Info, quote and sealing key are asked for in one packet each."""
    quote = strict_json.encode({"quote": to_base64url(b"quote")})
    key = strict_json.encode({"key": to_base64url(b"k" * 32)})
    platform = Platform(quote, key)
    attester = PlatformSocketAttester(platform.inside.detach())
    as_protocol: Attester = attester
    assert (as_protocol.kind, as_protocol.platform_id) == ("tdx", b"\x0a" * 16)
    assert attester.collect(b"r" * 64).blob == b"quote"
    assert attester.sealing_key("root") == b"k" * 32
    platform.join(5)
    assert platform.requests == [
        {"op": "info"},
        {"op": "quote", "report_data": (b"r" * 64).hex()},
        {"op": "seal_key", "label": "root"},
    ]
    with pytest.raises(EncodingError, match=r"attester\.report_data"):
        attester.collect(b"short")
    with pytest.raises(UnavailableError, match=r"attester\.unavailable"):
        attester.collect(b"r" * 64)
    attester.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        b"[]",
        b"not json",
        b'{"error":"platform.refused"}',
        b'{"quote":1}',
        b'{"quote":"%%"}',
        b'{"quote":""}',
        b'{"quote":"QQ","further":"x"}',
        b'{"quote": "QQ"}',
    ],
)
def test_ev_36_a_platforms_odd_answer_is_an_error(answer: bytes) -> None:
    """Whatever the platform says that is no quote becomes one typed error."""
    attester = PlatformSocketAttester(Platform(answer).inside.detach())
    with pytest.raises(UnavailableError, match=r"attester\.unavailable"):
        attester.collect(b"r" * 64)
    attester.close()


def test_a_descriptor_without_a_platform_is_an_error() -> None:
    """A closed descriptor and a silent end are reported as unavailable."""
    inside, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    outside.close()
    with pytest.raises(UnavailableError, match=r"attester\.unavailable"):
        PlatformSocketAttester(inside.detach())
    with pytest.raises(UnavailableError, match=r"attester\.unavailable"):
        PlatformSocketAttester(9999)


def test_anchors_name_their_root() -> None:
    """Each domain belongs to exactly one root, and a simulated root must say that it is one."""
    vendor = FORGES["sgx"].vendor
    anchor = vendor.anchor()
    assert anchor.domain == "simulated:" + hashlib.sha256(vendor.root_der).hexdigest()
    assert (anchor.simulated, intel_anchor().simulated) == (True, False)
    intel = intel_anchor().root_der
    for domain, root, code in (
        ("hardware:intel", vendor.root_der, "anchor.wrong_root"),
        (anchor.domain, intel, "anchor.wrong_root"),
        ("hardware:amd", intel, "anchor.unknown_domain"),
        ("", intel, "anchor.unknown_domain"),
    ):
        with pytest.raises(VerificationError) as caught:
            TrustAnchor(domain, root)
        assert caught.value.code == code
    for root in (intel, b"", b"junk"):
        with pytest.raises(VerificationError, match=r"anchor\.not_simulated"):
            simulated_anchor(root)


def test_a_vendor_and_a_machine_survive_their_state() -> None:
    """Evidence of a restored machine verifies under collateral of a restored vendor."""
    vendor = Vendor.decode(FORGES["tdx"].vendor.encode())
    machine = SimulatedMachine.decode(FORGES["tdx"].machine.encode())
    case = replace(
        FORGES["tdx"].case(),
        evidence=machine.quote("tdx", b"m" * 48, b"r" * 64),
        collateral=vendor.collateral("tdx", NOW + 5 * COLLATERAL_SECONDS),
        now=NOW + 5 * COLLATERAL_SECONDS,
    )
    verified = case.verify()
    assert (verified.platform_id, verified.measurement) == (machine.platform_id, b"m" * 48)
    assert FORGES["tdx"].machine.sealing_key(b"m", "l") == machine.sealing_key(b"m", "l")


@pytest.mark.parametrize("decode", [Vendor.decode, SimulatedMachine.decode])
def test_states_of_another_form_are_refused(decode: object) -> None:
    """Missing members and other documents are a typed error."""
    assert callable(decode)
    documents: list[Any] = [{}, [], {"root": {}}, {"platform_id": "00" * 16, "chain": 1}, {"platform_id": "00"}]
    for document in documents:
        with pytest.raises(SecflError):
            decode(strict_json.encode(document))


def test_sealing_keys_differ_by_measurement_label_and_machine() -> None:
    """Only the same code on the same machine gets the same key."""
    machine, other = FORGES["tdx"].machine, FORGES["sgx"].machine
    keys = {
        machine.sealing_key(b"m", "a"),
        machine.sealing_key(b"n", "a"),
        machine.sealing_key(b"m", "b"),
        other.sealing_key(b"m", "a"),
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("kind", "measurement", "report_data"),
    [("tdx", 32, 64), ("sgx", 48, 64), ("snp", 48, 64), ("tdx", 48, 63), ("sgx", 32, 0)],
)
def test_a_machine_signs_only_reports_of_the_right_size(kind: str, measurement: int, report_data: int) -> None:
    """Nothing is padded or cut."""
    with pytest.raises(EncodingError, match=r"simulated\.report"):
        FORGES["tdx"].machine.quote(kind, bytes(measurement), bytes(report_data))


def test_version_5_quotes_verify_as_well() -> None:
    """The newer TDX format goes the same way."""
    forge = FORGES["tdx"]
    evidence = forge.quoted(version=5)
    assert parse(evidence.blob).version == 5
    assert forge.case(evidence=evidence).verify().measurement == forge.measurement
    with pytest.raises(ValueError, match="bytes"):
        TdReport(measurement=b"", report_data=b"").encode()


def test_the_writer_gives_der() -> None:
    """Known encodings."""
    assert der.integer(0) == b"\x02\x01\x00"
    assert der.integer(128) == b"\x02\x02\x00\x80"
    assert der.object_id("1.2.840.113741.1.13.1") == bytes.fromhex("060a2a864886f84d010d01")[
        :1
    ] + b"\x09" + bytes.fromhex("2a864886f84d010d01")
    assert der.boolean(value=True) + der.boolean(value=False) == b"\x01\x01\xff\x01\x01\x00"
    assert der.octets(bytes(200))[:3] == b"\x04\x81\xc8"
    assert der.sequence(der.enumerated(1)) == b"\x30\x03\x0a\x01\x01"
    with pytest.raises(ValueError, match="non-negative"):
        der.integer(-1)
