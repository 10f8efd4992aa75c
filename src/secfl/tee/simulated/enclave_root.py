"""The inside of a launch: the namespaces, the root file system and the descriptors that an enclave starts with.

The enclave sees its measured image, private /tmp, /run and /dev/shm, its own /proc, a few device nodes, and the site's
untrusted directory at /host (no execution, no devices). It shares the site's network namespace. The machine's real
root never becomes the enclave's user: the inner 0 is the site's own number.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from secfl.errors import ConfigError, SecflError, StateError
from secfl.linux import packets
from secfl.linux.fuse_mount import DEVICE, mount_fuse, open_device
from secfl.linux.init import close_all_but
from secfl.linux.mounts import DEVICES, NewRoot, make_private, mount_proc
from secfl.linux.syscalls import (
    CloneFlags,
    MountFlags,
    Prctl,
    mount,
    prctl,
    set_dumpable,
    set_no_new_privileges,
    unshare,
)
from secfl.tee.simulated.requests import EnclaveCommand

__all__ = ["CHANNEL_FD", "CONFIG_FD", "EnclaveFiles", "enter_namespaces", "run_enclave"]

CHANNEL_FD = 3
CONFIG_FD = 4
HOSTNAME = "enclave"
_STAGE = "/tmp"  # noqa: S108 - a private tmpfs is mounted over it first
_MADE, _FOUND = f"{_STAGE}/dev", "/dev"
_INNER = (
    CloneFlags.NEWUSER
    | CloneFlags.NEWNS
    | CloneFlags.NEWPID
    | CloneFlags.NEWIPC
    | CloneFlags.NEWUTS
    | CloneFlags.NEWCGROUP
)
_NODES = {"full": (1, 7), "fuse": (10, 229), "null": (1, 3), "random": (1, 8), "urandom": (1, 9), "zero": (1, 5)}
"""Device numbers, fixed in the kernel's devices.txt."""
_SMALL_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class EnclaveFiles:
    """Descriptors for an enclave: host directory, sealed configuration, streams."""

    host: int
    config: int
    stdout: int
    stderr: int

    def all(self) -> tuple[int, ...]:
        """Return them all."""
        return (self.host, self.config, self.stdout, self.stderr)


def enter_namespaces(host: int, *, user: int) -> str:
    """Enter the enclave's namespaces and return the directory with the device nodes to use.

    As root the nodes are made anew, since the machine's /dev/fuse may be closed to the site's user, before the user
    namespace is entered: a file system mounted inside one has no working devices.

    Raises:
        ConfigError: `platform.host_dir_refused`, `linux.not_permitted` or `linux.not_supported`.
        StateError: `linux.call_failed`.
    """
    os.umask(0o022)
    if user != os.geteuid():
        os.setgroups([])
        unshare(CloneFlags.NEWNS)
        make_private()
        _stage(host, owner=user)
        devices = _MADE
        _make_nodes(devices)
        unshare(_INNER)
    else:
        unshare(_INNER)
        devices = _FOUND
        # Without root, the monitor may write the map only of a process that is dumpable.
        set_dumpable(allowed=True)
    return devices


def run_enclave(
    devices: str, command: EnclaveCommand, files: EnclaveFiles, ends: tuple[socket.socket, socket.socket, int]
) -> NoReturn:
    """Become the enclave; runs as the first process of its process namespace.

    Never returns: an error goes to the platform over the control channel, then the process ends.
    """
    control, channel, lifeline = ends
    try:
        prctl(Prctl.SET_PDEATHSIG, signal.SIGKILL)
        if not os.read(lifeline, 1) or select.select([lifeline], [], [], 0)[0]:
            raise StateError("platform.gate_gone", "the launching process has ended")
        if devices == _MADE:
            mount(f"{devices}/fuse", DEVICE, flags=MountFlags.BIND)
        else:
            make_private()
            _stage(files.host, owner=0)
        _build_root(devices, control)
        socket.sethostname(HOSTNAME)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.setsid()
        set_no_new_privileges()
        control = _place_descriptors(files, channel, control)
        os.chdir(command.cwd)
        os.umask(0o077)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execve(command.argv[0], command.argv, dict(command.env))  # noqa: S606 - a shell would interpret arguments
    except SecflError as error:
        _fail(control, error)
    except OSError as error:
        _fail(control, StateError("platform.exec_failed", error.strerror or "a system call failed"))
    finally:
        os._exit(127)


def _stage(host: int, *, owner: int) -> None:
    directory = _reopen(host)
    mount("tmpfs", _STAGE, fstype="tmpfs", flags=MountFlags.NOSUID, options=f"mode=0700,uid={owner},gid={owner}")
    for name in ("dev", "host", "image"):
        Path(_STAGE, name).mkdir(0o755)
    mount(f"/proc/self/fd/{directory}", f"{_STAGE}/host", flags=MountFlags.BIND)
    os.close(directory)


def _reopen(descriptor: int) -> int:
    # A descriptor from outside refers to a mount of another namespace, which cannot be bound; the same place here can.
    place = Path(f"/proc/self/fd/{descriptor}").readlink()
    try:
        opened = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError("platform.host_dir_refused", "the host directory cannot be opened again") from error
    if not os.path.samestat(os.fstat(opened), os.fstat(descriptor)):
        os.close(opened)
        raise ConfigError("platform.host_dir_refused", "the host directory was moved meanwhile")
    return opened


def _make_nodes(directory: str) -> None:
    for name, (major, minor) in _NODES.items():
        path = Path(directory, name)
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(major, minor))
        path.chmod(0o666)


def _build_root(devices: str, control: socket.socket) -> None:
    connection = open_device()
    mount_fuse(connection, f"{_STAGE}/image", name="secfl-image", read_only=True)
    packets.send(control, {"event": "mounted"}, [connection])
    os.close(connection)
    if packets.receive(control) is None:
        raise StateError("platform.monitor_gone", "the monitor has ended")
    root = NewRoot(f"{_STAGE}/image", _STAGE)
    root.devices(devices, (*DEVICES, "fuse"))
    root.tmpfs("/dev/shm", mode=0o1777)  # noqa: S108
    root.tmpfs("/tmp", mode=0o1777)  # noqa: S108
    root.tmpfs("/run", mode=0o755, size=_SMALL_BYTES)
    mount_proc(root.directory("/proc"))
    place = root.directory("/host")
    flags = MountFlags.BIND | MountFlags.NOSUID | MountFlags.NODEV | MountFlags.NOEXEC
    mount(f"{_STAGE}/host", place, flags=MountFlags.BIND)
    mount("none", place, flags=MountFlags.REMOUNT | flags)
    root.enter()


def _place_descriptors(files: EnclaveFiles, channel: socket.socket, control: socket.socket) -> socket.socket:
    null = os.open("/dev/null", os.O_RDONLY)
    wanted = (null, files.stdout, files.stderr, channel.fileno(), files.config)
    moved = [_move_up(descriptor) for descriptor in wanted]
    report = _move_up(control.fileno())
    control.detach()
    for target, descriptor in enumerate(moved):
        os.dup2(descriptor, target)
    close_all_but((0, 1, 2, CHANNEL_FD, CONFIG_FD, report))
    return socket.socket(fileno=report)


def _move_up(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)


def _fail(end: socket.socket, error: SecflError) -> None:
    try:
        packets.send(end, packets.describe_error(error))
    except SecflError:
        # The other side is gone and learns it from its own end.
        return
