"""`secfl policy`: check, assemble, propose, vote, show."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from secfl.cli.console import out, print_json
from secfl.cli.options import Home, Json, PolicyFile
from secfl.cli.study_plan import HandedOver, assemble
from secfl.errors import ConfigError
from secfl.party.documents import get_policy, propose, vote
from secfl.party.home import PartyHome, read_file, write_file
from secfl.party.session import ManagerSession
from secfl.policy.version import PolicyVersion

__all__ = ["app"]

app = typer.Typer(help="The agreement of all parties.", no_args_is_help=True)
_DRAFT = "policy.draft.yaml"


@app.command()
def check(file: PolicyFile, json: Json = False) -> None:  # noqa: FBT002 - a command-line flag
    """Check a policy and compute its hash, here and without a manager."""
    version = PolicyVersion.read(read_file(file), source=str(file))
    board = [party.name for party in version.policy.board]
    if json:
        print_json({"name": version.policy.name, "hash": version.hash.hex(), "board": board})
        return
    out.print(f"{version.policy.name}: valid, hash {version.hash.hex()}")
    out.print(f"board: all of {', '.join(board)}")


@app.command("assemble")
def assemble_command(
    study: Annotated[Path, typer.Argument(help="the study's folder from `secfl init`", exists=True, file_okay=False)],
    target: Annotated[Path, typer.Option("--out", help="the policy file")],
) -> None:
    """Put the handed-over keys, platforms, measurements and volumes into the draft."""
    draft = read_file(study / _DRAFT).decode()
    policy = assemble(draft, HandedOver(study / "handed-over"))
    version = PolicyVersion.read(policy, source=str(target))
    write_file(target, policy)
    out.print(f"{target}: {version.policy.name}, hash {version.hash.hex()}; every party reads it before it votes")


@app.command("propose")
def propose_command(file: PolicyFile, home: Home) -> None:
    """Propose a policy; a proposal counts for nothing until the board has voted."""
    policy = read_file(file)
    version = PolicyVersion.read(policy, source=str(file))
    reply = propose(ManagerSession(PartyHome(home)), version.policy.name, policy, now=int(time.time()))
    out.print(f"proposal {reply.proposal} for {version.policy.name}, hash {reply.policy_hash}")


@app.command("vote")
def vote_command(
    file: PolicyFile,
    home: Home,
    approve: Annotated[bool, typer.Option("--approve/--reject", help="your vote; there is no default")],
) -> None:
    """Vote on the open proposal that has exactly the bytes of this file."""
    policy = read_file(file)
    version = PolicyVersion.read(policy, source=str(file))
    state = vote(ManagerSession(PartyHome(home)), version.policy.name, policy, approve=approve)
    out.print(f"{version.policy.name} {version.hash.hex()}: {'yes' if approve else 'no'} counted, proposal {state}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="the policy's name")],
    home: Home,
    target: Annotated[Path | None, typer.Option("--out", help="write the bytes in force to a file")] = None,
) -> None:
    """Show the policy in force, with the hash computed here."""
    reply = get_policy(ManagerSession(PartyHome(home)), name)
    if reply.policy is None:
        raise ConfigError("policy.none", f"no version of {name} is in force", hint=f"{len(reply.proposals)} open")
    if target is not None:
        write_file(target, reply.policy)
        out.print(f"{name} version {reply.version}, hash {reply.policy_hash}: {target}")
        return
    out.print(reply.policy.decode(), markup=False)
