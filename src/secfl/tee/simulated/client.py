"""The operator's side of the platform socket: launch, list, wait, stop.

Nothing that it returns is evidence: the operator's own machine says it to the operator.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfl.errors import ConfigError, EncodingError, UnavailableError
from secfl.linux import packets
from secfl.tee.simulated.requests import EnclaveCommand

__all__ = ["EnclaveHandle", "PlatformClient"]

_LAUNCH_SECONDS = 60.0
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class EnclaveHandle:
    """A launched enclave.

    Attributes:
        name: its identifier at this platform.
        measurement: what the platform says it measured.
    """

    name: str
    measurement: bytes


class PlatformClient:
    """Talks to one platform process; one connection a call."""

    def __init__(self, path: Path) -> None:
        """Remember where the platform listens."""
        self._path = path

    def launch(
        self,
        image_dir: Path,
        command: EnclaveCommand,
        *,
        config: bytes,
        host_dir: Path,
        stdout: int,
        stderr: int,
    ) -> EnclaveHandle:
        """Start an enclave and return once it runs.

        Args:
            image_dir: holds `data` and `manifest`.
            command: what runs in the image; measured with it.
            config: the untrusted launch configuration, at descriptor 4 inside.
            host_dir: the site's directory, at /host inside; belongs to the site's user.
            stdout: descriptor for the enclave's output.
            stderr: descriptor for its errors.

        Raises:
            ConfigError: `platform.files_unreadable`, `platform.image_refused`, `platform.host_dir_refused`,
                `platform.config_refused`, and codes of `secfl.linux`.
            AuthorizationError: `platform.not_allowed`.
            VerificationError: the image is not authentic, with the codes of `open_image`.
            StateError: `platform.launch_failed`, `platform.exec_failed` or `platform.full`.
            UnavailableError: `platform.unavailable`.
        """
        opened: list[int] = []
        try:
            for path, kind in (
                (image_dir / "manifest", 0),
                (image_dir / "data", 0),
                (host_dir, os.O_DIRECTORY),
            ):
                opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | kind))
            opened.append(packets.sealed_memory("secfl-config", config))
            message = {
                "op": "launch",
                "argv": list(command.argv),
                "env": dict(command.env),
                "cwd": command.cwd,
            }
            answer = self._ask(message, (*opened, stdout, stderr), timeout=_LAUNCH_SECONDS)
        except OSError as error:
            raise ConfigError("platform.files_unreadable", f"cannot open: {error.strerror}") from error
        finally:
            for descriptor in opened:
                os.close(descriptor)
        return EnclaveHandle(str(answer["id"]), bytes.fromhex(str(answer["measurement"])))

    def list(self) -> Sequence[Mapping[str, Any]]:
        """Return what the platform says of all its enclaves.

        Raises:
            UnavailableError: `platform.unavailable`.
        """
        enclaves: list[Mapping[str, Any]] = self._ask({"op": "list"})["enclaves"]
        return enclaves

    def wait(self, handle: EnclaveHandle, *, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code (128 + n for signal n).

        Raises:
            UnavailableError: `platform.unavailable`, also after the time-out.
            StateError: `platform.unknown_enclave`.
        """
        return int(self._ask({"op": "wait", "id": handle.name}, timeout=timeout)["exit"])

    def stop(self, handle: EnclaveHandle, *, grace: float) -> int:
        """Ask the enclave to end, after the grace period end it; returns the exit code.

        Raises:
            UnavailableError: `platform.unavailable`.
            StateError: `platform.unknown_enclave`.
        """
        self._ask({"op": "stop", "id": handle.name, "kill": False})
        try:
            return self.wait(handle, timeout=grace)
        except UnavailableError:
            self._ask({"op": "stop", "id": handle.name, "kill": True})
            return self.wait(handle, timeout=_ANSWER_SECONDS)

    def _ask(
        self, message: dict[str, Any], descriptors: Sequence[int] = (), *, timeout: float | None = _ANSWER_SECONDS
    ) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(timeout)
            try:
                connection.connect(str(self._path))
                packets.send(connection, message, descriptors)
                packet = packets.receive(connection)
            except (OSError, UnavailableError, EncodingError) as error:
                raise UnavailableError("platform.unavailable", "the platform does not answer") from error
        if packet is None:
            raise UnavailableError("platform.unavailable", "the platform does not answer")
        if "error" in packet.message:
            raise packets.rebuild_error(packet.message)
        return packet.message
