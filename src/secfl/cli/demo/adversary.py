"""The adversaries of the demonstration: each does one thing that must be refused, and reports how it was.

They hold what a real one could hold: a platform of their own, ciphertext, recorded evidence, and the network.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from secfl.cli.harness import Harness, Service
from secfl.cli.parties import Party, refusal
from secfl.crypto.hpke import SealingKey
from secfl.crypto.signing import SigningKey
from secfl.errors import EngineError, SecflError
from secfl.linux.https_client import HttpsClient, unverified_certificate
from secfl.linux.images import pack_image
from secfl.party.home import PartyHome
from secfl.party.session import ManagerPin
from secfl.protocol.party import ChallengeState
from secfl.protocol.public import AttestRequest, NonceReply
from secfl.volume.image_manifest import Mode

__all__ = ["ROGUE", "changed_code", "lies", "recorded_quote", "rows_of", "stale_policy", "stranger"]

ROGUE = "rogue"
Refusal = dict[str, str]


def changed_code(harness: Harness, *, file: str, old: str, new: str) -> list[Refusal]:
    """A fifth site runs the training code with one line changed and says that it is the first hospital."""
    rogue = harness.sites[ROGUE].home
    shutil.copytree(harness.app, rogue / "plain", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    source = rogue / "plain" / file
    text = source.read_text()
    if text.count(old) != 1:
        raise EngineError("demo.line", f"the line to change does not stand exactly once in {file}")
    source.write_text(text.replace(old, new))
    pack_image(rogue / "plain", rogue / "sealed-code", mode=Mode.ENCRYPTED, key=os.urandom(32))
    victim = harness.plan.sites[0]
    host = harness.deliver(ROGUE, code=rogue / "sealed-code", cohort=harness.sites[victim].home / "sealed")
    service = harness.start(f"trainer-{victim}", ROGUE, host, {"site": victim})
    return _launched("rogue site, one line changed", service)


def stale_policy(harness: Harness, policy_hash: str) -> list[Refusal]:
    """A site starts a trainer under the agreement that was in force before."""
    host = harness.sites[ROGUE].home / "host"
    victim = harness.plan.sites[0]
    service = harness.start(f"trainer-{victim}", ROGUE, host, {"site": victim, "policy_hash": policy_hash})
    return _launched("stale policy", service)


def recorded_quote(harness: Harness, party: Party, service: str) -> list[Refusal]:
    """A party that recorded genuine evidence of a trainer sends it as its own attestation, with a fresh nonce."""
    study, address = harness.plan.study, harness.manager_address
    policy_hash = harness.config(service, party.name).policy_hash

    def work() -> list[Refusal]:
        _, state = party.verifier(harness.policy).challenge(service)
        certificate = unverified_certificate(address)
        client = HttpsClient(address, certificate_sha256=hashlib.sha256(certificate).digest())
        request = AttestRequest(
            nonce=NonceReply.decode(client.call("nonces", b"{}")).nonce,
            study=study,
            service=service,
            site=state.site or "",
            policy_hash=policy_hash,
            evidence=state.evidence or "",
            tls_key=state.tls_key or b"",
            sealing_key=state.sealing_key or b"",
            launch_claims=state.launch_claims or b"",
        )
        return _refused("recorded quote", lambda: client.call("attest", request.encode()))

    rows: list[Refusal] = party.run(work)
    return rows


def lies(party: Party, policy: bytes, *, service: str, other: str) -> list[Refusal]:
    """What a manager or a relay could answer to a party's challenge instead of the truth."""

    def work() -> list[Refusal]:
        verifier = party.verifier(policy)
        nonce, answer = verifier.challenge(service)
        other_nonce, swapped = verifier.challenge(other)
        lie = answer.model_copy(update={"tls_key": SigningKey.generate_p256().public.spki})
        keys = answer.model_copy(update={"sealing_key": SealingKey.generate().public})

        def accept(challenge: bytes, state: ChallengeState) -> Callable[[], object]:
            return lambda: verifier.accept(service, challenge=challenge, state=state, now=int(time.time()))

        return [
            *_refused("swapped trainer", accept(other_nonce, swapped)),
            *_refused("relayed answer", accept(os.urandom(32), answer)),
            *_refused("lying manager, other TLS key", accept(nonce, lie)),
            *_refused("lying manager, other sealing key", accept(nonce, keys)),
        ]

    rows: list[Refusal] = party.run(work)
    return rows


def stranger(harness: Harness, site: str, who: str, directory: Path) -> list[Refusal]:
    """Somebody without a party's key, on a machine of the operator, asks for the model."""
    pin = ManagerPin.load(harness.parties[harness.plan.owner].home.pin_path)
    party = Party(harness.sites[site], who, harness.parties[harness.plan.owner].collateral)

    def work() -> dict[str, Any]:
        home = PartyHome.create(party.home.path, who)
        pin.save(home.pin_path)
        return {}

    party.run(work)
    return rows_of(who, party.receive(harness.plan.study, "model", directory))


def rows_of(who: str, answer: dict[str, Any]) -> list[Refusal]:
    """Turn a refusal into rows for the table; an answer that is no refusal is a failure of the demonstration.

    Raises:
        EngineError: `demo.not_refused`.
    """
    if "code" not in answer:
        raise EngineError("demo.not_refused", f"{who} was not refused")
    if answer["findings"]:
        return [{"who": who, **finding} for finding in answer["findings"]]
    return [
        {"who": who, "rule": answer["code"], "expected": "", "actual": answer["message"], "remedy": ""},
    ]


def _refused(who: str, attempt: Callable[[], object]) -> list[Refusal]:
    try:
        attempt()
    except SecflError as error:
        return rows_of(who, refusal(error))
    raise EngineError("demo.not_refused", f"{who} was not refused")


def _launched(who: str, service: Service) -> list[Refusal]:
    status = service.wait(timeout=30)
    failure = service.failure()
    if status == 0 or failure is None:
        raise EngineError("demo.not_refused", f"{who} was not refused")
    names = ("rule", "expected", "actual", "remedy")
    findings = [dict(zip(names, finding, strict=True)) for finding in failure["findings"]]
    return rows_of(who, {"code": failure["code"], "message": failure["message"], "findings": findings})
