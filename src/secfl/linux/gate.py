"""The gate: a process executed afresh, without keys, that builds a program's surroundings and watches over it.

It stands between the key-holding shield and the program: outside the program's process namespace, so the program cannot
reach it, and never holding the shield's memory. It dies with the shield (it watches the shield's descriptor, since the
kernel's parent-death signal would fire when a mere thread of the shield ends), and PID 1 of the program dies with it.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from typing import NoReturn

from secfl.errors import ConfigError, SecflError, StateError
from secfl.linux import packets
from secfl.linux.fuse_mount import mount_fuse, open_device
from secfl.linux.init import Streams, become_init, exit_code
from secfl.linux.mounts import DEVICES, NewRoot, make_private, mount_tmpfs
from secfl.linux.namespaces import in_initial_user_namespace
from secfl.linux.program import ProgramSpec
from secfl.linux.syscalls import CloneFlags, set_dumpable, setns, unshare

__all__ = ["FAILED", "RUN_DIRECTORY", "STAGE", "main"]

FAILED = 125
"""Exit code when nothing was started, as in container tools."""
RUN_DIRECTORY = "/run/secfl"
STAGE = "/tmp"  # noqa: S108 - a private tmpfs is mounted over it first
_NAMESPACES = CloneFlags.NEWNS | CloneFlags.NEWPID | CloneFlags.NEWIPC | CloneFlags.NEWUTS | CloneFlags.NEWCGROUP
_RUN_BYTES = 64 << 20


def main(arguments: list[str]) -> NoReturn:
    """Run the gate; the arguments are descriptor numbers and the shield's process id."""
    control_fd, spec_fd, network, stdout, stderr, shield = (int(argument) for argument in arguments)
    control = socket.socket(fileno=control_fd)
    code = FAILED
    try:
        set_dumpable(allowed=False)
        os.umask(0o022)
        lifeline = _watch(shield)
        with os.fdopen(spec_fd, "rb") as stream:
            stream.seek(0)
            spec = ProgramSpec.decode(stream.read())
        root = _prepare(spec, network, control)
        process = _fork_init(spec, root, (control, stdout, stderr))
        code = _watch_over(process, lifeline, control)
    except SecflError as error:
        _report(control, error)
    except OSError as error:
        _report(control, StateError("launch.failed", error.strerror or "a system call failed"))
    os._exit(code)


def _watch(shield: int) -> int:
    descriptor = os.pidfd_open(shield)
    if os.getppid() != shield:
        raise StateError("launch.shield_gone", "the launching shield has ended")
    return descriptor


def _prepare(spec: ProgramSpec, network: int, control: socket.socket) -> NewRoot:
    if spec.uid == 0 and in_initial_user_namespace():
        # Files such as /proc/sys/kernel/core_pattern obey the machine's uid 0 even without capabilities.
        raise ConfigError("launch.root_refused", "a program never runs as the machine's root")
    setns(network, CloneFlags.NEWNET)
    unshare(_NAMESPACES)
    make_private()
    # Held open, since the source may lie below the directory that the stage is about to cover.
    source = os.open(spec.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mount_tmpfs(STAGE, mode=0o700)
    root = NewRoot(f"/proc/self/fd/{source}", STAGE)
    root.directory("/proc")
    root.devices("/dev", DEVICES)
    root.tmpfs("/dev/shm", mode=0o1777, size=spec.tmp_bytes)  # noqa: S108
    root.tmpfs("/tmp", mode=0o1777, size=spec.tmp_bytes)  # noqa: S108
    root.tmpfs("/run", mode=0o755, size=_RUN_BYTES, owner=spec.uid)
    run = root.directory(RUN_DIRECTORY)
    os.chown(run, spec.uid, spec.uid)
    for file in spec.files:
        root.file(file.path, file.data, mode=file.mode, owner=spec.uid)
    for point in spec.mounts:
        root.directory(point.path)
    os.close(source)
    handed = [os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    for point in spec.mounts:
        target = root.directory(point.path)
        handed.append(open_device())
        # The program is another user only below the machine's own root, whom FUSE could not keep out anyway.
        mount_fuse(handed[-1], target, read_only=point.read_only, allow_other=spec.uid != os.getuid())
    packets.send(control, {"event": "prepared"}, handed)
    for descriptor in handed:
        # The server's end must not live on here: closing it is how a dead server becomes an error for the program.
        os.close(descriptor)
    if packets.receive(control) is None:
        raise StateError("launch.shield_gone", "the launching shield has ended")
    return root


def _fork_init(spec: ProgramSpec, root: NewRoot, ends: tuple[socket.socket, int, int]) -> int:
    control, stdout, stderr = ends
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        # Kept open for as long as the gate lives; never written.
        os.close(reader)
        os.close(stdout)
        os.close(stderr)
        return pid
    os.close(writer)
    try:
        become_init(spec, root, Streams(control, reader, stdout, stderr))
    except SecflError as error:
        _report(control, error)
    except OSError as error:
        _report(control, StateError("launch.failed", error.strerror or "a system call failed"))
    os._exit(FAILED)


def _watch_over(process: int, lifeline: int, control: socket.socket) -> int:
    ended = os.pidfd_open(process)
    poll = select.poll()
    for descriptor in (ended, lifeline, control.fileno()):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if ended in ready:
            return exit_code(os.waitpid(process, 0)[1])
        if lifeline in ready:
            os.kill(process, signal.SIGKILL)
            poll.unregister(lifeline)
        elif control.fileno() in ready:
            request = packets.receive(control)
            if request is None:
                # The shield let go of the program without waiting for it.
                os.kill(process, signal.SIGKILL)
                poll.unregister(control.fileno())
            else:
                os.kill(process, int(request.message["signal"]))


def _report(control: socket.socket, error: SecflError) -> None:
    try:
        packets.send(control, packets.describe_error(error))
    except SecflError:
        # Nobody is left to read it; the exit code says it as well.
        return


if __name__ == "__main__":
    main(sys.argv[1:])
