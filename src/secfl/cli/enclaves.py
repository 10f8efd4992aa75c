"""Starting enclaves from the command line: manager and services, on the platform of this site."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfl.crypto import strict_json
from secfl.errors import ConfigError, UnavailableError
from secfl.party.home import read_file
from secfl.tee.simulated.client import EnclaveHandle, PlatformClient
from secfl.tee.simulated.requests import EnclaveCommand

__all__ = ["Entry", "await_platform", "entry_of", "launch", "prepare_host"]

_PLATFORM_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One way to start a runtime image, from its reference file."""

    image: Path
    command: EnclaveCommand
    measurements: dict[str, str]


def entry_of(image: Path, name: str) -> Entry:
    """Read an entry of an image's reference file.

    Raises:
        ConfigError: `image.entry` or an unreadable file.
        EncodingError: the file is not canonical JSON.
    """
    document: Any = strict_json.decode(read_file(image / "reference.json"))
    try:
        found = document["entrypoints"][name]
        command = EnclaveCommand(tuple(found["argv"]), dict(found["env"]), str(found["cwd"]))
        return Entry(image, command, dict(found["measurements"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError("image.entry", f"{image} has no entry {name}", hint="secfl image build") from error


def launch(
    platform: Path, entry: Entry, *, config: bytes, host_dir: Path, console: int | None = None
) -> tuple[PlatformClient, EnclaveHandle]:
    """Launch an entry on a platform; its output goes to `console`, by default to our own standard output.

    Raises:
        ConfigError: `platform.files_unreadable`.
        StateError: the platform refused.
        UnavailableError: the platform does not answer.
    """
    client = PlatformClient(platform)
    output = console if console is not None else sys.stdout.fileno()
    errors = console if console is not None else sys.stderr.fileno()
    handle = client.launch(entry.image, entry.command, config=config, host_dir=host_dir, stdout=output, stderr=errors)
    return client, handle


def await_platform(platform: Path, *, seconds: float = _PLATFORM_SECONDS) -> None:
    """Wait until a platform process that was just started answers.

    Raises:
        UnavailableError: `platform.not_running`.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            PlatformClient(platform).list()
        except UnavailableError as error:
            if time.monotonic() > deadline:
                raise UnavailableError(
                    "platform.not_running", f"no platform answers at {platform}", hint="secfl simulated run DIRECTORY"
                ) from error
        else:
            return
        time.sleep(0.1)


def prepare_host(platform: Path, host_dir: Path, folders: Iterable[str] = ()) -> None:
    """Make the host directory and folders in it, and give all of it to the site's user, who owns the platform's socket.

    Raises:
        ConfigError: `platform.host_dir`.
    """
    try:
        owner = platform.stat().st_uid
        host_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in folders:
            (host_dir / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0 and owner != 0:
            for place in (host_dir, *host_dir.rglob("*")):
                status = place.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                    # Its other name may be a file of the system, which would be given away with it (FS-08).
                    raise ConfigError("platform.host_dir", f"{place} has a second name", hint="copy the file")
                os.chown(place, owner, owner, follow_symlinks=False)
    except OSError as error:
        raise ConfigError("platform.host_dir", f"cannot prepare {host_dir}: {error.strerror}") from error
