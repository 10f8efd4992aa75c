"""Descriptions of programs, platform requests, packets and the system-call filter."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.errors import ConfigError, EncodingError, SecflError, UnavailableError
from secfl.linux import packets, seccomp
from secfl.linux.packets import Packet
from secfl.linux.program import InjectedFile, MountPoint, ProgramSpec
from secfl.tee.simulated.requests import (
    EnclaveCommand,
    LaunchFiles,
    LaunchRequest,
    ListRequest,
    StopRequest,
    WaitRequest,
    parse_request,
)

GOOD = ProgramSpec(
    argv=("/bin/app", "ä", ""),
    env={"A": "1=2", "B": ""},
    cwd="/work",
    files=(InjectedFile("/etc/x", bytes(range(256)), 0o444), InjectedFile("/dev/shm/y", b"")),
    mounts=(MountPoint("/data", True), MountPoint("/out", False)),
    root="/r",
    uid=7,
    tmp_bytes=1,
)


def test_a_description_survives_its_encoding() -> None:
    """Decoding gives the equal description."""
    assert ProgramSpec.decode(GOOD.encode()) == GOOD


@pytest.mark.parametrize(
    "path",
    ["", "/", "x", "//x", "/x/", "/x//y", "/x/./y", "/x/../y", "/..", "/x\0", "/" + "x" * 2000, "/x/.."],
)
def test_se_03_paths_have_one_form(path: str) -> None:
    """Relative, dotted, doubled, NUL-carrying and overlong paths are refused for files, mounts and directory."""
    for change in ({"files": (InjectedFile(path, b""),)}, {"mounts": (MountPoint(path, True),)}, {"cwd": path}):
        if change == {"cwd": "/"}:
            continue
        with pytest.raises(ConfigError, match=r"launch\.path_(invalid|reserved)"):
            ProgramSpec(argv=("/a",), env={}, **change)


@pytest.mark.parametrize("path", ["/proc/x", "/dev/null", "/sys/x", "/host/x"])
def test_sc_18_nothing_is_placed_in_reserved_directories(path: str) -> None:
    """The kernel's directories and the host's place are closed to injection."""
    with pytest.raises(ConfigError, match=r"launch\.path_reserved"):
        ProgramSpec(argv=("/a",), env={}, files=(InjectedFile(path, b""),))


@pytest.mark.parametrize("path", ["/tmp", "/run", "/dev", "/proc", "/host"])
def test_volumes_take_no_private_place(path: str) -> None:
    """A volume cannot replace a directory that the launcher makes."""
    with pytest.raises(ConfigError, match=r"launch\.path_reserved"):
        ProgramSpec(argv=("/a",), env={}, mounts=(MountPoint(path, True),))


@pytest.mark.parametrize(
    ("files", "mounts"),
    [
        (["/a", "/a"], []),
        (["/a", "/a/b"], []),
        (["/data/x"], ["/data"]),
        ([], ["/data", "/data/inner"]),
        ([], ["/data", "/data"]),
        (["/data"], ["/data/inner"]),
    ],
)
def test_places_do_not_overlap(files: list[str], mounts: list[str]) -> None:
    """A file or mount never depends on what another one holds."""
    with pytest.raises(ConfigError, match=r"launch\.path_overlap"):
        ProgramSpec(
            argv=("/a",),
            env={},
            files=tuple(InjectedFile(path, b"") for path in files),
            mounts=tuple(MountPoint(path, True) for path in mounts),
        )


def test_neighbours_with_a_common_prefix_are_no_overlap() -> None:
    """/data-2 is not below /data."""
    ProgramSpec(argv=("/a",), env={}, mounts=(MountPoint("/data", True), MountPoint("/data-2", True)))


@pytest.mark.parametrize("argv", [(), ("app",), ("",), ("/a\0",), ("/a", "x\0")])
def test_argv_starts_with_an_absolute_path(argv: tuple[str, ...]) -> None:
    """There is no search path and no NUL."""
    with pytest.raises(ConfigError, match=r"launch\.argv_invalid"):
        ProgramSpec(argv=argv, env={})


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": "x\0y"}, {"A\0": "x"}, {"A": "x" * 200_000}])
def test_se_06_variables_are_plain(env: dict[str, str]) -> None:
    """A variable has a name, no '=' in it, no NUL, and fits the kernel's limit."""
    with pytest.raises(ConfigError, match=r"launch\.env_invalid"):
        ProgramSpec(argv=("/a",), env=env)


def test_contents_do_not_appear_in_representations() -> None:
    """A description in a traceback or log shows no injected bytes (SE-07)."""
    assert "secret" not in repr(ProgramSpec(argv=("/a",), env={}, files=(InjectedFile("/x", b"secret"),)))


LAUNCH = {"op": "launch", "argv": ["/a"], "env": {"A": "b"}, "cwd": "/"}


def test_each_request_is_understood() -> None:
    """The four operations give their typed requests."""
    name = "0123456789abcdef" * 2
    launch = parse_request(Packet(LAUNCH, (1, 2, 3, 4, 5, 6)))
    assert launch == LaunchRequest(EnclaveCommand(("/a",), {"A": "b"}, "/"), LaunchFiles(1, 2, 3, 4, 5, 6))
    assert parse_request(Packet({"op": "list"}, ())) == ListRequest()
    assert parse_request(Packet({"op": "stop", "id": name, "kill": True}, ())) == StopRequest(name, kill=True)
    assert parse_request(Packet({"op": "wait", "id": name}, ())) == WaitRequest(name)


@pytest.mark.parametrize(
    ("change", "descriptors"),
    [
        ({}, 5),
        ({}, 7),
        ({"argv": []}, 6),
        ({"argv": "/a"}, 6),
        ({"argv": ["a"]}, 6),
        ({"argv": ["/a", 1]}, 6),
        ({"argv": ["/a\0"]}, 6),
        ({"argv": ["/a"] * 257}, 6),
        ({"env": []}, 6),
        ({"env": {"": "x"}}, 6),
        ({"env": {"A=": "x"}}, 6),
        ({"env": {"A": 1}}, 6),
        ({"cwd": "x"}, 6),
        ({"cwd": None}, 6),
        ({"image": "/x"}, 6),
        ({"op": "exec"}, 0),
        ({"op": "list"}, 0),
        ({"op": "wait", "id": "X" * 32}, 0),
        ({"op": "quote"}, 0),
    ],
)
def test_sc_18_a_malformed_request_is_refused(change: dict[str, object], descriptors: int) -> None:
    """Unknown operations and members, wrong types, wrong counts: one error class."""
    with pytest.raises(EncodingError, match=r"platform\.request_malformed"):
        parse_request(Packet(LAUNCH | change, tuple(range(descriptors))))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
)


@given(
    st.dictionaries(st.sampled_from(["op", "argv", "env", "cwd", "id", "kill", "x"]), JSON),
    st.sampled_from(["launch", "list", "stop", "wait", "x"]),
    st.integers(0, 7),
)
def test_any_request_gives_a_request_or_the_one_error(message: dict[str, object], op: str, count: int) -> None:
    """No message makes the parser fail in another way (EV-36)."""
    try:
        parse_request(Packet(message | {"op": op}, tuple(range(count))))
    except EncodingError as error:
        code = error.code
    else:
        code = "platform.request_malformed"
    assert code == "platform.request_malformed"


@given(st.binary(max_size=200))
def test_any_packet_gives_an_object_or_a_typed_error(data: bytes) -> None:
    """Bytes from the other side never cause another kind of failure."""
    left, right = packets.pair()
    with left, right:
        left.send(data)
        try:
            packet = packets.receive(right)
        except SecflError:
            return
        assert packet is None or isinstance(packet.message, dict)


def test_unexpected_descriptors_are_closed() -> None:
    """A sender cannot fill the receiver's table."""
    left, right = packets.pair()
    with left, right:
        before = len(list(Path("/proc/self/fd").iterdir()))
        socket.send_fds(left, [b"{}"], [0, 0, 0])
        with pytest.raises(EncodingError, match=r"packet\.malformed"):
            packets.receive(right, descriptors=2)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_oversized_packet_is_refused() -> None:
    """The limit holds for both directions."""
    left, right = packets.pair()
    with left, right:
        with pytest.raises(EncodingError, match=r"packet\.too_large"):
            packets.send(left, {"x": "y" * packets.MAX_PACKET})
        left.send(b'{"x":"' + b"y" * packets.MAX_PACKET + b'"}')
        with pytest.raises(EncodingError, match=r"packet\.malformed|json\.too_large"):
            packets.receive(right)


def test_a_closed_end_is_told_apart_from_an_error() -> None:
    """Reading gives None at the end, writing raises."""
    left, right = packets.pair()
    left.close()
    with right:
        assert packets.receive(right) is None
        with pytest.raises(UnavailableError, match=r"packet\.peer_gone"):
            packets.send(right, {})


def _evaluate(program: bytes, number: int, architecture: int, arguments: tuple[int, ...] = ()) -> int:
    """Interpret the filter as the kernel does."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *([0] * (6 - len(arguments))))
    code = [struct.unpack_from("<HBBI", program, offset) for offset in range(0, len(program), 8)]
    accumulator, position = 0, 0
    while True:
        operation, true, false, value = code[position]
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x06:
            return int(value)
        else:
            taken = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
            position += true if taken else false


ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_sc_17_the_filter_answers_each_call_as_listed(machine: str) -> None:
    """Denied calls get EPERM, all other numbers pass, on both architectures."""
    architecture, column = MACHINES[machine]
    program = seccomp.assemble(machine)
    denied = {numbers[column] for numbers in seccomp.DENIED.values() if numbers[column] is not None}
    special = {"x86_64": {16, 41, 53, 56, 435}, "aarch64": {29, 198, 199, 220, 435}}[machine]
    for number in range(600):
        if number not in special:
            expected = ERRNO | 1 if number in denied else ALLOW
            assert _evaluate(program, number, architecture) == expected, number
    assert len(program) // 8 < 4096


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_sc_17_another_architectures_call_kills(machine: str) -> None:
    """A 32-bit or foreign entry, whose numbers mean other calls, ends the process."""
    own = MACHINES[machine][0]
    for architecture in (0x40000003, 0x40000028, 0, *(value for value, _ in MACHINES.values())):
        if architecture != own:
            assert _evaluate(seccomp.assemble(machine), 39, architecture) == KILL


def test_sc_17_x32_numbers_are_refused() -> None:
    """The second number range of x86-64 reaches nothing."""
    program = seccomp.assemble("x86_64")
    for number in (39, 101, 0, 547):
        assert _evaluate(program, 0x40000000 + number, MACHINES["x86_64"][0]) == ERRNO | 38


@pytest.mark.parametrize(("machine", "clone"), [("x86_64", 56), ("aarch64", 220)])
def test_sc_17_clone_makes_threads_but_no_namespaces(machine: str, clone: int) -> None:
    """Every namespace flag is refused, an ordinary thread or fork is not; clone3 does not exist."""
    architecture = MACHINES[machine][0]
    program = seccomp.assemble(machine)
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert _evaluate(program, clone, architecture, (1 << bit | 17,)) == ERRNO | 1
    for flags in (17, 0x3D0F00, 0x1200011):
        assert _evaluate(program, clone, architecture, (flags,)) == ALLOW
    assert _evaluate(program, 435, architecture) == ERRNO | 38


@pytest.mark.parametrize(("machine", "call", "pair"), [("x86_64", 41, 53), ("aarch64", 198, 199)])
def test_sc_17_families_are_an_allow_list(machine: str, call: int, pair: int) -> None:
    """Of all address families only UNIX, INET, INET6 and the routing part of NETLINK exist."""
    architecture = MACHINES[machine][0]
    program = seccomp.assemble(machine)
    for family in range(64):
        expected = ALLOW if family in (1, 2, 10, 16) else ERRNO | 97
        assert _evaluate(program, call, architecture, (family, 1, 0)) == expected
    assert _evaluate(program, call, architecture, (16, 3, 15)) == ERRNO | 97
    assert _evaluate(program, pair, architecture, (1, 1, 0)) == ALLOW
    assert _evaluate(program, pair, architecture, (40, 1, 0)) == ERRNO | 97


def test_an_unknown_machine_starts_nothing() -> None:
    """Without a table there is no filter, and without a filter no program."""
    with pytest.raises(ConfigError, match=r"seccomp\.unknown_machine"):
        seccomp.assemble("riscv64")
