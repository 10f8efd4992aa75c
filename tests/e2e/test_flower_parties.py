"""The programs that the shield launches, over real TLS, with a relay where the gateway and the sidecars would be."""

from __future__ import annotations

import asyncio
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from secfl.crypto import strict_json
from secfl.federation.flower.bundle import build
from secfl.federation.flower.control import Control
from secfl.federation.flower.launch import AggregatorLaunch, TrainerLaunch, environment, gateway_rules
from secfl.federation.flower.plain_keys import PlainKeys, make_keys
from secfl.federation.flower.relay import Relay, RelayFiles
from secfl.federation.flower.runtime import Endpoint
from secfl.federation.flower.wire import tls_context

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "heart-disease"
APP = EXAMPLE / "app"
SITES = ("cleveland", "hungary")


class Federation:
    """Directories, keys and launch plans of one aggregator and its trainers, and the processes started so far."""

    def __init__(self, root: Path) -> None:
        partition = runpy.run_path(str(EXAMPLE / "partition.py"))["partition"]
        self.root = root
        self.run_directory = root / "run"
        self.run_directory.mkdir()
        (root / "server").mkdir()
        records = partition(EXAMPLE / "heart4.npz", root / "data")
        self.keys: PlainKeys = make_keys(root / "keys", SITES)
        app_hash = build(APP).sha256
        superlink, self.relay_port, *nodes = free_ports(2 + len(SITES))
        self.superlink_port = superlink
        config: dict[str, bool | int | float | str] = {"num-rounds": 2, "min-nodes": 2}
        self.aggregator = AggregatorLaunch(
            app_directory=str(APP),
            app_hash=app_hash,
            run_config=config,
            sites=SITES,
            root_certificate=str(self.keys.root),
            certificate=str(self.keys.certificate),
            private_key=str(self.keys.private_key),
            work_directory=str(root / "server"),
            run_directory=str(self.run_directory),
            port=superlink,
        )
        self.trainers = {
            site: TrainerLaunch(
                app_directory=str(APP),
                app_hash=app_hash,
                run_config=config,
                node_config={"data-path": str(records[site])},
                root_certificate=str(self.keys.root),
                node_key=str(self.keys.node_private[site]),
                sidecar_port=self.relay_port,
                work_directory=str(root / site),
                port=port,
            )
            for site, port in zip(SITES, nodes, strict=True)
        }
        self.processes: list[subprocess.Popen[str]] = []
        self._relay: tuple[asyncio.Runner, asyncio.Event, threading.Thread] | None = None

    def write_peers(self, sites: tuple[str, ...] = SITES, lease: int = 3600) -> None:
        """Do what the shield does: replace the list of peers."""
        until = int(time.time()) + lease
        entries = [{"site": s, "node_key": self.keys.node_public[s], "lease_until": until} for s in sites]
        new = self.run_directory / "peers.new"
        new.write_bytes(strict_json.encode({"peers": entries}))
        new.replace(self.run_directory / "peers.json")

    def start_relay(self) -> None:
        """Stand in for gateway and sidecars."""
        files = RelayFiles(
            certificate=self.keys.certificate,
            private_key=self.keys.private_key,
            root_certificate=self.keys.root,
            pending=self.run_directory / "pending",
            admitted=self.run_directory / "admitted" / SITES[-1],
        )
        runner, stop = asyncio.Runner(), asyncio.Event()
        runner.get_loop()
        thread = threading.Thread(target=lambda: runner.run(self._serve(files, stop)))
        self._relay = (runner, stop, thread)
        thread.start()

    async def _serve(self, files: RelayFiles, stop: asyncio.Event) -> None:
        serving = asyncio.create_task(Relay(gateway_rules(), files, self.superlink_port).serve(self.relay_port))
        await stop.wait()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    def start(self, launch: AggregatorLaunch | TrainerLaunch) -> subprocess.Popen[str]:
        """Start a party."""
        home = self.root / f"home-{len(self.processes)}"
        process = subprocess.Popen(
            launch.command(sys.executable),
            env={"PATH": os.environ["PATH"], **environment(str(home))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        """End what is left."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        if self._relay is not None:
            runner, stop, thread = self._relay
            runner.get_loop().call_soon_threadsafe(stop.set)
            thread.join()
            runner.close()  # cancels the tasks of connections that are still held


def free_ports(count: int) -> list[int]:
    """Find ports nobody listens on."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def descendants(pid: int) -> set[int]:
    """Find the processes below one, by the kernel's own list."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children}.union(*(descendants(int(child)) for child in children))


def alive(pid: int) -> bool:
    """Tell whether a process still runs; one that ended but was not collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: set[int], seconds: float = 10.0) -> set[int]:
    """Wait for processes to end; return those that did not."""
    deadline = time.monotonic() + seconds
    while (left := {pid for pid in pids if alive(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """A federation whose processes are gone after the test."""
    made = Federation(tmp_path)
    yield made
    made.stop()


def test_parties_train_together_and_end_in_order(federation: Federation) -> None:
    """Aggregator and trainers run the agreed rounds; the aggregator ends with 0, a trainer on SIGTERM with 0."""
    federation.start_relay()
    aggregator = federation.start(federation.aggregator)
    trainers = [federation.start(launch) for launch in federation.trainers.values()]
    federation.write_peers()
    output, _ = aggregator.communicate(timeout=90)
    assert aggregator.returncode == 0, output
    lines = (federation.run_directory / "progress").read_bytes().splitlines()
    phases = [strict_json.decode(line) for line in lines]
    assert [(p["round"], p["phase"]) for p in phases] == [
        (1, "train"), (1, "evaluate"), (2, "train"), (2, "evaluate"),
    ]  # fmt: skip
    assert all(p["replies"] == list(SITES) for p in phases)
    assert 0.5 < float.fromhex(phases[-1]["metrics"]["auc"]) <= 1.0
    assert (federation.root / "server" / "final_model.npz").is_file()
    assert sorted(p.name for p in (federation.run_directory / "admitted").iterdir()) == list(SITES)
    family = set.union(*(descendants(trainer.pid) for trainer in trainers))
    assert len(family) == 2 * len(SITES)
    for trainer in trainers:
        trainer.send_signal(signal.SIGTERM)
    for trainer in trainers:
        output, _ = trainer.communicate(timeout=20)
        assert trainer.returncode == 0, output
    assert not wait_until_gone(family)


def test_a_dead_child_ends_its_party_and_leaves_no_orphan(federation: Federation) -> None:
    """When the SuperNode dies the trainer ends with an error, and when a supervisor is killed its children die."""
    first, second = (federation.start(launch) for launch in federation.trainers.values())
    deadline = time.monotonic() + 30
    while len(descendants(first.pid)) < 2 or len(descendants(second.pid)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family_first, family_second = descendants(first.pid), descendants(second.pid)
    os.kill(min(family_first), signal.SIGKILL)
    output, _ = first.communicate(timeout=20)
    assert first.returncode == 18
    assert "engine.child_ended" in output
    second.kill()
    assert not wait_until_gone(family_first | family_second)


def test_changed_app_is_refused_before_anything_starts(federation: Federation) -> None:
    """A party whose app directory does not give the pinned bundle ends at once, naming the rule."""
    process = federation.start(replace(federation.trainers[SITES[0]], app_hash="00" * 32))
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 18
    assert "engine.app_not_pinned" in output


def test_fl_01_a_site_whose_lease_lapses_is_left_out_of_later_rounds(federation: Federation) -> None:
    """The shield stops renewing one site in the middle of a run: later rounds are trained without it."""
    config: dict[str, bool | int | float | str] = {"num-rounds": 8, "min-nodes": 1}
    federation.start_relay()
    aggregator = federation.start(replace(federation.aggregator, run_config=config))
    for launch in federation.trainers.values():
        federation.start(replace(launch, run_config=config))
    federation.write_peers()
    progress = federation.run_directory / "progress"
    deadline = time.monotonic() + 60
    while not progress.exists() or len(progress.read_bytes().splitlines()) < 2:
        assert time.monotonic() < deadline
        assert aggregator.poll() is None
        time.sleep(0.02)
    federation.write_peers(SITES[:1])
    output, _ = aggregator.communicate(timeout=90)
    assert aggregator.returncode == 0, output
    replies = [strict_json.decode(line)["replies"] for line in progress.read_bytes().splitlines()]
    assert len(replies) == 16
    assert replies[0] == list(SITES)
    assert replies[-1] == list(SITES[:1])
    first = replies.index(list(SITES[:1]))
    assert all(sites == list(SITES[:1]) for sites in replies[first:])


def test_fl_29_a_run_of_other_code_at_the_superlink_is_not_run(federation: Federation, tmp_path: Path) -> None:
    """Whoever reaches the open Control API can start a run, but the executor refuses its code and the party ends."""
    canary = tmp_path / "canary"
    evil = tmp_path / "evil"
    shutil.copytree(APP, evil, ignore=shutil.ignore_patterns("__pycache__"))
    server = evil / "heart" / "server.py"
    server.write_text(f"import pathlib\npathlib.Path({str(canary)!r}).write_text('ran')\n" + server.read_text())
    aggregator = federation.start(federation.aggregator)
    tls = tls_context(federation.keys.root.read_bytes())
    control = Control(Endpoint("127.0.0.1", federation.superlink_port, tls, "flwr"))
    control.wait_ready()
    control.start_run(build(evil), federation.aggregator.run_config)
    output, _ = aggregator.communicate(timeout=30)
    control.close()
    assert aggregator.returncode == 18
    assert "engine.app_not_pinned" in output
    assert not canary.exists()


def test_fl_29_a_run_with_another_configuration_is_not_run(federation: Federation) -> None:
    """The pinned app with another configuration than the policy's is refused too."""
    aggregator = federation.start(federation.aggregator)
    tls = tls_context(federation.keys.root.read_bytes())
    control = Control(Endpoint("127.0.0.1", federation.superlink_port, tls, "flwr"))
    control.wait_ready()
    control.start_run(build(APP), {**federation.aggregator.run_config, "learning-rate": 50.0})
    output, _ = aggregator.communicate(timeout=30)
    control.close()
    assert aggregator.returncode == 18
    assert "engine.run_config_changed" in output


def test_an_unsafe_environment_is_refused(federation: Federation) -> None:
    """With telemetry on, nothing of Flower is even imported."""
    command = federation.aggregator.command(sys.executable)
    done = subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)
    assert done.returncode == 17
    assert "engine.environment" in done.stderr
