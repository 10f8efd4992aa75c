"""`secfl run STUDY/SERVICE`: a service in an enclave on this site's platform."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from secfl.cli.console import findings_table, note, out
from secfl.cli.enclaves import await_platform, entry_of, launch, prepare_host
from secfl.crypto import strict_json
from secfl.errors import ConfigError, EncodingError, Finding
from secfl.party.home import read_file
from secfl.policy.version import PolicyVersion
from secfl.shield.config import LaunchConfig

__all__ = ["app", "show_failure", "show_phases", "site_config"]

app = typer.Typer(help="Run a service of a study in an enclave.")
_MEMBERS = {"site", "manager", "listen", "peers", "images", "volumes"}


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
    mounted = {mount.name for mount in version.policy.image(version.policy.service(service).image_name).volumes}
    try:
        document = _members(strict_json.decode_any(read_file(site_file)))
        # Only what the policy mounts is shown to the enclave (FS-10); the site may hold more.
        for kind in ("images", "volumes"):
            if isinstance(document[kind], dict):
                document[kind] = {name: path for name, path in document[kind].items() if name in mounted}
        document |= {"study": study, "service": service, "policy_hash": version.hash.hex()}
        return LaunchConfig.decode(strict_json.encode(document))
    except EncodingError as error:
        raise ConfigError("run.site_file", f"{site_file}: {error.message}", hint="see secfl init") from error


def _members(document: object) -> dict[str, Any]:
    if not isinstance(document, dict) or set(document) != _MEMBERS:
        raise EncodingError("message.malformed", f"it must have exactly: {', '.join(sorted(_MEMBERS))}")
    return document


def show_phases(reader: int) -> dict[str, Any] | None:
    """Show the shield's phases as they come; returns its failure, if it reported one.

    A program whose console passes writes to the same pipe and may write anything: nothing here decides, the exit status
    comes from the platform.
    """
    failure: dict[str, Any] | None = None
    with os.fdopen(reader, "r", errors="replace") as console:
        for line in console:
            phase = _phase(line)
            if phase is None:
                out.print(_printable(line.removesuffix("\n")), markup=False)
            elif phase["event"] == "failed":
                failure = phase
            else:
                values = " ".join(f"{k}={v}" for k, v in sorted(phase.items()) if k not in ("event", "ms"))
                text = f"{phase.get('ms', 0)!s:>7} ms  {phase['event']} {values}".rstrip()
                out.print(_printable(text), markup=False)
    return failure


def _phase(line: str) -> dict[str, Any] | None:
    try:
        phase = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return phase if isinstance(phase, dict) and isinstance(phase.get("event"), str) else None


def _printable(text: str) -> str:
    # Escape sequences would let a program rewrite what the operator has read.
    return "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def show_failure(target: str, failure: dict[str, Any]) -> None:
    """Say why a service was not started, with the findings of its appraisal."""
    note.print(
        _printable(f"{target} was not started: {failure.get('code', '')}: {failure.get('message', '')}"), markup=False
    )
    findings = failure.get("findings")
    rows = [row for row in findings if isinstance(row, list)] if isinstance(findings, list) else []
    rows = [row for row in rows if len(row) == 4 and all(isinstance(value, str) for value in row)]
    if rows:
        note.print(findings_table(Finding(*(_printable(value) for value in row)) for row in rows))


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
    try:
        client, handle = launch(
            platform, entry_of(image, "shield"), config=config.encode(), host_dir=host_dir, console=writer
        )
    finally:
        os.close(writer)
    failure = show_phases(reader)
    status = client.wait(handle)
    if failure is not None:
        show_failure(target, failure)
    raise typer.Exit(status)
