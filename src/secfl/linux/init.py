"""PID 1 of a program's process namespace: holds no keys; starts the program, reaps, forwards signals, passes its code.

It is a fork of the gate, which was executed afresh, so no byte of the shield's memory is in it. Everything that the
program must not be able to do is given up here, in this order: mounts while still privileged; then the user namespace,
whose only user is the program's; then all capabilities; then, in the program's own process, new privileges and system
calls; last the descriptors (a socket inherited by accident would defeat all the rest).
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import socket
from dataclasses import dataclass
from typing import NoReturn

from secfl.errors import ConfigError, StateError
from secfl.linux import packets, seccomp
from secfl.linux.mounts import NewRoot, mount_proc
from secfl.linux.namespaces import drop_capabilities, map_single_user
from secfl.linux.program import ProgramSpec
from secfl.linux.syscalls import Prctl, prctl, set_dumpable, set_no_new_privileges

__all__ = ["PROGRAM_UID", "Streams", "become_init", "close_all_but", "exit_code"]

PROGRAM_UID = 1000
"""User and group that the program sees itself as: several tools refuse to run as 0."""
HOSTNAME = "secfl"
_ALL_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_NOT_FORWARDED = frozenset({signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP})


@dataclass(frozen=True, slots=True)
class Streams:
    """Descriptors that init starts with.

    Attributes:
        control: to the shield, until the program runs.
        lifeline: reading end of a pipe whose other end only the gate holds.
        stdout: the program's.
        stderr: the program's.
    """

    control: socket.socket
    lifeline: int
    stdout: int
    stderr: int


def become_init(spec: ProgramSpec, root: NewRoot, streams: Streams) -> NoReturn:
    """Turn this first process of a new process namespace into init; ends with the program's code.

    Raises:
        ConfigError: `launch.exec_failed`, `linux.not_permitted` or `seccomp.unknown_machine`.
        StateError: `launch.gate_gone` or `linux.call_failed`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
    close_all_but((streams.control.fileno(), streams.lifeline, streams.stdout, streams.stderr))
    socket.sethostname(HOSTNAME)
    mount_proc(root.directory("/proc"))
    root.enter()
    _take_user(spec.uid)
    _tie_to_gate(streams.lifeline)
    drop_capabilities()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    program = _start(spec, streams)
    packets.send(streams.control, {"event": "started"})
    close_all_but(())
    _serve(program)


def close_all_but(kept: tuple[int, ...]) -> None:
    """Close every descriptor that is not listed."""
    low = 0
    for descriptor in sorted(kept):
        # CPython turns the empty range (0, 0) into "all".
        if low < descriptor:
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 2**31 - 1)


def exit_code(status: int) -> int:
    """Turn a wait status into a shell's exit code: 128 + n for signal n."""
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _take_user(uid: int) -> None:
    if uid != os.geteuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    map_single_user(PROGRAM_UID)


def _tie_to_gate(lifeline: int) -> None:
    prctl(Prctl.SET_PDEATHSIG, signal.SIGKILL)
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    if poll.poll(0):
        # The gate died before the tie was made; in a new process namespace getppid() cannot tell.
        raise StateError("launch.gate_gone", "the launching process has ended")


def _start(spec: ProgramSpec, streams: Streams) -> int:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _run(spec, streams, writer)
    os.close(writer)
    # Empty when execve succeeded: the pipe closed itself.
    reason = os.read(reader, 256)
    os.close(reader)
    if reason:
        os.waitpid(pid, 0)
        raise ConfigError("launch.exec_failed", "the program cannot be started: " + reason.decode("ascii", "replace"))
    return pid


def _run(spec: ProgramSpec, streams: Streams, writer: int) -> NoReturn:
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDONLY)
        # Targets may be sources: move all out of the way before any is overwritten.
        moved = [_move_up(descriptor) for descriptor in (null, streams.stdout, streams.stderr, writer)]
        for target, descriptor in enumerate(moved[:3]):
            os.dup2(descriptor, target)
        writer = moved[3]
        close_all_but((0, 1, 2, writer))
        os.chdir(spec.cwd)
        os.umask(0o077)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        set_no_new_privileges()
        seccomp.install()
        os.execve(spec.argv[0], spec.argv, dict(spec.env))  # noqa: S606 - a shell would interpret arguments
    except BaseException as error:  # noqa: BLE001 - this process ends; init raises it with a code
        os.write(writer, (getattr(error, "strerror", None) or type(error).__name__).encode("ascii", "replace"))
    os._exit(127)


def _serve(program: int) -> NoReturn:
    set_dumpable(allowed=False)
    while True:
        received = signal.sigwaitinfo(_ALL_SIGNALS)
        if received.si_signo not in _NOT_FORWARDED:
            _forward(program, received.si_signo)
        _reap(program)


def _forward(program: int, number: int) -> None:
    try:
        os.kill(program, number)
    except ProcessLookupError:
        return


def _reap(program: int) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid == program:
            # The kernel ends whatever else still runs in the namespace.
            os._exit(exit_code(status))


def _move_up(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
