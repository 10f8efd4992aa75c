"""The shield around a real program: how it waits, stops, and what its exit status says; network processes as root."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import network_world as nw
from secfl.crypto import strict_json
from secfl.crypto.hpke import SealingKey
from secfl.errors import AppraisalError, ConfigError, Finding, StateError
from secfl.linux.launcher import RunningProgram, launch_program
from secfl.linux.namespaces import NetworkNamespace, create_network
from secfl.linux.program import ProgramSpec
from secfl.protocol.payload import Egress, Ingress, ServicePayload
from secfl.protocol.service import Peer
from secfl.shield.network import NetworkShield, Wire
from secfl.shield.run_directory import RunDirectory
from secfl.shield.service import FAILED_SHIELD, Phases, _finish, _wait
from secfl.shield.volumes import MountedSet
from secfl.shield.watch import Watch
from secfl.testing.enclave_world import PYTHON, SITE_USER
from shield_world import NotingNetwork, Shields, within

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to launch without an enclave")


Start = Callable[[str], RunningProgram]


@pytest.fixture
def start(tree: Path, network: NetworkNamespace) -> Iterator[Start]:
    """Starts programs and ends them."""
    running: list[RunningProgram] = []

    def launch(script: str) -> RunningProgram:
        spec = ProgramSpec(argv=(PYTHON, "-I", "-c", script), env={}, uid=SITE_USER, root=str(tree))
        null = os.open(os.devnull, os.O_WRONLY)
        running.append(launch_program(spec, network=network, stdout=null, stderr=null))
        os.close(null)
        return running[-1]

    yield launch
    for program in running:
        program.close()


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    """A watch whose threads were not started."""
    shields = Shields()
    transport = shields.transport()
    enrolment = shields.enrolment("aggregator", transport=transport)
    enrolment.attest(transport)
    run_directory = RunDirectory(os.open(tmp_path, os.O_RDONLY))
    return Watch(
        enrolment,
        shields.transport,
        network=NotingNetwork(),  # type: ignore[arg-type]
        run_directory=run_directory,
        report=lambda _: None,
    )


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A helper process."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """Leave the signal as it was."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@as_root
@pytest.mark.parametrize("code", [0, 7])
def test_the_programs_status_passes_through(start: Start, watch: Watch, code: int) -> None:
    """With everything well the exit status is the program's."""
    opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only the number counts
    program = start(f"raise SystemExit({code})")
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert _wait(program, watch, {}) == code
    assert not watch.failed
    assert len(os.listdir("/proc/self/fd")) == descriptors >= opened  # noqa: PTH208


@as_root
def test_a_watch_that_fails_stops_the_program(start: Start, watch: Watch) -> None:
    """The status then says that the shield stopped it."""
    program = start("import time; time.sleep(60)")
    threading.Timer(0.1, watch.fail, [StateError("a.b", "no")]).start()
    assert _wait(program, watch, {}) == FAILED_SHIELD
    assert program.poll() is not None


@as_root
def test_nw_05_a_gateway_that_dies_stops_the_program(
    start: Start, watch: Watch, sleeper: subprocess.Popen[bytes]
) -> None:
    """A program never runs on without the process that protects it, and the process is named."""
    program = start("import time; time.sleep(60)")
    threading.Timer(0.1, sleeper.kill).start()
    started = time.monotonic()
    assert _wait(program, watch, {"gateway fleet": sleeper.pid}) == FAILED_SHIELD
    assert time.monotonic() - started < 2
    assert watch.failure is not None
    assert watch.failure.code == "shield.helper_ended"
    assert "gateway fleet" in watch.failure.message


@as_root
def test_a_volume_server_that_ends_with_the_program_is_no_failure(
    start: Start, watch: Watch, sleeper: subprocess.Popen[bytes]
) -> None:
    """A program that ends takes its mounts with it; their servers may be seen to end first."""
    program = start("import time; time.sleep(0.4); raise SystemExit(3)")
    sleeper.kill()
    assert _wait(program, watch, {"volume model": sleeper.pid}) == 3
    assert not watch.failed


@as_root
def test_a_volume_server_that_dies_alone_stops_the_program(
    start: Start, watch: Watch, sleeper: subprocess.Popen[bytes]
) -> None:
    """A program whose volume is gone is stopped after a short while."""
    program = start("import time; time.sleep(60)")
    sleeper.kill()
    assert _wait(program, watch, {"volume model": sleeper.pid}) == FAILED_SHIELD
    assert watch.failed


@as_root
def test_sv_14_a_request_to_stop_reaches_the_program(start: Start, watch: Watch) -> None:
    """On SIGTERM the program's own handler decides the status, and nothing counts as failed."""
    program = start("import signal, sys, time; signal.signal(15, lambda *_: sys.exit(42)); time.sleep(60)")
    time.sleep(0.2)
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
    assert _wait(program, watch, {}) == 42
    assert not watch.failed


def test_a_good_end_with_a_failed_watch_is_not_good(watch: Watch) -> None:
    """A failure turns 0 into 121 and leaves any other status."""
    mounted = MountedSet("11" * 16, "heart", {}, lambda *_: None)
    assert _finish(0, mounted, watch) == 0
    watch.fail(StateError("a.b", "no"))
    assert _finish(0, mounted, watch) == 121
    assert _finish(7, mounted, watch) == 7
    assert _finish(FAILED_SHIELD, mounted, watch) == FAILED_SHIELD


def test_phases_are_json_lines_that_outlive_their_reader() -> None:
    """Each is one canonical line with the time; findings stand in it; a console that is gone stops nothing."""
    stream = io.StringIO()
    phases = Phases(stream)
    phases.write("attested", lease_until=9)
    phases.write_error("failed", AppraisalError([Finding("appraisal.roots", "a", "b", "c")]))
    lines = [strict_json.decode(line.encode()) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["attested", "failed"]
    assert lines[1]["findings"] == [["appraisal.roots", "a", "b", "c"]]
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError), os.fdopen(writer, "w") as gone:
        Phases(gone).write("attested")


def _shield(config: bytes, *, stop_at: socket.socket | None = None) -> tuple[int, str]:
    """Run the shield's entry as the platform would, without a platform."""
    read, write = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.send(strict_json.encode({"kind": "tdx", "platform_id": "11" * 16}))
    os.write(write, config)
    os.close(write)

    def place() -> None:
        # Copies first: either may have the number that the other one gets.
        platform, launch = os.dup(theirs.fileno()), os.dup(read)
        os.dup2(platform, 3)
        os.dup2(launch, 4)

    process = subprocess.Popen(
        [sys.executable, "-m", "secfl.shield"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        close_fds=False,
        preexec_fn=place,  # noqa: PLW1509 - one thread
    )
    os.close(read)
    if stop_at is not None:
        stop_at.settimeout(20)
        stop_at.accept()
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    ours.close()
    theirs.close()
    return process.returncode, output


@pytest.mark.parametrize("config", [b"", b"{}", b"x" * 60_000], ids=["empty", "incomplete", "long"])
def test_a_start_that_fails_says_125_and_why(config: bytes) -> None:
    """A malformed configuration is one JSON line with a code and the status for "not started"."""
    status, output = _shield(config)
    assert status == 125
    assert json.loads(output)["event"] == "failed"
    assert json.loads(output)["code"].split(".")[0] in ("message", "json")


def _config(port: int) -> bytes:
    return Shields().config("trainer", manager=f"127.0.0.1:{port}").encode()


def test_an_absent_manager_is_125() -> None:
    """Nothing is started without the manager."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    status, output = _shield(_config(port))
    assert (status, json.loads(output)["code"]) == (125, "client.unreachable")


def test_sv_14_a_request_to_stop_ends_a_start() -> None:
    """The first process of a namespace ignores signals without a handler; the shield has one from the beginning."""
    with socket.create_server(("127.0.0.1", 0)) as manager:
        status, output = _shield(_config(manager.getsockname()[1]), stop_at=manager)
    assert (status, json.loads(output)["code"]) == (125, "shield.stopped")


def _payload(study: nw.Study, *, port: int, egress: bool = True) -> ServicePayload:
    return ServicePayload(
        study=nw.STUDY,
        policy_hash=nw.POLICY.hex(),
        service="aggregator",
        site="hub",
        command=("/x",),
        environment={},
        pwd="/",
        files=(),
        volumes=(),
        ingress=(
            Ingress(
                name="fleet",
                port=port,
                to="127.0.0.1:9092",
                peers=("trainer",),
                allow=("POST /v1/*",),
                hold=(),
                linger=(),
            ),
        ),
        egress=(Egress(name="out", listen="127.0.0.1:9443", service="peer", ingress="fleet"),) if egress else (),
        console="suppress",
        ca_certificate=study.ca.certificate,
        roster=(),
        lease_seconds=60,
    )


def _wire(study: nw.Study, payload: ServicePayload, peers: dict[str, str]) -> Wire:
    enclave = study.enclave("aggregator", site="hub")
    return Wire(
        payload=payload, identity=enclave.identity, sealing_key=SealingKey.generate(), listen="127.0.0.1", peers=peers
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@as_root
def test_network_processes_start_listen_report_and_end(tmp_path: Path) -> None:
    """Both ways in and out have a process of their own, which hears the shield and ends when it closes the line."""
    study, port = nw.Study(), _free_port()
    with create_network() as namespace:
        network = NetworkShield(namespace, _wire(study, _payload(study, port=port), {"peer": "127.0.0.1:1"}))
        network.listen()
        network.start(RunDirectory(os.open(tmp_path, os.O_RDONLY)))
        assert set(network.children) == {"gateway fleet", "sidecar out"}
        events: list[dict[str, str]] = []

        def ready() -> bool:
            events.extend(network.events())
            return [event["event"] for event in events].count("ready") == 2

        assert within(15, ready)
        socket.create_connection(("127.0.0.1", port), 2).close()
        network.update_identity(study.enclave("aggregator", site="hub").identity)
        network.update_peers([Peer(site="a", service="trainer", tls_key_id="00" * 32, lease_until=9)])
        network.close()
        for child in network.children.values():
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@as_root
def test_sv_22_a_stopped_gateway_is_noticed(tmp_path: Path) -> None:
    """A process that hangs costs a bounded time and then the service, never the renewal of its lease unnoticed."""
    study, port = nw.Study(), _free_port()
    with create_network() as namespace:
        network = NetworkShield(namespace, _wire(study, _payload(study, port=port, egress=False), {}))
        network.listen()
        network.start(RunDirectory(os.open(tmp_path, os.O_RDONLY)))
        (child,) = network.children.values()
        os.kill(child, signal.SIGSTOP)
        roster = [Peer(site="a", service="trainer", tls_key_id="00" * 32, node_key="x" * 1000, lease_until=9)] * 900
        started = time.monotonic()
        with pytest.raises(StateError, match=r"network\.process_hung"):
            network.update_peers(roster)
        assert time.monotonic() - started < 8
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        network.update_peers([])


@as_root
def test_nw_05_a_network_that_cannot_be_opened_stops_the_start() -> None:
    """A taken port and a missing peer are found before the program exists, and before anything is forked."""
    study = nw.Study()
    with create_network() as namespace, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        network = NetworkShield(namespace, _wire(study, _payload(study, port=port, egress=False), {}))
        with pytest.raises(ConfigError, match=r"network\.listen"):
            network.listen()
        network = NetworkShield(namespace, _wire(study, _payload(study, port=_free_port()), {}))
        with pytest.raises(ConfigError, match=r"network\.no_peer_address"):
            network.listen()
        assert network.children == {}
