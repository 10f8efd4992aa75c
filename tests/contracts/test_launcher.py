"""The launcher as the machine's root: exit codes, signals, refusals, teardown."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secfl.errors import ConfigError, StateError, UnavailableError
from secfl.linux.launcher import RunningProgram, launch_program
from secfl.linux.namespaces import NetworkNamespace, create_network
from secfl.linux.program import InjectedFile, MountPoint, ProgramSpec
from secfl.testing.enclave_world import PYTHON, SITE_USER

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root to launch without an enclave")]


Run = Callable[..., tuple[RunningProgram, int]]


@pytest.fixture
def start(tree: Path, network: NetworkNamespace) -> Iterator[Run]:
    running: list[RunningProgram] = []

    def launch(script: str, *, files: tuple[InjectedFile, ...] = (), **changes: object) -> tuple[RunningProgram, int]:
        values: dict[str, object] = {"argv": (PYTHON, "-I", "-c", script), "env": {}, "uid": SITE_USER}
        spec = ProgramSpec(root=str(tree), files=files, **(values | changes))  # type: ignore[arg-type]
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            program = launch_program(spec, network=network, stdout=writer, stderr=writer)
        finally:
            os.close(writer)
        running.append(program)
        return program, reader

    yield launch
    for program in running:
        program.close()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("raise SystemExit(0)", 0),
        ("raise SystemExit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 139),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("import os; os.abort()", 134),
    ],
)
def test_the_exit_code_passes_through(start: Run, script: str, code: int) -> None:
    """A code comes through as it is, a signal n as 128 + n."""
    program, _ = start(script)
    assert program.wait(10) == code


def test_a_signal_reaches_the_programs_own_handler(start: Run) -> None:
    """SIGTERM is forwarded, so the program's handler decides the code."""
    program, output = start(
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(42)); print('up', flush=True); time.sleep(30)"
    )
    assert os.read(output, 2) == b"up"
    assert program.stop(grace=5) == 42


def test_a_program_that_ignores_sigterm_is_killed(start: Run) -> None:
    """After the grace period the whole namespace ends."""
    program, output = start(
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(30)"
    )
    assert os.read(output, 2) == b"up"
    assert program.stop(grace=0.1) == 137
    with pytest.raises(StateError, match=r"launch\.ended"):
        program.signal(signal.SIGTERM)


def test_orphans_end_with_the_program(start: Run) -> None:
    """A daemonized grandchild does not outlive the program: its end of the pipe closes."""
    program, output = start(
        "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0: time.sleep(60)\n os._exit(0)\n"
        "os.wait(); print('up', flush=True)"
    )
    assert program.wait(10) == 0
    with os.fdopen(output, "rb") as console:
        assert console.read() == b"up\n"


def test_waiting_says_when_the_program_still_runs(start: Run) -> None:
    """A time-out is an error of its own, and the descriptor becomes readable at the end only."""
    program, _ = start("import time; time.sleep(30)")
    assert program.poll() is None
    with pytest.raises(UnavailableError, match=r"launch\.still_running"):
        program.wait(0.01)


def test_closing_the_handle_ends_the_program(start: Run) -> None:
    """A shield that lets go of a program leaves nothing running."""
    program, output = start("print('up', flush=True); import time; time.sleep(30)")
    assert os.read(output, 2) == b"up"
    program.close()
    assert program.poll() == 137


def test_sc_17_a_program_never_runs_as_the_machines_root(start: Run) -> None:
    """Uid 0 of the initial user namespace is refused, since files of /proc obey it even without capabilities."""
    with pytest.raises(ConfigError, match=r"launch\.root_refused"):
        start("", uid=0)


def test_a_missing_program_is_named(start: Run) -> None:
    """The launch raises; it does not return a handle that fails later."""
    with pytest.raises(ConfigError, match=r"launch\.exec_failed"):
        start("", argv=("/opt/python/bin/absent",))


def test_a_missing_directory_is_named(start: Run) -> None:
    """A working directory that does not exist stops the launch."""
    with pytest.raises(ConfigError, match=r"launch\.exec_failed"):
        start("", cwd="/absent")


def test_se_04_injection_follows_no_symbolic_link(start: Run, tree: Path) -> None:
    """A path that leads through a link of the image is refused and nothing is written at the link's target."""
    link = tree / "opt/link"
    link.symlink_to("/opt/python")
    try:
        with pytest.raises(ConfigError, match=r"launch\.path_occupied"):
            start("", files=(InjectedFile("/opt/link/planted", b"x"),))
        assert not (tree / "opt/python/planted").exists()
    finally:
        link.unlink()


def test_injection_leaves_the_source_tree_alone(start: Run, tree: Path) -> None:
    """Files over existing and at new places exist for the program only."""
    (tree / "opt/existing").write_text("from the image")
    files = (InjectedFile("/opt/existing", b"injected", 0o444), InjectedFile("/opt/new/file", b"new", 0o444))
    program, output = start("print(open('/opt/existing').read(), open('/opt/new/file').read())", files=files)
    assert program.wait(10) == 0
    assert os.read(output, 100) == b"injected new\n"
    assert (tree / "opt/existing").read_text() == "from the image"
    assert not (tree / "opt/new").exists()


def test_every_volume_needs_its_server(tree: Path, network: NetworkNamespace) -> None:
    """A volume without a server is refused before anything starts."""
    spec = ProgramSpec(argv=(PYTHON,), env={}, root=str(tree), uid=SITE_USER, mounts=(MountPoint("/data", True),))
    with pytest.raises(ConfigError, match=r"launch\.servers_mismatch"):
        launch_program(spec, network=network, stdout=1, stderr=2)


def test_kill_9_of_the_shield_ends_the_program_at_once(tree: Path) -> None:
    """Within 100 ms of SIGKILL to the shield every process of the program is dead."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            script = "import os, time; os.fork(); os.write(1, b'u'); time.sleep(60)"
            spec = ProgramSpec(argv=(PYTHON, "-I", "-c", script), env={}, root=str(tree), uid=SITE_USER)
            launch_program(spec, network=create_network(), stdout=writer, stderr=writer).wait(60)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            raise
        finally:
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) + os.read(reader, 1) == b"uu"
    started = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    # The pipe ends when the last process that holds it is gone.
    assert os.read(reader, 1) == b""
    assert time.monotonic() - started < 0.5, "100 ms on a quiet machine"
    os.close(reader)
    os.waitpid(pid, 0)


def test_network_namespaces_are_apart(network: NetworkNamespace) -> None:
    """A listener inside is reachable inside only, with the same address free outside."""
    with network.listen_inside("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with network.connect_inside("127.0.0.1", port, timeout=2) as client:
            accepted, _ = listener.accept()
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"
            accepted.close()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), 1)
        with pytest.raises(StateError, match=r"network\.address_in_use"):
            network.listen_inside("127.0.0.1", port)
    with pytest.raises(UnavailableError, match=r"network\.no_answer"):
        network.connect_inside("127.0.0.1", port, timeout=2)


def test_a_closed_namespace_is_refused() -> None:
    """Use after close is an error, not another namespace."""
    made = create_network()
    made.close()
    with pytest.raises(StateError, match=r"network\.closed"):
        made.listen_inside("127.0.0.1", 0)
