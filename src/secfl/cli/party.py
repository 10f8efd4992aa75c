"""`secfl party`: a party's keys."""

from __future__ import annotations

from typing import Annotated

import typer

from secfl.cli.console import out, print_json
from secfl.cli.options import Home, Json
from secfl.party.home import PartyHome

__all__ = ["app"]

app = typer.Typer(help="Make and show a party's keys.", no_args_is_help=True)


@app.command()
def create(name: Annotated[str, typer.Argument(help="the party's name")], home: Home) -> None:
    """Make the signing and the recipient key of a party."""
    created = PartyHome.create(home, name)
    out.print(f"party {name}: hand over {created.identity_path}")
    out.print(f"key id {created.identity().signing_key.key_id}")


@app.command()
def show(home: Home, json: Json = False) -> None:  # noqa: FBT002 - a command-line flag
    """Show the public identity."""
    identity = PartyHome(home).identity()
    if json:
        print_json({**identity.document(), "key_id": identity.signing_key.key_id})
        return
    out.print(f"party {identity.name}, key id {identity.signing_key.key_id}")
