"""A party in its own process: every decision runs as the site's user, in the site's network, from the site's files.

Arguments and results are JSON values, as they would be on a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from secfl.cli.audit import export_bundle
from secfl.crypto.encoding import to_base64url
from secfl.errors import SecflError
from secfl.party.attestation import attest_manager
from secfl.party.documents import grant_imports, propose, vote
from secfl.party.home import PartyHome, read_file
from secfl.party.packing import pack_volume, register_volume
from secfl.party.peers import PeerAttestation, PeerVerifier
from secfl.party.receive import open_release, unpack
from secfl.party.session import ManagerSession
from secfl.party.trust import ManagerReference, TrustStore
from secfl.policy.version import PolicyVersion
from secfl.protocol.party import StatusAsk, StatusReply
from secfl.testing.sites import Site

__all__ = ["Party", "refusal"]

_GRANT_SECONDS = 24 * 3600


def refusal(error: SecflError) -> dict[str, Any]:
    """Describe a refusal as JSON: its code and its first finding or message."""
    findings = getattr(error, "findings", ())
    rows = [
        {"rule": f.rule, "expected": f.expected, "actual": f.actual, "remedy": f.remedy}
        for f in findings
        if hasattr(f, "remedy")
    ]
    return {"code": error.code, "message": error.message, "findings": rows}


@dataclass(slots=True)
class Party:
    """One party at its site.

    Attributes:
        site: its machine.
        name: its name.
        collateral: the trust bundle that the endorser handed over; copied into the party's home.
    """

    site: Site
    name: str
    collateral: Path

    @property
    def home(self) -> PartyHome:
        """The party's home directory."""
        return PartyHome(self.site.home / "party")

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function in a process of this party's site.

        Raises:
            SiteStepError: with the error's code and text.
        """
        return self.site.call(function, *arguments)

    def create(self) -> dict[str, str]:
        """Make the keys; returns the public identity."""
        bundle = read_file(self.collateral)

        def work() -> dict[str, str]:
            home = PartyHome.create(self.home.path, self.name)
            home.collateral_path.write_bytes(bundle)
            return home.identity().document()

        result: dict[str, str] = self.run(work)
        return result

    def attest_manager(self, reference: bytes) -> dict[str, Any]:
        """Attest the manager and pin it; returns the accepted claims."""

        def work() -> dict[str, Any]:
            trust = TrustStore.load(self.home.collateral_path)
            accepted = ManagerReference.decode(reference)
            appraised = attest_manager(self.home, accepted, trust, now=int(time.time()))
            return appraised.verified.to_record()

        result: dict[str, Any] = self.run(work)
        return result

    def pack(self, source: Path, volume: str) -> dict[str, Any]:
        """Pack a folder of this site, put its policy in force and deposit the key."""

        def work() -> dict[str, Any]:
            sealed = self.site.home / "sealed"
            owned, packed = pack_volume(self.home, source, sealed, volume=volume)
            register_volume(ManagerSession(self.home), sealed, now=int(time.time()))
            return {**owned.document(), "files": packed.files, "bytes": packed.total_bytes}

        result: dict[str, Any] = self.run(work)
        del result["files"], result["bytes"]
        return result

    def propose(self, policy: bytes) -> None:
        """Propose a policy."""

        def work() -> None:
            name = PolicyVersion.read(policy).policy.name
            propose(ManagerSession(self.home), name, policy, now=int(time.time()))

        self.run(work)

    def vote_and_grant(self, policy: bytes) -> dict[str, str]:
        """Vote yes on exactly these bytes and grant what they import from this party."""

        def work() -> dict[str, str]:
            session = ManagerSession(self.home)
            vote(session, PolicyVersion.read(policy).policy.name, policy, approve=True)
            return grant_imports(session, policy, expires=int(time.time()) + _GRANT_SECONDS)

        result: dict[str, str] = self.run(work)
        return result

    def attest(self, policy: bytes, services: list[str]) -> list[dict[str, Any]]:
        """Attest running services with this party's own nonce and reference values; one row each."""

        def work() -> list[dict[str, Any]]:
            verifier = self.verifier(policy)
            return [_row(self.name, service, partial(verifier.attest, service)) for service in services]

        rows: list[dict[str, Any]] = self.run(work)
        return rows

    def verifier(self, policy: bytes) -> PeerVerifier:
        """The party's own view of a study; for use inside its process."""
        return PeerVerifier(ManagerSession(self.home), TrustStore.load(self.home.collateral_path), policy)

    def status(self, study: str) -> dict[str, Any]:
        """Ask for the state of a study."""

        def work() -> dict[str, Any]:
            return _status(ManagerSession(self.home), study)

        result: dict[str, Any] = self.run(work)
        return result

    def watch(self, study: str, *, seconds: float) -> Iterator[dict[str, Any]]:
        """Follow the rounds of a study as the manager logs them, until its aggregator has ended."""

        def work(emit: Callable[[Any], None]) -> None:
            session, seen = ManagerSession(self.home), 0
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                state = _status(session, study)
                for line in state["progress"][seen:]:
                    emit(line)
                seen = len(state["progress"])
                if "aggregator" in state["exits"]:
                    emit({"exit": state["exits"]["aggregator"]})
                    return
                time.sleep(0.2)

        yield from self.site.stream(work)

    def receive(self, study: str, volume: str, directory: Path) -> dict[str, Any]:
        """Ask for a released volume and unpack it; a refusal is a row, not an error."""

        def work() -> dict[str, Any]:
            try:
                image = open_release(ManagerSession(self.home), study, volume, directory)
                files = unpack(image, self.site.home / "released")
            except SecflError as error:
                return refusal(error)
            return {"files": [str(path) for path in files]}

        result: dict[str, Any] = self.run(work)
        return result

    def export(self) -> bytes:
        """Take the audit bundle from the manager into this party's home and return it."""

        def work() -> str:
            target = self.site.home / "bundle.json"
            target.write_bytes(export_bundle(ManagerSession(self.home)))
            return str(target)

        return Path(self.run(work)).read_bytes()


def _status(session: ManagerSession, study: str) -> dict[str, Any]:
    return session.ask(
        "studies/status",
        lambda deployment, nonce: StatusAsk(deployment_id=deployment, nonce=nonce, study=study),
        StatusReply,
    ).status


def _row(party: str, service: str, attest: Callable[[], PeerAttestation]) -> dict[str, Any]:
    try:
        found = attest()
    except SecflError as error:
        return {"verifier": party, "service": service, "refused": refusal(error)}
    verified = found.appraised.verified
    return {
        "verifier": party,
        "service": service,
        "site": found.site,
        "measurement": verified.measurement.hex(),
        "platform": verified.platform_id.hex(),
        "tls_key": to_base64url(found.tls_key),
    }
