"""Flower's own deployment: SuperLink, SuperNodes and `flwr run`, TLS, subprocess isolation; nothing of SECFL runs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.federation import Study
from secfl.errors import EngineError
from secfl.federation.flower.launch import assignments, environment
from secfl.federation.flower.plain_keys import make_keys

__all__ = ["stock_rounds"]

_BIN = Path(sys.executable).parent
_MARK = re.compile(rb"Sending: evaluate message")
"""What a SuperNode logs when it sends its reply to the second and last phase of a round."""
_READY_SECONDS, _LIMIT_SECONDS = 60.0, 900.0
_HOST = "127.0.0.1"


def stock_rounds(study: Study, work: Path) -> list[float]:
    """When each round had ended, in monotonic seconds.

    Raises:
        EngineError: `benchmark.run_failed`.
    """
    keys = make_keys(work / "keys", list(study.records))
    port, *ports = _free_ports(1 + len(study.records))
    with ExitStack() as running:
        running.enter_context(_program(
            "flower-superlink", "--ssl-ca-certfile", str(keys.root), "--ssl-certfile", str(keys.certificate),
            "--ssl-keyfile", str(keys.private_key), "--host", _HOST, "--port", str(port),
            "--disable-runtime-dependency-installation", home=work / "superlink", console=work / "superlink.log",
        ))  # fmt: skip
        _wait_for(port)
        for (site, node), node_port in zip(study.node_data.items(), ports, strict=True):
            running.enter_context(_program(
                "flower-supernode", "--root-certificates", str(keys.root), "--superlink", f"{_HOST}:{port}",
                "--host", _HOST, "--port", str(node_port), "--node-config", " ".join(assignments(node)),
                home=work / site, console=work / f"{site}.log",
            ))  # fmt: skip
        (work / "superlink" / "config.toml").write_text(
            f'[superlink]\ndefault = "fed"\n[superlink.fed]\naddress = "{_HOST}:{port}"\n'
            f'root-certificates = "{keys.root}"\n'
        )
        command = [str(_BIN / "flwr"), "run", str(study.app), "fed", "--format", "json"]
        command += ["--run-config", " ".join(assignments(study.run_config))]
        done = subprocess.run(command, env=_variables(work / "superlink"), capture_output=True, text=True, check=False)
        if done.returncode != 0 or not json.loads(done.stdout).get("success"):
            raise EngineError("benchmark.run_failed", done.stdout + done.stderr)
        sent = _marks([work / f"{site}.log" for site in study.records], study.rounds)
    # A round has ended when the last site has sent its reply.
    return [max(times) for times in zip(*sent, strict=True)]


def _marks(logs: list[Path], count: int) -> list[list[float]]:
    """Follow logs until each has so many marks; gives when each came, at a resolution of 20 ms."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    times: list[list[float]] = [[] for _ in logs]
    with ExitStack() as opened:
        files = [opened.enter_context(log.open("rb")) for log in logs]
        rests = [b""] * len(logs)
        while any(len(found) < count for found in times):
            if time.monotonic() > deadline:
                raise EngineError("benchmark.run_failed", f"rounds in the logs: {[len(found) for found in times]}")
            for index, file in enumerate(files):
                *lines, rests[index] = (rests[index] + file.read()).split(b"\n")
                times[index] += [time.monotonic() for line in lines if _MARK.search(line)]
            time.sleep(0.02)
    return times


@contextmanager
def _program(*command: str, home: Path, console: Path) -> Iterator[None]:
    """Run one of Flower's programs until the end of the block, then its whole process group."""
    with console.open("wb") as output:
        process = subprocess.Popen(
            [str(_BIN / command[0]), *command[1:]],
            env=_variables(home), cwd=home, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _variables(home: Path) -> dict[str, str]:
    home.mkdir(parents=True, exist_ok=True)
    return {"PATH": f"{_BIN}:{os.environ['PATH']}", **environment(str(home))}


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((_HOST, port)) == 0:
                return
        if time.monotonic() > deadline:
            raise EngineError("benchmark.run_failed", "the SuperLink does not listen")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        found = [sockets.enter_context(socket.create_server((_HOST, 0))) for _ in range(count)]
        return [int(listener.getsockname()[1]) for listener in found]
