"""`secfl manager`: start it in an enclave, describe what to accept, attest it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from secfl.attestation.statement import ManagerClaims
from secfl.cli.console import note, out, print_json, simulated_banner
from secfl.cli.enclaves import await_platform, entry_of, launch, prepare_host
from secfl.cli.options import Home, Json
from secfl.cli.waiting import Wait, until_ready
from secfl.crypto import strict_json
from secfl.errors import ConfigError
from secfl.manager.config import LaunchConfig
from secfl.party.attestation import attest_manager
from secfl.party.home import PartyHome, PartyIdentity, read_file, write_file
from secfl.party.trust import ManagerReference, TrustStore
from secfl.protocol.public import Founder, Founders
from secfl.tee.bundle import TrustBundle

__all__ = ["app", "founders_of", "install_collateral", "manager_config", "reference_of"]

app = typer.Typer(help="The Security Policy Manager.", no_args_is_help=True)
Identities = Annotated[list[Path], typer.Argument(help="identity.json of every founding party", exists=True)]
Image = Annotated[Path, typer.Option("--image", help="the runtime image", exists=True)]


def founders_of(paths: list[Path]) -> Founders:
    """Read the founders' identities, in the order of their names.

    Raises:
        ConfigError: `founders.repeated` or an unreadable file.
        EncodingError: a file is malformed.
    """
    parties = [PartyIdentity.from_document(strict_json.decode_any(read_file(path))) for path in paths]
    if len({party.name for party in parties}) != len(parties):
        raise ConfigError("founders.repeated", "two founders have one name")
    return Founders(
        founders=tuple(
            Founder(name=p.name, signing_key=p.signing_key.spki, recipient_key=p.recipient_key)
            for p in sorted(parties, key=lambda party: party.name)
        )
    )


def reference_of(image: Path, platform: Path, address: str, founders: Founders) -> ManagerReference:
    """Describe the manager that runs this image on this platform; people check it before they use it.

    Raises:
        ConfigError: a file is unreadable.
        EncodingError: a file is malformed.
    """
    public = strict_json.decode_any(read_file(platform))
    entry = entry_of(image, "manager")
    return ManagerReference(
        address=address,
        trust_domain=public["trust_domain"],
        tee=public["tee"],
        measurements=(entry.measurements[public["tee"]],),
        platforms=(public["platform_id"],),
        tolerate=(),
        minimum_tcb_evaluation=1,
        allow_smt=True,
        founders=founders,
    )


def manager_config(listen: str, founders: Founders) -> bytes:
    """Write the manager's launch configuration."""
    config = LaunchConfig(
        listen=listen,
        founders=founders.founders,
        state_dir="/host/state",
        collateral="/host/collateral",
        verifier_processes=1,
    )
    return config.encode()


def install_collateral(host_dir: Path, paths: list[Path], *, quiet: bool = False) -> None:
    """Copy trust bundles to where the manager looks for them; it verifies them itself.

    Raises:
        EncodingError: a bundle is malformed.
    """
    folder = host_dir / "collateral"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in paths:
        bundle = TrustBundle.decode(read_file(path))
        if bundle.anchor.simulated and not quiet:
            simulated_banner(note, bundle.anchor.domain)
        write_file(folder / f"{bundle.anchor.domain.replace(':', '-')}.json", bundle.encode())


@app.command()
def start(
    identities: Identities,
    platform: Annotated[Path, typer.Option(help="the platform's socket")],
    image: Image,
    listen: Annotated[str, typer.Option(help="address:port")],
    host_dir: Annotated[Path, typer.Option(help="directory for state and collateral; sees only ciphertext")],
    collateral: Annotated[list[Path], typer.Option(help="trust bundles of the endorsers", exists=True)],
) -> None:
    """Start the manager in an enclave and stay until it ends."""
    founders = founders_of(identities)
    install_collateral(host_dir, collateral)
    await_platform(platform)
    prepare_host(platform, host_dir, ("state",))
    entry = entry_of(image, "manager")
    client, handle = launch(platform, entry, config=manager_config(listen, founders), host_dir=host_dir)
    raise typer.Exit(client.wait(handle))


@app.command()
def reference(
    identities: Identities,
    image: Image,
    platform: Annotated[Path, typer.Option(help="platform.json of the manager's machine", exists=True)],
    address: Annotated[str, typer.Option(help="address:port of the manager")],
    target: Annotated[Path, typer.Option("--out", help="the reference file")],
) -> None:
    """Write down which manager to accept: image, platform, trust domain and founders. Read it before you use it."""
    found = reference_of(image, platform, address, founders_of(identities))
    write_file(target, found.encode())
    out.print(f"{target}: measurement {found.measurements[0]}")


@app.command()
def attest(
    home: Home,
    reference_file: Annotated[Path, typer.Option("--reference", help="what you accept", exists=True)],
    collateral: Annotated[Path, typer.Option(help="your own trust bundle, or a folder of them", exists=True)],
    replace: Annotated[bool, typer.Option("--replace", help="accept another manager than the pinned one")] = False,  # noqa: FBT002
    wait: Wait = 0.0,
    json: Json = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Attest the manager with your own nonce; pin it, and keep the trust bundle for your later attestations."""
    party = PartyHome(home)
    accepted = ManagerReference.decode(read_file(reference_file))
    trust = TrustStore.load(collateral)
    appraised = until_ready(lambda: attest_manager(party, accepted, trust, now=int(time.time()), replace=replace), wait)
    if collateral.is_file():
        write_file(party.collateral_path, read_file(collateral))
    verified, statement = appraised.verified, appraised.statement
    if json:
        print_json({"claims": verified.to_record(), "statement": strict_json.decode(statement.encode())})
        return
    if verified.simulated:
        simulated_banner(out, verified.trust_domain)
    out.print(f"manager at {accepted.address}: accepted and pinned")
    out.print(f"  measurement {verified.measurement.hex()}")
    out.print(f"  platform    {verified.platform_id.hex()}  tcb {verified.tcb_status}")
    if isinstance(statement, ManagerClaims):
        out.print(f"  log         {statement.log_length} entries, head {statement.log_head.hex()}")
        out.print(f"  rollback protection: {statement.rollback_protection}")
