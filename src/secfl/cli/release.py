"""`secfl release`: receive a model that the policy releases to this party."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secfl.cli.console import out
from secfl.cli.options import Home
from secfl.party.home import PartyHome
from secfl.party.receive import open_release, unpack
from secfl.party.session import ManagerSession

__all__ = ["app"]

app = typer.Typer(help="Receive a released model.")


@app.command()
def get(
    study: Annotated[str, typer.Argument()],
    volume: Annotated[str, typer.Argument()],
    source: Annotated[Path, typer.Option("--from", help="the release volume's directory", exists=True)],
    target: Annotated[Path, typer.Option("--out", help="new directory for the plain files")],
    home: Home,
) -> None:
    """Get the key, sealed to your recipient key, and unpack the release volume."""
    image = open_release(ManagerSession(PartyHome(home)), study, volume, source)
    for path in unpack(image, target):
        out.print(str(path), markup=False)
