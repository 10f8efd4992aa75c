"""Attackers who choose what others look up: sources of collateral, movable names, predictable values."""

from __future__ import annotations

import ast
import asyncio
import collections
import os
import re
import socket
from pathlib import Path

import pytest

from manager_world import Heart
from secfl.attestation.binding import Purpose
from secfl.attestation.challenge import ChallengeBook
from secfl.attestation.evidence import Evidence
from secfl.crypto import strict_json
from secfl.errors import EncodingError, SecflError
from secfl.policy.decode import decode
from secfl.policy.findings import PolicyError
from secfl.protocol.public import AttestRequest
from secfl.tee.bundle import TrustBundle
from secfl.tee.collateral import Collateral
from secfl.tee.pool import VerifierPool
from secfl.testing.forge import DEFECTS, NOW, Forge

KINDS = ("sgx", "tdx")
SOURCES = Path(__file__).parents[2] / "src" / "secfl"
HEART = (Path(__file__).parents[1] / "vectors" / "policy" / "valid" / "heart.yaml").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_ev_07_debug_workloads_are_refused(kind: str) -> None:
    """Evidence of a workload in debug mode is refused before any policy is asked."""
    forge = Forge(kind)
    cases = [defect for defect in DEFECTS if defect.row == "EV-07" and kind in defect.kinds]
    assert any("debug" in defect.code for defect in cases)
    for defect in cases:
        with pytest.raises(SecflError) as caught:
            defect.build(forge).verify()
        assert caught.value.code == defect.code


@pytest.mark.parametrize("kind", KINDS)
def test_ev_17_collateral_outside_its_validity_is_refused(kind: str) -> None:
    """Expired collateral, and a clock before it, refuse good evidence with the code that says which."""
    forge = Forge(kind)
    cases = [defect for defect in DEFECTS if defect.row == "EV-17" and kind in defect.kinds]
    codes = set()
    for defect in cases:
        with pytest.raises(SecflError) as caught:
            defect.build(forge).verify()
        codes.add(caught.value.code)
    assert codes == {"collateral.expired", "collateral.not_yet_valid"}


@pytest.mark.parametrize("kind", KINDS)
def test_ev_22_no_source_of_collateral_is_ever_contacted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that every proxy variable names sees no connection, for good evidence and for an attacker's chain."""
    with socket.create_server(("127.0.0.1", 0)) as spy:
        url = f"http://127.0.0.1:{spy.getsockname()[1]}"
        for name in ("http_proxy", "https_proxy", "all_proxy", "PCCS_URL", "SSL_CERT_FILE", "SSL_CERT_DIR"):
            monkeypatch.setenv(name, url)
            monkeypatch.setenv(name.upper(), url)
        forge = Forge(kind)
        good = forge.case()

        async def verify_in_a_worker() -> None:
            with VerifierPool(1) as pool:
                await pool.verify(good.evidence, good.collateral, good.anchor, good.now)

        asyncio.run(verify_in_a_worker())
        good.verify()
        for defect in DEFECTS:
            if kind in defect.kinds and defect.row in ("EV-04", "EV-17", "EV-21"):
                with pytest.raises(SecflError):
                    defect.build(forge).verify()
        spy.settimeout(0.1)
        with pytest.raises(TimeoutError):
            spy.accept()


def test_ev_22_no_message_has_room_for_a_source() -> None:
    """A location beside evidence, request, collateral or trust bundle is an unknown member."""
    forge = Forge("tdx")
    good = forge.case()
    assert good.evidence is not None
    record = strict_json.decode(good.evidence.encode())
    with pytest.raises(EncodingError):
        Evidence.decode(strict_json.encode([*record, "https://collateral.invalid"]))
    heart = Heart()
    request = strict_json.decode(heart.trainer().request(os.urandom(32)).encode())
    with pytest.raises(EncodingError):
        AttestRequest.decode(strict_json.encode({**request, "collateral_url": "https://collateral.invalid"}))
    collateral = strict_json.decode(good.collateral.encode())
    with pytest.raises(EncodingError):
        Collateral.decode(strict_json.encode({**collateral, "url": "https://collateral.invalid"}))
    bundle = strict_json.decode(TrustBundle(forge.vendor.anchor(), {"tdx": good.collateral}).encode())
    with pytest.raises(EncodingError):
        TrustBundle.decode(strict_json.encode({**bundle, "proxy": "https://collateral.invalid"}))


def test_sc_11_nothing_draws_from_a_predictable_source() -> None:
    """No module of the package imports a general-purpose generator or time-based identifiers."""
    found = []
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {"random", "uuid", "numpy.random"} & set(names):
                found.append(str(path.relative_to(SOURCES)))
    assert found == []


def test_sc_11_tokens_are_long_and_look_random() -> None:
    """Nonces of a running manager are 32 bytes, never repeat, and their bits are balanced."""
    heart = Heart()
    nonces = [heart.deployment.manager.nonce(now=heart.deployment.now, random=os.urandom).nonce for _ in range(500)]
    assert {len(nonce) for nonce in nonces} == {32}
    assert len(set(nonces)) == len(nonces)
    ones = sum(int.from_bytes(nonce, "big").bit_count() for nonce in nonces)
    # 128,000 bits: nine standard deviations of the mean are 1,610.
    assert abs(ones - 64_000) < 1_610
    counts = collections.Counter(b"".join(nonces))
    assert len(counts) == 256
    assert max(counts.values()) < 140  # 62.5 expected; nine standard deviations above are 134


def test_sc_11_a_broken_source_is_noticed() -> None:
    """A short or constant nonce is refused instead of issued."""
    for nonce in (b"", os.urandom(16), bytes(32)):
        with pytest.raises(SecflError, match=r"challenge\.weak"):
            ChallengeBook().issue(nonce, purpose=Purpose.ATTEST, subject="heart", now=NOW)


@pytest.mark.parametrize(("kind", "size"), [("binary", 15), ("ascii", 19)])
def test_sc_11_a_policy_cannot_ask_for_short_secrets(kind: str, size: int) -> None:
    """Secrets below 119 bits are no valid policy."""
    shorter, changes = re.subn(rf"(kind: {kind}, size: )\d+", rf"\g<1>{size}", HEART, count=1)
    assert changes == 1
    with pytest.raises(PolicyError, match="size"):
        decode(shorter.encode())


@pytest.mark.parametrize("tag", ["latest", "v1.2.3", "sha256:latest", "registry.example/heart:1", ""])
@pytest.mark.parametrize("place", ["measurement", "policy_hash", "app_bundle", "platforms"])
def test_sc_14_a_movable_name_is_no_reference(place: str, tag: str) -> None:
    """Where the policy pins a digest, a tag or version is refused, so that nothing can be moved behind it."""
    moved, changes = re.subn(rf'({place}: ?\[?)"[0-9a-f]{{32,}}"', rf'\g<1>"{tag}"', HEART)
    assert changes > 0
    with pytest.raises(PolicyError):
        decode(moved.encode())
