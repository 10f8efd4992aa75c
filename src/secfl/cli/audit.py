"""`secfl audit`: take the manager's log along and check all of it offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secfl.cli.console import out, print_json, simulated_banner, table
from secfl.cli.options import Home, Json
from secfl.crypto.signing import PublicKey
from secfl.errors import ConfigError
from secfl.manager.audit import AuditReport, KnownHead, verify_bundle
from secfl.party.home import PartyHome, read_file, write_file
from secfl.party.session import ManagerPin, ManagerSession
from secfl.protocol.party import LogExport
from secfl.tee.verifier import InProcessVerifier

__all__ = ["app", "audit_bundle", "export_bundle"]

app = typer.Typer(help="The audit bundle.", no_args_is_help=True)
_MAX_BUNDLE = 1 << 30


def export_bundle(session: ManagerSession) -> bytes:
    """Take the audit bundle from the manager.

    Raises:
        SecflError: what the manager refused.
    """
    nonce = session.nonce()
    return session.submit("log/export", LogExport(deployment_id=session.deployment_id, nonce=nonce))


def audit_bundle(bundle: bytes, pin: ManagerPin) -> AuditReport:
    """Check a bundle against the manager and founders that were attested, and the log head seen then.

    Raises:
        VerificationError: an `audit.*` code: the bundle was edited, cut, reordered, forged or is of another manager.
    """
    return verify_bundle(
        bundle,
        key=PublicKey(pin.identity.tls_key),
        founders=pin.identity.founders,
        verifier=InProcessVerifier(),
        known=KnownHead(pin.log_sequence, pin.log_head),
    )


@app.command()
def export(home: Home, target: Annotated[Path, typer.Option("--out", help="the bundle file")]) -> None:
    """Write the bundle: log, policies, votes, evidence and collateral, without any sealed payload."""
    bundle = export_bundle(ManagerSession(PartyHome(home)))
    write_file(target, bundle)
    out.print(f"{target}: {len(bundle)} bytes")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="the bundle file", exists=True, dir_okay=False)],
    home: Annotated[
        Path | None, typer.Option(help="a party's home with its pinned manager", envvar="SECFL_HOME")
    ] = None,
    pin_file: Annotated[Path | None, typer.Option("--pin", help="a pinned manager that you got from a party")] = None,
    json: Json = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Check a bundle offline: chain, signatures, votes, evidence, releases. Exit code 0 if all holds, else 20 to 28."""
    path = pin_file or (PartyHome(home).pin_path if home is not None else None)
    if path is None:
        raise ConfigError("audit.no_pin", "say whose log this should be", hint="--home DIR or --pin FILE")
    report = audit_bundle(read_file(bundle, max_bytes=_MAX_BUNDLE), ManagerPin.load(path))
    if json:
        print_json(
            {
                "entries": report.entries,
                "head": report.head.hex(),
                "policies": {name: list(hashes) for name, hashes in report.policies.items()},
                "counts": dict(report.counts),
                "releases": [list(release) for release in report.releases],
                "trust_domains": sorted(report.trust_domains),
            }
        )
        return
    for domain in sorted(report.trust_domains):
        if domain.startswith("simulated:"):
            simulated_banner(out, domain)
    out.print(f"{bundle}: {report.entries} entries, all in order; head {report.head.hex()}")
    out.print(table("", ("kind of entry", "number"), sorted(report.counts.items())))
    out.print("complete up to this head; what came later is not in the bundle")
