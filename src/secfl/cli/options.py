"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Home", "Json", "PolicyFile"]

Home = Annotated[Path, typer.Option("--home", help="the party's home directory", envvar="SECFL_HOME")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
PolicyFile = Annotated[Path, typer.Argument(help="a policy file", exists=True, dir_okay=False)]
