"""Starting enclaves from the command line: manager and services, on the platform of this site."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfl.crypto import strict_json
from secfl.errors import ConfigError
from secfl.party.home import read_file
from secfl.tee.simulated.client import EnclaveHandle, PlatformClient
from secfl.tee.simulated.requests import EnclaveCommand

__all__ = ["Entry", "entry_of", "launch"]


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
        EncodingError: the file is malformed.
    """
    document: dict[str, Any] = strict_json.decode(read_file(image / "reference.json"))
    found = document.get("entrypoints", {}).get(name)
    if found is None:
        raise ConfigError("image.entry", f"{image} has no entry {name}", hint="secfl image build")
    command = EnclaveCommand(tuple(found["argv"]), found["env"], found["cwd"])
    return Entry(image, command, found["measurements"])


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
    os.makedirs(host_dir, mode=0o700, exist_ok=True)  # noqa: PTH103 - keeps the mode of existing parents
    handle = client.launch(entry.image, entry.command, config=config, host_dir=host_dir, stdout=output, stderr=errors)
    return client, handle
