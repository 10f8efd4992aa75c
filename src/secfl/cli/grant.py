"""`secfl grant`: consent of a data or code owner to one version of one study."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from secfl.cli.console import out
from secfl.cli.options import Home, PolicyFile
from secfl.errors import ConfigError
from secfl.party.documents import grant_imports
from secfl.party.home import PartyHome, read_file
from secfl.party.session import ManagerSession
from secfl.protocol.party import Revocation

__all__ = ["app"]

app = typer.Typer(help="Who may use your volumes.", no_args_is_help=True)
_DAY = 24 * 3600


@app.command()
def create(
    file: PolicyFile,
    home: Home,
    days: Annotated[int, typer.Option(help="how long it holds")] = 30,
) -> None:
    """Grant a study what it imports from you; a changed study needs a new grant."""
    if not 0 < days <= 3650:
        raise ConfigError("grant.days", "a grant holds for 1 to 3650 days")
    session = ManagerSession(PartyHome(home))
    for volume, grant in grant_imports(session, read_file(file), expires=int(time.time()) + days * _DAY).items():
        out.print(f"{volume}: granted, {grant}")


@app.command()
def revoke(grant: Annotated[str, typer.Argument(help="the grant's id")], home: Home) -> None:
    """End a grant; no key is released under it from now on."""
    session = ManagerSession(PartyHome(home))
    session.submit("grants/revoke", Revocation(deployment_id=session.deployment_id, grant=grant))
    out.print(f"{grant}: revoked")
