"""`secfl run STUDY/SERVICE`: a service in an enclave on this site's platform."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from secfl.cli.console import findings_table, note, out
from secfl.cli.enclaves import await_platform, entry_of, launch, prepare_host
from secfl.crypto import strict_json
from secfl.errors import ConfigError, Finding
from secfl.party.home import read_file
from secfl.policy.version import PolicyVersion
from secfl.shield.config import LaunchConfig

__all__ = ["app", "show_phases", "site_config"]

app = typer.Typer(help="Run a service of a study in an enclave.")


def site_config(site_file: Path, target: str, policy: bytes) -> LaunchConfig:
    """Make the launch configuration of one service from the operator's site file.

    Raises:
        ConfigError: `run.target` or `run.site_file`.
        PolicyError: the policy file is not valid.
    """
    study, slash, service = target.partition("/")
    version = PolicyVersion.read(policy)
    if not slash or version.policy.name != study:
        raise ConfigError("run.target", f"{target} is not a service of the policy {version.policy.name}")
    version.policy.service(service)
    document = strict_json.decode_any(read_file(site_file))
    members = {"site", "manager", "listen", "peers", "images", "volumes"}
    if not isinstance(document, dict) or set(document) != members:
        raise ConfigError(
            "run.site_file", f"{site_file} must have exactly: {', '.join(sorted(members))}", hint="see secfl init"
        )
    return LaunchConfig(study=study, service=service, policy_hash=version.hash.hex(), **document)


def show_phases(reader: int) -> dict[str, Any] | None:
    """Show the shield's phases as they come; returns its failure, if it reported one."""
    failure: dict[str, Any] | None = None
    with os.fdopen(reader, "r", errors="replace") as console:
        for line in console:
            try:
                phase = json.loads(line)
            except ValueError:
                sys.stdout.write(line)
                continue
            if not isinstance(phase, dict) or "event" not in phase:
                sys.stdout.write(line)
            elif phase["event"] == "failed":
                failure = phase
            else:
                values = " ".join(f"{k}={v}" for k, v in sorted(phase.items()) if k not in ("event", "ms"))
                out.print(f"{phase.get('ms', 0):>7} ms  {phase['event']} {values}".rstrip(), markup=False)
    return failure


@app.command()
def run(
    target: Annotated[str, typer.Argument(metavar="STUDY/SERVICE")],
    site_file: Annotated[Path, typer.Option("--site", help="the operator's site file", exists=True)],
    policy: Annotated[Path, typer.Option("--policy", help="the study's policy", exists=True)],
    platform: Annotated[Path, typer.Option(help="the platform's socket")],
    host_dir: Annotated[Path, typer.Option(help="directory with the sealed volumes; sees only ciphertext")],
    image: Annotated[Path, typer.Option(help="the runtime image", exists=True)] = Path("build/image"),
) -> None:
    """Launch a service, show its phases, and end with its exit status."""
    config = site_config(site_file, target, read_file(policy))
    await_platform(platform)
    prepare_host(platform, host_dir)
    reader, writer = os.pipe()
    client, handle = launch(
        platform, entry_of(image, "shield"), config=config.encode(), host_dir=host_dir, console=writer
    )
    os.close(writer)
    failure = show_phases(reader)
    status = client.wait(handle)
    if failure is not None:
        note.print(f"{target} was not started: {failure['code']}: {failure['message']}", markup=False)
        if failure.get("findings"):
            note.print(findings_table(Finding(*values) for values in failure["findings"]))
    raise typer.Exit(status)
