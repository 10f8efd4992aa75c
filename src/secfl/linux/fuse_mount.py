"""FUSE connections: open the device, mount it, run its server in a child.

The device must be opened *inside* the user namespace that mounts it: the kernel compares the two. A server that is to
outlive a `pivot_root` imports everything it needs before, since its own root may become the mount that it serves.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from secfl.errors import ConfigError
from secfl.linux.fuse_wire import MAX_TRANSFER_BYTES
from secfl.linux.syscalls import MountFlags, die_with_parent, mount

__all__ = ["DEVICE", "fork_server", "mount_fuse", "open_device"]

DEVICE = "/dev/fuse"


def open_device() -> int:
    """Open a new FUSE connection.

    Raises:
        ConfigError: `fuse.unavailable`.
    """
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            "fuse.unavailable",
            f"{DEVICE} cannot be opened: {error.strerror}",
            hint="make the FUSE device readable and writable for this account",
        ) from error


def mount_fuse(
    fd: int, target: str, *, name: str = "secfl", read_only: bool = False, allow_other: bool = False, exec_: bool = True
) -> None:
    """Mount a connection at a directory of the caller's mount namespace, for the caller's user and group.

    Without `allow_other`, no other user reaches the files, root of the machine included. Set-user-id bits and device
    nodes have no effect. The kernel checks permissions from the modes that the server reports.

    Raises:
        ConfigError: `linux.not_permitted` or `linux.not_supported`.
        StateError: `linux.call_failed`.
    """
    options = [
        f"fd={fd}",
        f"rootmode={stat.S_IFDIR:o}",
        f"user_id={os.getuid()}",
        f"group_id={os.getgid()}",
        f"max_read={MAX_TRANSFER_BYTES}",
        "default_permissions",
    ]
    if allow_other:
        options.append("allow_other")
    flags = MountFlags.NOSUID | MountFlags.NODEV
    flags |= MountFlags.RDONLY if read_only else MountFlags.NONE
    flags |= MountFlags.NONE if exec_ else MountFlags.NOEXEC
    mount(name, target, fstype=f"fuse.{name}", flags=flags, options=",".join(options))


def fork_server(serve: Callable[[], None], *, keep: Sequence[int] = ()) -> int:
    """Run `serve` in a child that the kernel kills when this thread ends; give its pid.

    The child keeps the standard streams and the descriptors in `keep`, nothing else. It exits with 0 when `serve`
    returns and with 70 when it raises. Call it before this process starts threads.
    """
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        _run_child(serve, parent, keep)
    return pid


def _run_child(serve: Callable[[], None], parent: int, keep: Sequence[int]) -> NoReturn:
    status = 70
    try:
        die_with_parent(signal.SIGKILL, parent)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # A copy of another mount's connection or of a client's socket would keep it alive after its owner's end.
        low = 3
        for fd in sorted({*keep}):
            os.closerange(low, fd)
            low = fd + 1
        os.closerange(low, os.sysconf("SC_OPEN_MAX"))
        serve()
        status = 0
    except BaseException:  # noqa: BLE001 - as the interpreter itself does for what nobody catches
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
