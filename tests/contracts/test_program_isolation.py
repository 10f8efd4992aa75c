"""What a program inside an enclave can and cannot do: probes from inside, and from outside, as root and as a user."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secfl.testing.enclave_world import EnclaveWorld, pack_python_image, python_command

PROBE = r"""
import ctypes, errno, fcntl, json, multiprocessing, os, resource, signal, socket, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in arguments])
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "ok"
def attempt(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"
def write(path):
    return attempt(lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)))
x86 = os.uname().machine == "x86_64"
def pick(a, b):
    return a if x86 else b
CALLS = {
    "ptrace": (pick(101, 117), 0), "process_vm_readv": (pick(310, 270), 1, 0, 0, 0, 0, 0),
    "bpf": (pick(321, 280), 0, 0, 0), "keyctl": (pick(250, 219), 0, 0), "io_uring_setup": (425, 1, 0),
    "userfaultfd": (pick(323, 282), 0), "setns": (pick(308, 268), 0, 0), "unshare": (pick(272, 97), 0),
    "unshare_user": (pick(272, 97), 0x10000000), "mount": (pick(165, 40), 0, 0, 0, 0, 0),
    "pivot_root": (pick(155, 41), 0, 0),
    "perf_event_open": (pick(298, 241), 0, 0, 0, 0, 0), "clone_user": (pick(56, 220), 0x10000000 | 17, 0, 0, 0, 0),
    "clone3": (435, 0, 0), "pidfd_getfd": (438, 0, 0, 0),
}
report = {"calls": {name: call(*arguments) for name, arguments in CALLS.items()}}
if x86:
    report["calls"]["x32_getpid"] = call(0x40000000 + 39)
report["sockets"] = {
    name: attempt(lambda: socket.socket(family, kind, protocol).close())
    for name, (family, kind, protocol) in {
        "vsock": (40, 1, 0), "alg": (38, 5, 0), "packet": (17, 3, 0), "kobject": (16, 3, 15), "bluetooth": (31, 3, 0),
        "inet": (2, 1, 0), "inet6": (10, 1, 0), "unix": (1, 1, 0), "route": (16, 3, 0), "raw": (2, 3, 1),
    }.items()
}
report["terminal"] = attempt(lambda: fcntl.ioctl(0, 0x5412, b"x"))
report["processes"] = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
report["pid"] = os.getpid()
report["root"] = sorted(os.listdir("/"))
report["write"] = {path: write(path + "/probe") for path in
    ("/", "/opt", "/lib", "/dev", "/proc/sys", "/app", "/etc", "/tmp", "/dev/shm", "/run", "/run/secfl")}
report["status"] = dict(
    line.rstrip().split(":\t", 1) for line in open("/proc/self/status")
    if line.startswith(("Cap", "NoNewPrivs", "Seccomp:", "Uid")))
report["core"] = resource.getrlimit(resource.RLIMIT_CORE)
report["init"] = {name: attempt(lambda: open("/proc/1/" + name, "rb").read(1)) for name in ("environ", "mem", "maps")}
report["init_descriptors"] = os.listdir("/proc/1/fd")
report["init"]["root"] = attempt(lambda: os.listdir("/proc/1/root/"))
os.kill(1, signal.SIGKILL)
report["kill_init"] = "survived"
report["outside"] = attempt(lambda: socket.create_connection(("192.0.2.1", 80), 1))
report["abstract"] = os.path.exists("/host")
report["environ"] = dict(os.environ)
report["argv"] = sys.argv
report["cwd"] = os.getcwd()
report["descriptors"] = sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1]
report["session"] = os.getsid(0) == os.getpid()
report["umask"] = os.umask(0)
report["files"] = {path: [open(path, "rb").read().decode(), oct(os.stat(path).st_mode & 0o777)] for path in
    ("/run/secfl/peers.json", "/etc/hosts", "/app/deep/er/secret", "/volume/inside")}
report["dead_volume"] = attempt(lambda: os.open("/dead/file", os.O_WRONLY | os.O_CREAT))
report["hostname"] = socket.gethostname()
worked = []
thread = threading.Thread(target=lambda: worked.append("thread")); thread.start(); thread.join()
with multiprocessing.get_context("fork").Pool(2) as pool:
    worked += pool.map(str, ["pool"])
child = subprocess.run([sys.executable, "-c", "print('subprocess')"], capture_output=True, text=True)
worked.append(child.stdout.strip())
report["worked"] = worked
connection = socket.create_connection(("127.0.0.1", 8080), 5)
connection.sendall(json.dumps(report).encode() + b"\n")
listener = socket.create_server(("127.0.0.1", 9090))
connection.sendall(b"listening\n")
peer, _ = listener.accept()
peer.sendall(b"served")
peer.close()
connection.recv(1)
sys.exit(7)
"""

SHIELD = r"""
import fcntl, json, os, sys
from secfl.linux.fuse_mount import fork_server
from secfl.linux.image_server import serve_image
from secfl.linux.launcher import launch_program
from secfl.linux.namespaces import create_network
from secfl.linux.program import InjectedFile, MountPoint, ProgramSpec
from secfl.volume.image import image_root, open_image
from secfl.volume.image_manifest import Mode
from secfl.volume.image_writer import ImageWriter

class Memory(bytearray):
    def pread(self, offset, size):
        return bytes(self[offset:offset + size])

data = Memory()
writer = ImageWriter(data.extend, mode=Mode.AUTHENTICATED)
writer.add_file("inside", [b"from the volume"])
manifest = writer.finish()
image = open_image(data, manifest, root=image_root(manifest))
def serve(connection):
    fork_server(lambda: serve_image(connection, image), keep=(connection,))
    os.close(connection)

os.environ["SHIELD_SECRET"] = "canary"
leak = os.open("/proc/self/status", os.O_RDONLY)
os.set_inheritable(leak, True)
network = create_network()
listener = network.listen_inside("127.0.0.1", 8080)
spec = ProgramSpec(
    argv=("/opt/python/bin/python3", "-I", "-c", os.pread(4, 1 << 20, 0).decode(), "one", "two words"),
    env={"ONLY": "this"},
    cwd="/run/secfl",
    files=(InjectedFile("/run/secfl/peers.json", b"{}", 0o600), InjectedFile("/etc/hosts", b"127.64.0.1 spm", 0o444),
           InjectedFile("/app/deep/er/secret", b"s3cret", 0o400)),
    mounts=(MountPoint("/volume", True), MountPoint("/dead", False)),
    tmp_bytes=1 << 24,
)
program = launch_program(spec, network=network, stdout=1, stderr=2, servers=(serve, os.close))
connection, _ = listener.accept()
stream = connection.makefile("rb")
print(stream.readline().decode(), end="", flush=True)
stream.readline()
inward = network.connect_inside("127.0.0.1", 9090, timeout=5)
print(inward.recv(10).decode(), flush=True)
entries = sorted(os.listdir(program.run_directory))
connection.sendall(b"x")
code = program.wait(10)
program.close()
print(json.dumps({"entries": entries, "code": code}), flush=True)
"""


@pytest.fixture(scope="module", params=["root", "user"])
def world(request: pytest.FixtureRequest) -> Iterator[EnclaveWorld]:
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("needs root")
    if request.param == "user" and os.geteuid() != 0 and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this account cannot open /dev/fuse")
    # Not pytest's own directory: the site's user must get in.
    base = Path(tempfile.mkdtemp(prefix="secfl-image-"))
    enclaves = EnclaveWorld(pack_python_image(base), as_root=request.param == "root")
    yield enclaves
    enclaves.close()
    shutil.rmtree(base)


@pytest.fixture(scope="module")
def lines(world: EnclaveWorld) -> list[str]:
    finished = world.run(python_command(SHIELD), config=PROBE.encode())
    assert finished.code == 0, finished.output
    return finished.output.splitlines()


@pytest.fixture(scope="module")
def report(lines: list[str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(lines[0])
    return value


def test_sc_17_kernel_calls_beyond_a_program_are_refused(report: dict[str, Any]) -> None:
    """Calls that reach other processes, namespaces or kernel state end in EPERM, clone3 and x32 in ENOSYS."""
    calls = report["calls"]
    assert calls.pop("clone3") == "ENOSYS"
    assert calls.pop("x32_getpid", "ENOSYS") == "ENOSYS"
    assert set(calls.values()) == {"EPERM"}, calls


def test_sc_17_only_confined_socket_families_exist(report: dict[str, Any]) -> None:
    """VSOCK, ALG, PACKET and other families do not exist; INET, UNIX and NETLINK_ROUTE do; raw sockets need a right."""
    allowed = {"inet", "inet6", "unix", "route"}
    expected = {name: "ok" if name in allowed else "EAFNOSUPPORT" for name in report["sockets"]} | {"raw": "EPERM"}
    assert report["sockets"] == expected


def test_a_program_cannot_type_into_the_terminal(report: dict[str, Any]) -> None:
    """TIOCSTI is refused."""
    assert report["terminal"] == "EPERM"


def test_sc_17_a_program_sees_only_itself(report: dict[str, Any]) -> None:
    """Its process namespace holds init and itself, and init cannot be read or killed."""
    assert report["processes"] == [1, report["pid"]]
    assert set(report["init"].values()) == {"EACCES"}, report["init"]
    assert report["init_descriptors"] == []
    assert report["kill_init"] == "survived"


def test_a_program_holds_no_privilege(report: dict[str, Any]) -> None:
    """All capability sets are empty, new privileges are off, a filter is on, no core is written."""
    status = report["status"]
    assert {value for name, value in status.items() if name.startswith("Cap")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"], report["core"]) == ("1", "2", [0, 0])
    assert status["Uid"].split() == ["1000"] * 4


def test_the_root_is_read_only_and_without_the_host(report: dict[str, Any]) -> None:
    """Only private tmpfs is writable; the host's directory is not there at all."""
    writable = {"/tmp", "/dev/shm", "/run", "/run/secfl"}
    assert {path for path, result in report["write"].items() if result == "ok"} == writable
    assert {report["write"][path] for path in ("/", "/opt", "/lib", "/dev", "/app", "/etc")} == {"EROFS"}
    assert report["abstract"] is False
    assert "host" not in report["root"]


def test_nw_a_program_reaches_nothing_outside(report: dict[str, Any]) -> None:
    """Its network has only `lo`."""
    assert report["outside"] == "ENETUNREACH"


def test_argv_environment_and_directory_are_exactly_as_given(report: dict[str, Any]) -> None:
    """Nothing of the shield's own environment or descriptors is inherited."""
    assert report["argv"] == ["-c", "one", "two words"]
    assert report["environ"] == {"ONLY": "this"} or report["environ"] == {"ONLY": "this", "LC_CTYPE": "C.UTF-8"}
    assert report["cwd"] == "/run/secfl"
    assert report["descriptors"] == [0, 1, 2]
    assert report["session"] is True
    assert report["umask"] == 0o077
    assert report["hostname"] == "secfl"


def test_files_are_injected_with_their_modes(report: dict[str, Any]) -> None:
    """Files appear on tmpfs, at new places, and in a volume that the shield serves on a handed-back descriptor."""
    assert report["files"] == {
        "/run/secfl/peers.json": ["{}", "0o600"],
        "/etc/hosts": ["127.64.0.1 spm", "0o444"],
        "/app/deep/er/secret": ["s3cret", "0o400"],
        "/volume/inside": ["from the volume", "0o444"],
    }


def test_a_dead_volume_fails_and_never_falls_through(report: dict[str, Any]) -> None:
    """When a volume's server is gone, a write fails; it does not land in the directory underneath."""
    assert report["dead_volume"] in {errno.errorcode[errno.ENOTCONN], errno.errorcode[errno.ECONNABORTED]}


def test_ordinary_programs_work(report: dict[str, Any]) -> None:
    """Threads, process pools with semaphores and subprocesses run."""
    assert report["worked"] == ["thread", "pool", "subprocess"]


def test_the_shield_connects_into_the_program_and_sees_its_run_directory(lines: list[str]) -> None:
    """Sockets made inside are used from outside, and the exit code passes through."""
    assert lines[1] == "served"
    assert json.loads(lines[2]) == {"entries": ["peers.json", "probe"], "code": 7}


SLEEPER = r"""
import sys
from secfl.linux.launcher import launch_program
from secfl.linux.namespaces import create_network
from secfl.linux.program import ProgramSpec
script = "import time, subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)', MARK]);"
script = script.replace("MARK", repr(sys.argv[1])) + "print('up', flush=True); time.sleep(99)"
spec = ProgramSpec(argv=("/opt/python/bin/python3", "-c", script, sys.argv[1]), env={})
launch_program(spec, network=create_network(), stdout=1, stderr=2).wait()
"""


def _marked(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return [pid for pid in found if pid != os.getpid()]


def _gone_within(marker: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _marked(marker):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _start_sleeper(world: EnclaveWorld, marker: str) -> Any:
    command = python_command(SLEEPER)
    command = type(command)((*command.argv, marker), command.env, command.cwd)
    handle, console = world.start(command)
    assert os.read(console, 2) == b"up"
    os.close(console)
    return handle


def test_a_program_dies_with_its_shield(world: EnclaveWorld) -> None:
    """SIGKILL of the shield ends every process of the program, and no mount is left on the host."""
    marker = f"marker-shield-{os.getpid()}"
    _start_sleeper(world, marker)
    shield = min(_marked(marker))
    os.kill(shield, 9)
    assert _gone_within(marker, 2.0)
    assert "secfl-image" not in Path("/proc/self/mountinfo").read_text()


def test_another_user_cannot_enter_by_path(world: EnclaveWorld) -> None:
    """The host's mount table shows nothing, and another user's walk through /proc is refused."""
    if os.geteuid() != 0:
        pytest.skip("needs root to act as another user")
    marker = f"marker-outside-{os.getpid()}"
    _start_sleeper(world, marker)
    assert "secfl-image" not in Path("/proc/self/mountinfo").read_text()
    program = max(_marked(marker))
    os.seteuid(61_999)
    try:
        with pytest.raises(PermissionError):
            next(Path(f"/proc/{program}/root/run/secfl").iterdir())
    finally:
        os.seteuid(0)
    os.kill(min(_marked(marker)), 9)
    assert _gone_within(marker, 2.0)
