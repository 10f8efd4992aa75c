"""The launcher: starts a program in namespaces of its own and holds its handle; used by the shield.

The caller keeps its keys: the processes between it and the program are executed afresh. Order: the gate builds the
private root and mounts the volumes; their FUSE descriptors come back here and get their servers; only then does the
gate start PID 1 and the program. Needs CAP_SYS_ADMIN in the own user namespace, which the shield has in its enclave.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from secfl.errors import ConfigError, StateError, UnavailableError
from secfl.linux import packets
from secfl.linux.namespaces import NetworkNamespace
from secfl.linux.program import ProgramSpec

__all__ = ["RunningProgram", "ServeVolume", "launch_program"]

ServeVolume = Callable[[int], None]
"""Starts the server of one volume on the FUSE descriptor that it then owns, and returns."""
_LAUNCH_SECONDS = 30.0


class RunningProgram:
    """A started program; it ends when its handle is closed or dropped, so keep the handle."""

    def __init__(self, gate: subprocess.Popen[bytes], control: socket.socket, run_directory: int) -> None:
        self._gate = gate
        self._control = control
        self._ended = os.pidfd_open(gate.pid)
        self.run_directory = run_directory
        """The program's /run/secfl. Its content is the program's: open entries with O_NOFOLLOW only."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the program has ended, for an event loop."""
        return self._ended

    def poll(self) -> int | None:
        """Return the exit code (128 + n for signal n), or None while the program runs."""
        code = self._gate.poll()
        return None if code is None else _code(code)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code (128 + n for signal n).

        Raises:
            UnavailableError: `launch.still_running` after the time-out.
        """
        try:
            return _code(self._gate.wait(timeout))
        except subprocess.TimeoutExpired:
            raise UnavailableError("launch.still_running", "the program has not ended yet") from None

    def signal(self, number: int) -> None:
        """Send the program a signal.

        Raises:
            StateError: `launch.ended`.
        """
        try:
            packets.send(self._control, {"signal": int(number)})
        except UnavailableError:
            raise StateError("launch.ended", "the program has ended") from None

    def stop(self, *, grace: float) -> int:
        """Ask the program to end, then end it; returns the exit code.

        Raises:
            UnavailableError: `launch.still_running`: not even SIGKILL ended it in 10 s.
        """
        for number, timeout in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
            try:
                self.signal(number)
                return self.wait(timeout)
            except StateError:
                return self.wait(timeout)
            except UnavailableError:
                if number == signal.SIGKILL:
                    raise
        raise UnavailableError("launch.still_running", "the program has not ended yet")

    def close(self) -> None:
        """End the program if it still runs, and let go of everything.

        Raises:
            UnavailableError: `launch.still_running`.
        """
        # The gate ends the program when this end closes.
        self._control.close()
        self.wait(10.0)
        for descriptor in (self._ended, self.run_directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._ended = self.run_directory = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def launch_program(
    spec: ProgramSpec,
    *,
    network: NetworkNamespace,
    stdout: int,
    stderr: int,
    servers: Sequence[ServeVolume] = (),
) -> RunningProgram:
    """Start a program; `servers` answer for `spec.mounts`, in that order.

    Raises:
        ConfigError: `launch.servers_mismatch`, `launch.exec_failed`, `launch.path_occupied`, `launch.root_refused`,
            `linux.not_permitted` and further codes of the building process.
        StateError: `launch.gate_gone` or `linux.call_failed`.
    """
    if len(servers) != len(spec.mounts):
        raise ConfigError("launch.servers_mismatch", "every volume needs exactly one server")
    ours, theirs = packets.pair()
    ours.settimeout(_LAUNCH_SECONDS)
    memory = packets.sealed_memory("secfl-program", spec.encode())
    # Copies: the caller's own numbers may be 1 and 2, which the gate itself does not get.
    streams = (os.dup(stdout), os.dup(stderr))
    passed = (theirs.fileno(), memory, network.fileno(), *streams)
    try:
        gate = subprocess.Popen(
            [sys.executable, "-I", "-B", "-m", "secfl.linux.gate", *map(str, (*passed, os.getpid()))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=passed,
            cwd="/",
            env={"LANG": "C.UTF-8"},
            start_new_session=True,
        )
    finally:
        for descriptor in (memory, *streams):
            os.close(descriptor)
        theirs.close()
    try:
        return RunningProgram(gate, ours, _complete(ours, servers))
    except BaseException:
        ours.close()
        gate.kill()
        gate.wait()
        raise


def _complete(control: socket.socket, servers: Sequence[ServeVolume]) -> int:
    prepared = _expect(control, "prepared", descriptors=len(servers) + 1)
    run_directory, *volumes = prepared.descriptors
    try:
        for serve in servers:
            serve(volumes.pop(0))
        packets.send(control, {"event": "go"})
        _expect(control, "started")
    except BaseException:
        for descriptor in (run_directory, *volumes):
            os.close(descriptor)
        raise
    return run_directory


def _expect(control: socket.socket, event: str, *, descriptors: int = 0) -> packets.Packet:
    try:
        packet = packets.receive(control, descriptors=descriptors)
    except UnavailableError:
        packet = None
    if packet is None:
        raise StateError("launch.gate_gone", "the launching process ended without an answer")
    if "error" in packet.message:
        raise packets.rebuild_error(packet.message)
    if packet.message["event"] != event or len(packet.descriptors) != descriptors:
        raise StateError("launch.gate_gone", "the launching process gave an unexpected answer")
    return packet


def _code(code: int) -> int:
    return code if code >= 0 else 128 - code
