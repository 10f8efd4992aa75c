"""The program's system-call filter: classic BPF assembled by hand, without libseccomp.

It closes what namespaces leave open (SC-17): calls that reach other processes, the kernel or new namespaces, and socket
families that no network namespace confines. AF_VSOCK is the important one: in a confidential VM it is a straight line
to the hypervisor. A foreign architecture kills the process, since its numbers would mean other calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from dataclasses import dataclass

from secfl.errors import ConfigError
from secfl.linux.syscalls import CloneFlags, Prctl, prctl

__all__ = ["ALLOWED_FAMILIES", "DENIED", "assemble", "install"]

DENIED: dict[str, tuple[int | None, int | None]] = {
    # name: number on x86-64, on aarch64. Other processes' memory and descriptors:
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    # Kernel attack surface and state:
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "move_pages": (279, 239),
    "nfsservctl": (180, 42),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
    "vmsplice": (278, 75),
    "_sysctl": (156, None),
    # Namespaces, mounts, names, clocks:
    "adjtimex": (159, 171),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "pivot_root": (155, 41),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "umount2": (166, 39),
    "unshare": (272, 97),
}
"""Calls answered with EPERM."""

ALLOWED_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
"""Socket families that the program's own network namespace confines; NETLINK_ROUTE is allowed beside them."""

_NETLINK_ROUTE = 0
_TERMINAL_INPUT_IOCTLS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX push characters into the operator's terminal."""
_NAMESPACE_FLAGS = int(
    CloneFlags.NEWNS
    | CloneFlags.NEWCGROUP
    | CloneFlags.NEWUTS
    | CloneFlags.NEWIPC
    | CloneFlags.NEWUSER
    | CloneFlags.NEWPID
    | CloneFlags.NEWNET
)

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X32_BIT = 0x4000_0000
_MODE_FILTER = 2

_Instruction = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Machine:
    audit: int
    column: int
    clone: int
    clone3: int
    socket: int
    socketpair: int
    ioctl: int
    has_x32: bool


_MACHINES = {
    "x86_64": _Machine(0xC000_003E, 0, 56, 435, 41, 53, 16, has_x32=True),
    "aarch64": _Machine(0xC000_00B7, 1, 220, 435, 198, 199, 29, has_x32=False),
}


def assemble(machine: str) -> bytes:
    """Return the filter for a machine as an array of `sock_filter`.

    Raises:
        ConfigError: `seccomp.unknown_machine`: without a table nothing may start.
    """
    known = _MACHINES.get(machine)
    if known is None:
        raise ConfigError("seccomp.unknown_machine", "no system call table for this machine", machine=machine)
    code: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, known.audit),
        _give(_KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if known.has_x32:
        # x32 numbers reach the same calls past every comparison below.
        code += [(_JUMP_AT_LEAST, 0, 1, _X32_BIT), _give(_ERRNO | errno.ENOSYS)]
    for numbers in DENIED.values():
        number = numbers[known.column]
        if number is not None:
            code += _on_call(number, [_give(_ERRNO | errno.EPERM)])
    # A filter cannot read clone3's flags, which are in memory; libc falls back to clone on ENOSYS.
    code += _on_call(known.clone3, [_give(_ERRNO | errno.ENOSYS)])
    code += _on_call(known.clone, _clone_rule())
    code += _on_call(known.socket, _socket_rule())
    code += _on_call(known.socketpair, _allow_only(0, (socket.AF_UNIX,), errno.EAFNOSUPPORT))
    code += _on_call(known.ioctl, _ioctl_rule())
    code.append(_give(_ALLOW))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def install() -> None:
    """Filter the calling thread and what it executes, for good; needs no_new_privs.

    Raises:
        ConfigError: `seccomp.unknown_machine`, or `linux.not_permitted` without no_new_privs.
        StateError: `linux.call_failed`.
    """
    program = assemble(os.uname().machine)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a 16-bit count, padding, a pointer.
    header = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code)), 16)
    prctl(Prctl.SET_SECCOMP, _MODE_FILTER, ctypes.addressof(header))


def _give(result: int) -> _Instruction:
    return (_RETURN, 0, 0, result)


def _on_call(number: int, rule: list[_Instruction]) -> list[_Instruction]:
    # Every rule ends in a return, so the number is still loaded when the next comparison runs.
    return [(_JUMP_EQUAL, 0, len(rule), number), *rule]


def _argument(index: int) -> _Instruction:
    # The low half: families, ioctl requests and clone flags are 32 bits wide in the kernel as well.
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index)


def _allow_only(index: int, values: tuple[int, ...], refusal: int) -> list[_Instruction]:
    code = [_argument(index)]
    for position, value in enumerate(values):
        code.append((_JUMP_EQUAL, len(values) - position, 0, value))
    return [*code, _give(_ERRNO | refusal), _give(_ALLOW)]


def _clone_rule() -> list[_Instruction]:
    return [_argument(0), (_JUMP_SET, 0, 1, _NAMESPACE_FLAGS), _give(_ERRNO | errno.EPERM), _give(_ALLOW)]


def _socket_rule() -> list[_Instruction]:
    netlink = _allow_only(2, (_NETLINK_ROUTE,), errno.EAFNOSUPPORT)
    families = _allow_only(0, tuple(int(family) for family in ALLOWED_FAMILIES), errno.EAFNOSUPPORT)
    return [_argument(0), (_JUMP_EQUAL, 0, len(netlink), int(socket.AF_NETLINK)), *netlink, *families]


def _ioctl_rule() -> list[_Instruction]:
    code = [_argument(1)]
    for request in _TERMINAL_INPUT_IOCTLS:
        code += [(_JUMP_EQUAL, 0, 1, request), _give(_ERRNO | errno.EPERM)]
    return [*code, _give(_ALLOW)]
