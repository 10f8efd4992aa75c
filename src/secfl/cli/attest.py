"""`secfl attest STUDY/SERVICE`: a party's own verdict on a running service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secfl.cli.console import out, print_json, simulated_banner
from secfl.cli.options import Home, Json
from secfl.cli.waiting import Wait, until_ready
from secfl.errors import ConfigError
from secfl.party.home import PartyHome, read_file
from secfl.party.peers import PeerVerifier
from secfl.party.session import ManagerSession
from secfl.party.trust import TrustStore
from secfl.policy.version import PolicyVersion

__all__ = ["app"]

app = typer.Typer(help="Attest a running service yourself.")


@app.command()
def attest(
    target: Annotated[str, typer.Argument(metavar="STUDY/SERVICE")],
    policy: Annotated[Path, typer.Option("--policy", help="your own copy of the study's policy", exists=True)],
    home: Home,
    wait: Wait = 0.0,
    json: Json = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Send your own nonce to a service and verify its evidence with your own collateral and reference values."""
    study, slash, service = target.partition("/")
    if not slash or not service:
        raise ConfigError("attest.target", f"{target} is not STUDY/SERVICE", hint="for example heart/aggregator")
    policy_bytes = read_file(policy)
    named = PolicyVersion.read(policy_bytes).policy.name
    if named != study:
        # Otherwise the verdict on one study would be shown under the name of another.
        raise ConfigError("attest.target", f"{policy} is the policy of {named}, not of {study}")
    party = PartyHome(home)
    session = ManagerSession(party)
    verifier = PeerVerifier(session, TrustStore.load(party.collateral_path), policy_bytes)
    found = until_ready(lambda: verifier.attest(service), wait)
    verified = found.appraised.verified
    if json:
        print_json({"service": f"{study}/{service}", "site": found.site, "claims": verified.to_record()})
        return
    if verified.simulated:
        simulated_banner(out, verified.trust_domain)
    out.print(f"{found.service} at {found.site}: accepted")
    out.print(f"  measurement {verified.measurement.hex()}")
    out.print(f"  platform    {verified.platform_id.hex()}  tcb {verified.tcb_status}")
    out.print("  bound to my nonce, my copy of the policy, its TLS and sealing keys and its launch claims")
