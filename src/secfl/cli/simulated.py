"""`secfl simulated`: root, platforms and platform process without hardware."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Annotated

import typer

from secfl.attestation.evidence import KINDS
from secfl.cli.console import note, out, simulated_banner
from secfl.crypto import strict_json
from secfl.errors import ConfigError, StateError, UnavailableError
from secfl.linux.namespaces import in_initial_user_namespace
from secfl.party.home import read_file, write_file
from secfl.tee.bundle import TrustBundle
from secfl.tee.simulated.machine import SimulatedMachine
from secfl.tee.simulated.process import MACHINE_FILE, PlatformProcess, load_machine
from secfl.tee.simulated.vendor import Vendor

__all__ = ["app", "create_platform", "create_vendor", "run_platform", "site_user_of", "stop_platform"]

app = typer.Typer(help="The simulated platform. It is no boundary against root on this machine.", no_args_is_help=True)
_VENDOR = "vendor.json"
BUNDLE = "collateral.json"
PUBLIC = "platform.json"
SOCKET = "platform.sock"
# Above the numbers that Debian gives to people and services, and never 65534 (nobody).
_SITE_USERS = range(61_001, 65_500)
_STOP_SECONDS = 10.0
Directory = Annotated[Path, typer.Argument(help="a directory of its own, mode 0700")]


def create_vendor(directory: Path, *, now: int) -> TrustBundle:
    """Make a simulated root with collateral for both kinds of evidence.

    Raises:
        StateError: `simulated.exists`.
    """
    if (directory / _VENDOR).exists():
        raise StateError("simulated.exists", f"{directory} already holds a simulated root")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    vendor = Vendor.create(now)
    write_file(directory / _VENDOR, vendor.encode(), mode=0o600)
    bundle = TrustBundle(vendor.anchor(), {kind: vendor.collateral(kind, now) for kind in KINDS})
    write_file(directory / BUNDLE, bundle.encode())
    return bundle


def create_platform(directory: Path, vendor_directory: Path, *, site: str, tee: str, now: int) -> SimulatedMachine:
    """Make a machine that the simulated root certifies, and its public description.

    Raises:
        StateError: `simulated.exists`.
        ConfigError: `simulated.tee`, or the root cannot be read.
    """
    if tee not in KINDS:
        raise ConfigError("simulated.tee", f"no such kind: {tee}", hint="one of " + ", ".join(sorted(KINDS)))
    if (directory / MACHINE_FILE).exists():
        raise StateError("simulated.exists", f"{directory} already holds a platform")
    vendor = Vendor.decode(read_file(vendor_directory / _VENDOR))
    machine = SimulatedMachine.enroll(vendor, now=now)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(directory / MACHINE_FILE, machine.encode(), mode=0o600)
    public = {
        "site": site,
        "platform_id": machine.platform_id.hex(),
        "tee": tee,
        "trust_domain": vendor.anchor().domain,
    }
    write_file(directory / PUBLIC, strict_json.encode(public))
    return machine


def run_platform(directory: Path, socket_path: Path, *, site_user: int | None) -> None:
    """Serve launches until told to stop.

    Raises:
        ConfigError: the directory is not the caller's alone, or the socket cannot be made.
    """
    tee = strict_json.decode(read_file(directory / PUBLIC))["tee"]
    process = PlatformProcess(directory, kind=tee, socket_path=socket_path, site_user=site_user)
    process.run(out.print)


def site_user_of(machine: SimulatedMachine) -> int | None:
    """Choose the user of a site's enclaves: one number a platform when root starts it, else the caller's own.

    Enclaves never run as the machine's root, and sites that share a machine should not share a user.
    """
    if os.geteuid() != 0 or not in_initial_user_namespace():
        return None
    return _SITE_USERS[int.from_bytes(machine.platform_id, "big") % len(_SITE_USERS)]


def stop_platform(path: Path) -> None:
    """End the process that listens on a platform's socket, and with it every enclave of the platform.

    Raises:
        UnavailableError: `simulated.not_running` or `simulated.not_stopped`.
        ConfigError: `simulated.not_permitted`.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(str(path))
        except OSError as error:
            raise UnavailableError("simulated.not_running", f"no platform listens on {path}") from error
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    listener, _, _ = struct.unpack("3i", credentials)
    try:
        os.kill(listener, signal.SIGTERM)
    except OSError as error:
        raise ConfigError("simulated.not_permitted", f"cannot stop process {listener}: {error.strerror}") from error
    deadline = time.monotonic() + _STOP_SECONDS
    while Path(f"/proc/{listener}").exists() and path.exists():
        if time.monotonic() > deadline:
            raise UnavailableError("simulated.not_stopped", f"process {listener} did not end in {_STOP_SECONDS:.0f} s")
        time.sleep(0.05)


@app.command("create-root")
def create_root(directory: Directory) -> None:
    """Make a simulated root; whoever accepts it names its fingerprint."""
    bundle = create_vendor(directory, now=int(time.time()))
    simulated_banner(out, bundle.anchor.domain)
    out.print(f"hand over {directory / BUNDLE} to every party")


@app.command("create-platform")
def create_platform_command(
    directory: Directory,
    root: Annotated[Path, typer.Option("--root", help="the simulated root's directory", exists=True)],
    site: Annotated[str, typer.Option(help="the site's name")],
    tee: Annotated[str, typer.Option(help="tdx or sgx")] = "tdx",
) -> None:
    """Make a simulated platform for one site."""
    machine = create_platform(directory, root, site=site, tee=tee, now=int(time.time()))
    out.print(f"platform {machine.platform_id.hex()}: hand over {directory / PUBLIC}")


@app.command("run")
def run(
    directory: Directory,
    socket_path: Annotated[
        Path | None, typer.Option("--socket", help="where to listen; default platform.sock in the directory")
    ] = None,
    site_user: Annotated[
        int | None,
        typer.Option(help="numeric user of the site's enclaves, when started as root; default: one of 61001 to 65499"),
    ] = None,
) -> None:
    """Run the platform process of one site in the foreground; `secfl simulated stop` or Ctrl-C ends it."""
    domain = strict_json.decode(read_file(directory / PUBLIC))["trust_domain"]
    simulated_banner(out, domain)
    machine = load_machine(directory)
    if site_user is None:
        site_user = site_user_of(machine)
        if site_user is not None:
            note.print(f"started as root: the site's enclaves run as user {site_user}; --site-user NUMBER changes it")
    os.umask(0o077)
    run_platform(directory, socket_path or directory / SOCKET, site_user=site_user)


@app.command("stop")
def stop(sockets: Annotated[list[Path], typer.Argument(help="the sockets of running platforms")]) -> None:
    """Stop platform processes and every enclave on them."""
    for path in sockets:
        stop_platform(path)
        out.print(f"{path}: stopped")
