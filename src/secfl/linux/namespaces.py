"""Namespaces: user maps, capabilities, and network namespaces whose sockets are used from outside.

A network namespace made here has `lo` and nothing else. The only sockets that lead out of it are those that the
key-holding process creates inside it and keeps: a socket belongs to the namespace it was made in for ever, whoever
holds it. Threads have network namespaces of their own, so a short-lived thread enters, creates the socket and ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from secfl.errors import StateError, UnavailableError
from secfl.linux.syscalls import CloneFlags, Prctl, call_libc, prctl, set_dumpable, setns, unshare

__all__ = [
    "NetworkNamespace",
    "create_network",
    "drop_capabilities",
    "in_initial_user_namespace",
    "is_namespace_root",
    "map_single_user",
    "write_user_map",
]

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_INITIAL_MAP = ("0", "0", "4294967295")
_SET_SECUREBITS = 28
_LOCKED_SECUREBITS = 0xEF
"""NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE with their locks, and KEEP_CAPS locked off: uid 0 means nothing."""
_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x2008_0522
_CAP_SYS_ADMIN = 21

T = TypeVar("T")


class NetworkNamespace:
    """A network namespace, kept alive by a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor, for a launcher to enter.

        Raises:
            StateError: `network.closed`.
        """
        if self._fd < 0:
            raise StateError("network.closed", "the network namespace was closed")
        return self._fd

    def create_socket(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        """Create an unconnected socket inside, for use from outside.

        Raises:
            StateError: `network.closed` or `linux.call_failed`.
            ConfigError: `linux.not_permitted`.
        """
        fd = self.fileno()

        def create() -> socket.socket:
            setns(fd, CloneFlags.NEWNET)
            return socket.socket(family, kind)

        return _in_thread(create)

    def listen_inside(self, host: str, port: int, *, backlog: int = 128) -> socket.socket:
        """Create a TCP listener at an address inside; port 0 chooses one.

        Raises:
            StateError: `network.closed`, or `network.address_in_use` when it cannot be bound.
            ConfigError: `linux.not_permitted`.
        """
        listener = self.create_socket(_family(host), socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(backlog)
        except OSError as error:
            listener.close()
            raise StateError(
                "network.address_in_use", f"cannot listen inside: {error.strerror}", host=host, port=port
            ) from error
        return listener

    def connect_inside(self, host: str, port: int, *, timeout: float) -> socket.socket:
        """Connect to a server of the program.

        Raises:
            StateError: `network.closed`.
            UnavailableError: `network.no_answer`.
            ConfigError: `linux.not_permitted`.
        """
        connection = self.create_socket(_family(host), socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect((host, port))
        except OSError as error:
            connection.close()
            raise UnavailableError("network.no_answer", "the program does not answer", host=host, port=port) from error
        return connection

    def close(self) -> None:
        """Let go of the namespace; it ends with its last process and socket."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def create_network() -> NetworkNamespace:
    """Make an empty network namespace with `lo` up; needs CAP_SYS_ADMIN in the own user namespace.

    Raises:
        ConfigError: `linux.not_permitted` or `linux.not_supported`.
        StateError: `linux.call_failed`.
    """

    def create() -> int:
        unshare(CloneFlags.NEWNET)
        _bring_up_loopback()
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return NetworkNamespace(_in_thread(create))


def in_initial_user_namespace() -> bool:
    """Tell whether uid 0 here is the machine's own root."""
    return tuple(Path("/proc/self/uid_map").read_bytes().decode("ascii").split()) == _INITIAL_MAP


def is_namespace_root() -> bool:
    """Tell whether this process may administer its user namespace (effective CAP_SYS_ADMIN)."""
    for line in Path("/proc/self/status").read_bytes().decode("ascii").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


def map_single_user(inside: int) -> None:
    """Enter a new user namespace in which this process is `inside`, mapped to its present user and group.

    It holds all capabilities there until it drops them.

    Raises:
        ConfigError: `linux.not_permitted` or `linux.not_supported`.
        StateError: `linux.call_failed`: with threads, or a map that the kernel refuses.
    """
    uid, gid = os.geteuid(), os.getegid()
    unshare(CloneFlags.NEWUSER)
    # A process that is not dumpable does not own its own map files.
    set_dumpable(allowed=True)
    try:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{inside} {uid} 1")
        _write("/proc/self/gid_map", f"{inside} {gid} 1")
    finally:
        set_dumpable(allowed=False)


def write_user_map(pid: int, *, inside: int, outside: int) -> None:
    """Map one user and group of another process's new user namespace; needs CAP_SETUID and CAP_SETGID here.

    Raises:
        StateError: `linux.call_failed`.
    """
    _write(f"/proc/{pid}/setgroups", "deny")
    _write(f"/proc/{pid}/uid_map", f"{inside} {outside} 1")
    _write(f"/proc/{pid}/gid_map", f"{inside} {outside} 1")


def drop_capabilities() -> None:
    """Give up every capability in every set, for this process and whatever it executes as any user.

    Raises:
        ConfigError: `linux.not_permitted`.
        StateError: `linux.call_failed`.
    """
    prctl(Prctl.CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    # Bytes first: a text file would import its codec, from a root that may be another one by now.
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_bytes().decode("ascii"))
    for capability in range(last + 1):
        prctl(Prctl.CAPBSET_DROP, capability)
    call_libc("prctl", _SET_SECUREBITS, _LOCKED_SECUREBITS, 0, 0, 0, label="prctl")
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    nothing = ctypes.create_string_buffer(24)
    call_libc("capset", ctypes.addressof(header), ctypes.addressof(nothing))


def _write(path: str, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)
    except OSError as error:
        raise StateError("linux.call_failed", f"cannot write {path}: {error.strerror}", call="write") from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH22x", b"lo", 0))
        flags = struct.unpack("16sH22x", request)[1] | _IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags))


def _in_thread(work: Callable[[], T]) -> T:
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="secfl-netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
