"""The plain layout: reproducible to the bit, and the same model as Flower's own programs give by themselves."""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from secfl.errors import EngineError
from secfl.federation.flower.launch import environment
from secfl.federation.flower.plain import Round, run_plain
from secfl.federation.flower.plain_keys import make_keys

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "heart-disease"
APP = EXAMPLE / "app"
BIN = Path(sys.executable).parent


@pytest.fixture
def data(tmp_path: Path) -> dict[str, dict[str, bool | int | float | str]]:
    """The node configuration of each hospital."""
    records = runpy.run_path(str(EXAMPLE / "partition.py"))["partition"](EXAMPLE / "heart4.npz", tmp_path / "data")
    return {site: {"data-path": str(path)} for site, path in records.items()}


def test_two_runs_give_the_same_bytes(tmp_path: Path, data: dict[str, dict[str, bool | int | float | str]]) -> None:
    """S7: equal seed, equal model file and equal metrics, whatever the order of arrival; another seed differs."""
    config: dict[str, bool | int | float | str] = {"num-rounds": 2, "min-nodes": 4, "seed": 3}
    seen: list[Round] = []
    first = run_plain(APP, data, config, tmp_path / "first", on_progress=seen.append)
    second = run_plain(APP, data, config, tmp_path / "second")
    other = run_plain(APP, data, {**config, "seed": 4}, tmp_path / "other")
    assert first.model.read_bytes() == second.model.read_bytes() != other.model.read_bytes()
    assert [(r.number, r.phase, r.metrics) for r in first.rounds] == [
        (r.number, r.phase, r.metrics) for r in second.rounds
    ]
    assert tuple(seen) == first.rounds
    assert [r.replies for r in first.rounds] == [tuple(sorted(data))] * 4


def test_an_app_that_fails_ends_the_run_with_an_error(tmp_path: Path) -> None:
    """Hospitals without data give error replies; the ServerApp fails and so does the call."""
    missing: dict[str, dict[str, bool | int | float | str]] = {site: {"data-path": "/none"} for site in ("a", "b")}
    with pytest.raises(EngineError, match=r"engine\.plain_failed"):
        run_plain(APP, missing, {"num-rounds": 1}, tmp_path / "work")


@contextmanager
def program(*command: str, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of Flower's own programs until the end of the block, then its whole process group."""
    process = subprocess.Popen(
        [str(BIN / command[0]), *command[1:]],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def flwr(*arguments: str, env: dict[str, str]) -> dict[str, object]:
    """Call the `flwr` command and read its JSON."""
    done = subprocess.run(
        [str(BIN / "flwr"), *arguments, "--format", "json"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def stock_model(root: Path, data: dict[str, dict[str, bool | int | float | str]], config: str) -> Path:
    """Run the app by `flwr run` on Flower's own SuperLink and SuperNodes in their default isolation."""
    keys = make_keys(root / "keys", list(data))
    with ExitStack() as sockets:
        found = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(1 + len(data))]
        port, *ports = [int(listener.getsockname()[1]) for listener in found]

    def variables(name: str) -> dict[str, str]:
        home = root / name
        home.mkdir(parents=True, exist_ok=True)
        return {"PATH": f"{BIN}:{os.environ['PATH']}", **environment(str(home))}

    env = variables("superlink")
    (root / "superlink" / "config.toml").write_text(
        f'[superlink]\ndefault = "fed"\n[superlink.fed]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{keys.root}"\n'
    )
    with ExitStack() as running:
        running.enter_context(program(
            "flower-superlink", "--ssl-ca-certfile", str(keys.root), "--ssl-certfile", str(keys.certificate),
            "--ssl-keyfile", str(keys.private_key), "--host", "127.0.0.1", "--port", str(port),
            "--disable-runtime-dependency-installation", env=env,
        ))  # fmt: skip
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for (site, node), node_port in zip(data.items(), ports, strict=True):
            running.enter_context(program(
                "flower-supernode", "--root-certificates", str(keys.root), "--superlink", f"127.0.0.1:{port}",
                "--host", "127.0.0.1", "--port", str(node_port), "--node-config", f'data-path="{node["data-path"]}"',
                env=variables(site),
            ))  # fmt: skip
        run_id = str(flwr("run", str(APP), "fed", "--run-config", config, env=env)["run-id"])
        deadline = time.monotonic() + 300
        while '"finished:completed"' not in json.dumps(flwr("ls", "fed", "--run-id", run_id, env=env)):
            assert time.monotonic() < deadline
            time.sleep(3.0)
    return Path.cwd() / "final_model.npz"  # the ServerApp inherits our directory


@pytest.mark.timeout(420)
def test_stock_flower_gives_the_same_model(
    tmp_path: Path, data: dict[str, dict[str, bool | int | float | str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """S7: `flwr run` on stock SuperLink and SuperNodes differs at most in the last bits, by order of arrival."""
    monkeypatch.chdir(tmp_path)
    ours = run_plain(APP, data, {"num-rounds": 2, "min-nodes": 4}, tmp_path / "ours")
    stock = stock_model(tmp_path / "stock", data, "num-rounds=2 min-nodes=4")
    with np.load(ours.model) as mine, np.load(stock) as theirs:
        difference = float(np.max(np.abs(mine["weights"] - theirs["weights"])))
        assert difference <= 4 * np.finfo(np.float64).eps * float(np.max(np.abs(mine["weights"])))
    print(f"largest difference from stock Flower: {difference:.3e}")
