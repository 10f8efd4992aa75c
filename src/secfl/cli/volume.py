"""`secfl volume`: pack data or code, register it at the manager, look at what was packed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from secfl.cli.console import note, out, print_json
from secfl.cli.options import Home, Json
from secfl.party.home import PartyHome
from secfl.party.packing import pack_volume, register_volume
from secfl.party.session import ManagerSession

__all__ = ["app"]

app = typer.Typer(help="Encrypted volumes of this party.", no_args_is_help=True)


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(help="folder to pack", exists=True, file_okay=False)],
    volume: Annotated[str, typer.Option(help="the volume's name")],
    target: Annotated[Path, typer.Option("--out", help="new directory for the sealed image")],
    home: Home,
    json: Json = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Pack a folder into a sealed image under a key of your own."""
    with note.status(f"packing {source}"):
        owned, packed = pack_volume(PartyHome(home), source, target, volume=volume)
    if json:
        print_json({**owned.document(), "files": packed.files, "bytes": packed.total_bytes})
        return
    out.print(f"{owned.policy}: {packed.files} files, {packed.total_bytes} bytes, root {owned.root}")
    out.print(f"hand over {target / 'volume.json'}; the sealed image itself goes to the sites that use it")


@app.command()
def register(
    directory: Annotated[Path, typer.Argument(help="what `secfl volume pack` made", exists=True)], home: Home
) -> None:
    """Put your own policy for the volume in force and deposit its key, sealed to the attested manager."""
    session = ManagerSession(PartyHome(home))
    owned = register_volume(session, directory, now=int(time.time()))
    out.print(f"{owned.policy}: policy {owned.policy_hash} in force, key deposited")
