"""`secfl status STUDY`: who is missing, waiting or refused, and the next command for each."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from secfl.cli.console import out, print_json, simulated_banner, table
from secfl.cli.options import Home, Json
from secfl.party.documents import get_policy
from secfl.party.home import PartyHome
from secfl.party.session import ManagerSession
from secfl.policy.decode import decode
from secfl.policy.model import Policy
from secfl.policy.storage import ImportedVolume
from secfl.protocol.party import Proposal, StatusAsk, StatusReply, Vote

__all__ = ["app", "next_steps"]

app = typer.Typer(help="The state of a study.")


def next_steps(policy: Policy, status: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Say for each part of an active study its state and the next command: (who, state, next)."""
    rows: list[tuple[str, str, str]] = []
    granted = {entry["owner_policy"] for entry in status["grants"] if not entry["revoked"]}
    for volume in policy.volumes:
        if isinstance(volume, ImportedVolume) and volume.imported.policy not in granted:
            owner = volume.imported.policy.partition("/")[0]
            rows.append((owner, f"no grant for {volume.name}", "secfl grant create POLICY"))
    live = {entry["service"]: entry for entry in status["services"] if entry["live"]}
    refused = {entry["service"]: entry for entry in status["refusals"] if "service" in entry}
    for service in policy.services:
        target = f"{policy.name}/{service.name}"
        if service.name in live:
            rows.append((service.name, f"running at {live[service.name]['site']}", f"secfl attest {target}"))
        elif service.name in status["exits"]:
            rows.append((service.name, f"ended with {status['exits'][service.name]}", "secfl release"))
        elif service.name in refused:
            rows.append((service.name, f"refused: {refused[service.name].get('code', '')}", "see the findings"))
        else:
            rows.append((service.name, "missing", f"secfl run {target}"))
    return rows


@app.command()
def status(study: Annotated[str, typer.Argument()], home: Home, json: Json = False) -> None:  # noqa: FBT002
    """Show a study's parts and what each role has to do next."""
    session = ManagerSession(PartyHome(home))
    reply = get_policy(session, study)
    if reply.policy is None:
        _show_proposals(session, study, dict(reply.proposals), dict(reply.votes))
        return
    state = session.ask(
        "studies/status",
        lambda deployment, nonce: StatusAsk(deployment_id=deployment, nonce=nonce, study=study),
        StatusReply,
    ).status
    if json:
        print_json(state)
        return
    if session.pin.trust_domain.startswith("simulated:"):
        simulated_banner(out, session.pin.trust_domain)
    out.print(f"{study}: version {state['version']} in force, hash {state['policy_hash']}")
    out.print(table("", ("who", "state", "next"), next_steps(decode(reply.policy), state)))
    if state["refusals"]:
        rows = [
            (entry.get("site", ""), f["rule"], f["expected"], f["actual"])
            for entry in state["refusals"]
            for f in entry.get("findings", [])
        ]
        out.print(table("refused", ("site", "rule", "expected", "found"), rows))


def _show_proposals(session: ManagerSession, study: str, proposals: dict[str, bytes], votes: dict[str, Any]) -> None:
    from secfl.crypto import strict_json
    from secfl.crypto.encoding import from_base64url

    if not proposals:
        out.print(f"{study}: nothing is proposed; next: secfl policy propose FILE")
        return
    for identifier, envelope in proposals.items():
        document = Proposal.decode(from_base64url(strict_json.decode(envelope)["payload"]), max_bytes=4 * 1024 * 1024)
        policy = decode(document.policy)
        keys = {party.signing_key.key_id: party.name for party in policy.parties}
        voted: dict[str, bool] = {}
        for vote in votes.get(identifier, ()):
            parsed = strict_json.decode(vote)
            name = keys.get(parsed["signatures"][0]["keyid"], "unknown key")
            voted[name] = Vote.decode(from_base64url(parsed["payload"])).approve
        rows = [
            (party.name, {True: "yes", False: "no"}.get(voted.get(party.name), "waiting"), "secfl policy vote")  # type: ignore[arg-type]
            for party in policy.board
        ]
        out.print(table(f"{study}: proposal {identifier}", ("party", "vote", "next"), rows))
    del session
