"""System calls that Python's `os` module lacks, by ctypes.

One function a call, no policy. Every failure becomes a typed error that carries the call and the errno name, so that
a caller can tell "this machine does not allow it" from "the state is wrong". Nothing here retries or falls back.
"""

from __future__ import annotations

import ctypes
import errno
import os
from enum import IntEnum, IntFlag
from functools import cache
from typing import NoReturn

from secfl.errors import ConfigError, SecflError, StateError

__all__ = [
    "CloneFlags",
    "MountFlags",
    "Prctl",
    "UmountFlags",
    "call_libc",
    "die_with_parent",
    "mount",
    "pivot_root",
    "prctl",
    "raise_errno",
    "set_dumpable",
    "set_no_new_privileges",
    "setns",
    "umount",
    "unshare",
]

_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
"""System call numbers by machine; libc has no wrapper for this one."""
_NOT_PERMITTED = frozenset({errno.EPERM, errno.EACCES})
_NOT_SUPPORTED = frozenset({errno.ENOSYS, errno.ENODEV, errno.EOPNOTSUPP, errno.ENOSPC, errno.EUSERS})


class CloneFlags(IntFlag):
    """Namespaces to leave or to enter (sched.h)."""

    NEWNS = 0x0002_0000
    NEWCGROUP = 0x0200_0000
    NEWUTS = 0x0400_0000
    NEWIPC = 0x0800_0000
    NEWUSER = 0x1000_0000
    NEWPID = 0x2000_0000
    NEWNET = 0x4000_0000


class MountFlags(IntFlag):
    """Flags of `mount` (sys/mount.h)."""

    NONE = 0
    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    REMOUNT = 32
    NOATIME = 1024
    BIND = 4096
    MOVE = 8192
    REC = 16384
    PRIVATE = 1 << 18
    SLAVE = 1 << 19
    RELATIME = 1 << 21


class UmountFlags(IntFlag):
    """Flags of `umount2`."""

    NONE = 0
    FORCE = 1
    DETACH = 2
    NOFOLLOW = 8


class Prctl(IntEnum):
    """Operations of `prctl` (sys/prctl.h)."""

    SET_PDEATHSIG = 1
    SET_DUMPABLE = 4
    SET_NAME = 15
    SET_SECCOMP = 22
    CAPBSET_DROP = 24
    SET_NO_NEW_PRIVS = 38
    CAP_AMBIENT = 47
    SET_IO_FLUSHER = 57


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def raise_errno(call: str, number: int) -> NoReturn:
    """Raise the typed error for an errno.

    Raises:
        ConfigError: `linux.not_permitted` or `linux.not_supported`: this machine or account does not offer the call.
        StateError: `linux.call_failed`.
    """
    name = errno.errorcode.get(number, str(number))
    error: SecflError
    if number in _NOT_PERMITTED:
        error = ConfigError("linux.not_permitted", "the kernel does not permit a call", call=call, errno=name)
    elif number in _NOT_SUPPORTED:
        error = ConfigError("linux.not_supported", "the kernel does not offer a call", call=call, errno=name)
    else:
        error = StateError("linux.call_failed", f"{call} failed: {os.strerror(number)}", call=call, errno=name)
    raise error


def call_libc(name: str, *args: int | bytes | ctypes.c_void_p | None, label: str | None = None) -> int:
    """Call a C library function that returns -1 and sets errno.

    Integers are passed as 64-bit values: a variadic C function such as `syscall` or `prctl` reads whole registers.

    Raises:
        ConfigError: `linux.not_permitted` or `linux.not_supported`.
        StateError: `linux.call_failed`.
    """
    function = _libc()[name]
    function.restype = ctypes.c_long
    result = int(function(*[ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]))
    # An `int` function leaves -1 in the low half of the register only.
    if result in (-1, 0xFFFF_FFFF):
        raise_errno(label or name, ctypes.get_errno())
    return result


def _path(path: str) -> bytes:
    if "\0" in path:
        raise ConfigError("linux.path_invalid", "a path holds a NUL byte")
    return os.fsencode(path)


def mount(
    source: str, target: str, *, fstype: str = "", flags: MountFlags = MountFlags.NONE, options: str = ""
) -> None:
    """Mount a file system in the caller's mount namespace.

    Raises:
        ConfigError: `linux.not_permitted`, `linux.not_supported` or `linux.path_invalid`.
        StateError: `linux.call_failed`.
    """
    kind = _path(fstype) if fstype else None
    data = _path(options) if options else None
    call_libc("mount", _path(source), _path(target), kind, int(flags), data)


def umount(target: str, *, flags: UmountFlags = UmountFlags.NONE) -> None:
    """Unmount a file system.

    Raises:
        ConfigError: `linux.not_permitted` or `linux.path_invalid`.
        StateError: `linux.call_failed`.
    """
    call_libc("umount2", _path(target), int(flags))


def unshare(flags: CloneFlags) -> None:
    """Move this process (for NEWPID: its next child) to new namespaces.

    Raises:
        ConfigError: `linux.not_permitted` or `linux.not_supported`.
        StateError: `linux.call_failed`; EINVAL when a thread runs and NEWUSER is asked for.
    """
    call_libc("unshare", int(flags))


def setns(fd: int, flags: CloneFlags) -> None:
    """Enter the namespace that a descriptor refers to.

    Raises:
        ConfigError: `linux.not_permitted`.
        StateError: `linux.call_failed`.
    """
    call_libc("setns", fd, int(flags))


def pivot_root(new_root: str, put_old: str) -> None:
    """Make a mount the root; the old root appears at `put_old`.

    Raises:
        ConfigError: `linux.not_permitted`, `linux.path_invalid`, or `linux.not_supported` on an unknown machine.
        StateError: `linux.call_failed`.
    """
    number = _SYS_PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise ConfigError("linux.not_supported", "no system call table for this machine", call="pivot_root")
    call_libc("syscall", number, _path(new_root), _path(put_old), label="pivot_root")


def prctl(operation: Prctl, *args: int) -> int:
    """Operate on the calling process; missing arguments are zero.

    Raises:
        ConfigError: `linux.not_permitted` or `linux.not_supported`.
        StateError: `linux.call_failed`.
    """
    padded = (*args, 0, 0, 0, 0)[:4]
    return call_libc("prctl", int(operation), *padded)


def die_with_parent(signal: int, parent: int) -> None:
    """Have the kernel send this process a signal when its parent thread ends.

    A change of credentials clears the setting: call this after it.

    Args:
        signal: signal number to receive.
        parent: the parent's pid as read *before* the fork; it may have died since, and then no signal would come.

    Raises:
        StateError: `linux.parent_gone` or `linux.call_failed`.
    """
    prctl(Prctl.SET_PDEATHSIG, signal)
    if os.getppid() != parent:
        raise StateError("linux.parent_gone", "the parent process has ended")


def set_no_new_privileges() -> None:
    """Give up any gain of privilege by `execve`, for good.

    Raises:
        StateError: `linux.call_failed`.
    """
    prctl(Prctl.SET_NO_NEW_PRIVS, 1)


def set_dumpable(*, allowed: bool) -> None:
    """Allow or forbid core dumps of, and tracing by, processes of the same user.

    Raises:
        StateError: `linux.call_failed`.
    """
    prctl(Prctl.SET_DUMPABLE, int(allowed))
