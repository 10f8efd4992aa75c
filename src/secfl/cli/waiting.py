"""Waiting: a command started before the process that it asks is ready tries again, for as long as it was told to."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from secfl.errors import SecflError, StateError, UnavailableError

__all__ = ["Wait", "until_ready"]

Result = TypeVar("Result")
Wait = Annotated[float, typer.Option("--wait", min=0, max=3600, help="seconds to wait until it answers")]
_PAUSE_SECONDS = 0.2


def until_ready(action: Callable[[], Result], seconds: float) -> Result:
    """Do something; while its partner is not there yet, try again. Any other error ends it at once.

    Raises:
        SecflError: what the last attempt raised.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except (UnavailableError, StateError) as error:
            if not _not_yet(error) or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_SECONDS)


def _not_yet(error: SecflError) -> bool:
    return isinstance(error, UnavailableError) or error.code == "service.not_running"
