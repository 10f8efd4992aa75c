"""The command line: one file a command, loaded when it is called.

Exit codes follow the class of error (`docs/errors.md`): 0 is success, 2 wrong usage, 10 to 18 an error of the tree, 20
to 28 a bundle that does not hold (`docs/manager.md`), 1 anything else. `secfl run` ends with the program's own status,
or with 125 when it was not started. Only this module exits.
"""

from __future__ import annotations

import importlib
import os
import sys

import click
import typer

from secfl.cli.console import note, show_error
from secfl.errors import SecflError

__all__ = ["main"]

_GROUPS = {
    "attest": "attest a running service yourself, with your own nonce and reference values",
    "audit": "export, verify and read the audit bundle",
    "demo": "run a whole confidential federation of four hospitals on this machine",
    "grant": "let a study use your data, or stop it",
    "image": "build and measure the runtime image",
    "init": "write policy, site files and partition skeleton for a Flower app",
    "manager": "start and attest the Security Policy Manager",
    "party": "make and show a party's keys",
    "policy": "check, assemble, propose, vote, show",
    "release": "receive a released model",
    "run": "run a service of a study in an enclave",
    "simulated": "the simulated platform: root, platforms, platform process (no hardware protection)",
    "status": "who is missing, waiting or refused, and the next command for each",
    "volume": "pack, register and inspect encrypted volumes",
}


class _Lazy(click.Group):
    """A group that imports a command's module only when the command is used: start-up stays short."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the framework's signature
        return sorted(_GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _GROUPS:
            return None
        module = importlib.import_module(f"secfl.cli.{cmd_name}")
        return typer.main.get_command(module.app)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_GROUPS.items()))


@click.group(cls=_Lazy, help="Confidential federated learning that every party can check.")
def _root() -> None:
    """Hold the commands."""


def main() -> None:
    """Run a command and end with the exit code of its verdict."""
    try:
        status = _run()
        # Here, where a closed pipe still becomes an exit code.
        sys.stdout.flush()
    except BrokenPipeError:
        # A closed pipe must not look like success (SV-15); what is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def _run() -> int:
    try:
        status = _root(standalone_mode=False)
    except SecflError as error:
        show_error(error, as_json="--json" in sys.argv)
        return error.exit_code
    except click.exceptions.Abort:
        note.print("interrupted")
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return status if isinstance(status, int) else 0
