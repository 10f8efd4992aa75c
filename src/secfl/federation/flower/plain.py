"""The plain layout: the same federation without enclaves, for comparison and for development.

The same unmodified Flower processes, TLS, node authentication and warm executor run on one machine with plain files.
Flower's SuperNode waits three seconds after an empty pull; the confidential layout's gateway holds such pulls, so the
plain layout has a loopback relay with the same timing. Without the relay the figures are Flower's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from secfl.crypto import strict_json
from secfl.errors import EngineError
from secfl.federation.flower.bundle import build
from secfl.federation.flower.launch import Scalar, assignments, environment

__all__ = ["PlainResult", "Round", "run_plain"]

_POLL_SECONDS = 0.05
_STOP_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Round:
    """One phase of one round.

    Attributes:
        number: counted from 1.
        phase: `train` or `evaluate`.
        metrics: means over the replies, weighted by number of examples.
        replies: sites whose reply counted.
        seconds: time since the start of the federation.
    """

    number: int
    phase: str
    metrics: Mapping[str, float]
    replies: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class PlainResult:
    """What a plain federation gave.

    Attributes:
        rounds: all phases in order.
        model: `final_model.npz` of the ServerApp.
        seconds: from start to end.
        processor_seconds: of all processes together.
    """

    rounds: tuple[Round, ...]
    model: Path
    seconds: float
    processor_seconds: float


def run_plain(
    app_directory: Path,
    node_data: Mapping[str, Mapping[str, Scalar]],
    run_config: Mapping[str, Scalar],
    work_directory: Path,
    *,
    on_progress: Callable[[Round], None] = lambda _: None,
    relay: bool = True,
) -> PlainResult:
    """Run a federation of one SuperNode a site in plain processes, to its end.

    Args:
        app_directory: an ordinary Flower app.
        node_data: node configuration of each site.
        run_config: values over the app's own run configuration.
        work_directory: new or empty; keys, logs and the model are left there.
        on_progress: called for each phase.
        relay: hold empty pulls; see the module.

    Raises:
        ConfigError: `engine.app_directory`, `engine.app_invalid`, `engine.config_value`.
        EngineError: `engine.plain_failed`.
    """
    work_directory.mkdir(parents=True, exist_ok=True)
    plan = {
        "app_dir": str(app_directory.resolve()),
        "app_hash": build(app_directory).sha256,
        "run_config": assignments(run_config),
        "nodes": {site: assignments(config) for site, config in node_data.items()},
        "relay": relay,
    }
    plan_file = work_directory / "plan.json"
    plan_file.write_bytes(strict_json.encode(plan))
    command = [sys.executable, "-B", "-m", "secfl.federation.flower", "plain", "--plan", str(plan_file)]
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG", "TMPDIR") if name in os.environ}
    started = time.monotonic()
    rounds: list[Round] = []
    with (work_directory / "errors.log").open("wb") as errors:
        process = subprocess.Popen(
            command,
            env={**inherited, **environment(str(work_directory / "home"))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            offset = 0
            while (status := process.poll()) is None:
                offset = _follow(work_directory / "run" / "progress", offset, started, rounds, on_progress)
                time.sleep(_POLL_SECONDS)
            _follow(work_directory / "run" / "progress", offset, started, rounds, on_progress)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    if status != 0:
        reason = (work_directory / "errors.log").read_text("utf-8", "replace").strip().splitlines()
        raise EngineError("engine.plain_failed", reason[-1] if reason else f"it ended with status {status}")
    usage = json.loads((work_directory / "usage.json").read_text())
    return PlainResult(
        tuple(rounds), work_directory / "server" / "final_model.npz", usage["seconds"], usage["processor_seconds"]
    )


def _follow(path: Path, offset: int, started: float, rounds: list[Round], on_progress: Callable[[Round], None]) -> int:
    if not path.exists():
        return offset
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            document = strict_json.decode(line[:-1])
            entry = Round(
                document["round"],
                document["phase"],
                {name: float.fromhex(value) for name, value in document["metrics"].items()},
                tuple(document["replies"]),
                time.monotonic() - started,
            )
            rounds.append(entry)
            on_progress(entry)
    return offset
