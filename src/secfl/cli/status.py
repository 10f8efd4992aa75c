"""`secfl status STUDY`: who is missing, waiting or refused, and the next command for each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from secfl.cli.console import out, print_json, simulated_banner, table
from secfl.cli.options import Home, Json
from secfl.crypto.signing import verify_envelope
from secfl.party.documents import get_policy, unverified_proposal
from secfl.party.home import PartyHome
from secfl.party.session import ManagerSession
from secfl.policy.decode import decode
from secfl.policy.model import Policy
from secfl.policy.storage import ImportedVolume, WritableVolume
from secfl.protocol.party import PolicyReply, StatusAsk, StatusReply, Vote
from secfl.protocol.routes import route

__all__ = ["app", "follow_rounds", "next_steps"]

app = typer.Typer(help="The state of a study.")
_FOLLOW_SECONDS = 0.2


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
            code = status["exits"][service.name]
            rows.append((service.name, f"ended with {code}", _after_end(policy, service.name, code)))
        elif service.name in refused:
            rows.append((service.name, f"refused: {refused[service.name].get('code', '')}", "see the findings"))
        else:
            rows.append((service.name, "missing", f"secfl run {target}"))
    return rows


def _after_end(policy: Policy, service: str, code: int) -> str:
    if code != 0:
        return f"secfl run {policy.name}/{service}"
    mounts = {mount.name for mount in policy.image(policy.service(service).image_name).volumes}
    volumes = [v.name for v in policy.volumes if isinstance(v, WritableVolume) and v.release and v.name in mounts]
    return f"secfl release {policy.name} {volumes[0]}" if volumes else "nothing"


def follow_rounds(session: ManagerSession, study: str) -> int:
    """Show the rounds as the manager logs them, until the aggregator has ended; returns its exit status."""
    seen = 0
    while True:
        state = _state(session, study)
        for line in state["progress"][seen:]:
            metrics = "  ".join(f"{name} {float.fromhex(value):.4f}" for name, value in sorted(line["metrics"].items()))
            out.print(f"round {line['round']:>3}  {line['phase']:<8}  {metrics}", markup=False)
        seen = len(state["progress"])
        if "aggregator" in state["exits"]:
            out.print(f"{study}: the aggregator ended with {state['exits']['aggregator']}")
            return int(state["exits"]["aggregator"])
        time.sleep(_FOLLOW_SECONDS)


def _state(session: ManagerSession, study: str) -> dict[str, Any]:
    return session.ask(
        "studies/status",
        lambda deployment, nonce: StatusAsk(deployment_id=deployment, nonce=nonce, study=study),
        StatusReply,
    ).status


@app.command()
def status(
    study: Annotated[str, typer.Argument(help="the study's name")],
    home: Home,
    follow: Annotated[bool, typer.Option("--follow", help="show rounds until the training has ended")] = False,  # noqa: FBT002
    json: Json = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Show a study's parts and what each role has to do next."""
    session = ManagerSession(PartyHome(home))
    reply = get_policy(session, study)
    proposals = _votes_by_proposal(reply)
    if reply.policy is None:
        if json:
            print_json({"proposals": proposals})
        else:
            _show_proposals(study, proposals)
        return
    if follow:
        raise typer.Exit(follow_rounds(session, study))
    state = _state(session, study)
    if json:
        print_json({**state, "proposals": proposals})
        return
    if session.pin.trust_domain.startswith("simulated:"):
        simulated_banner(out, session.pin.trust_domain)
    out.print(f"{study}: version {state['version']} in force, hash {state['policy_hash']}")
    out.print(table("", ("who", "state", "next"), next_steps(decode(reply.policy), state)))
    if proposals:
        _show_proposals(study, proposals)
    if state["refusals"]:
        rows = [
            (entry.get("site", ""), f["rule"], f["expected"], f["actual"])
            for entry in state["refusals"]
            for f in entry.get("findings", [])
        ]
        out.print(table("refused", ("site", "rule", "expected", "found"), rows))


def _votes_by_proposal(reply: PolicyReply) -> dict[str, dict[str, str]]:
    """For each open proposal, what each member of its board said so far: yes, no or waiting."""
    found: dict[str, dict[str, str]] = {}
    for identifier, envelope in reply.proposals.items():
        # The board in force decides about its successor; a first version's own board decides about itself.
        board = decode(reply.policy or unverified_proposal(envelope).policy).board
        names = {party.signing_key.key_id: party.name for party in board}
        found[identifier] = {party.name: "waiting" for party in board}
        for signed in reply.votes.get(identifier, ()):
            vote = verify_envelope(
                signed, purpose=route("policies/vote").purpose, keys=[party.signing_key for party in board]
            )
            found[identifier][names[vote.signer.key_id]] = "yes" if Vote.decode(vote.payload).approve else "no"
    return found


def _show_proposals(study: str, proposals: Mapping[str, Mapping[str, str]]) -> None:
    if not proposals:
        out.print(f"{study}: nothing is proposed; next: secfl policy propose FILE")
    for identifier, votes in proposals.items():
        rows = [(name, vote, "secfl policy vote" if vote == "waiting" else "") for name, vote in votes.items()]
        out.print(table(f"{study}: proposal {identifier}", ("party", "vote", "next"), rows))
