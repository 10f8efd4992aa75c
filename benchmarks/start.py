"""The cold start of one enclave: from the launch request to the first line of the program that the study names.

A real platform process, a real manager process and the runtime image; the service mounts one small sealed image. For a
cold start the pages of all its files are dropped from the cache before.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks import ROOT
from benchmarks.machine import drop_cached
from benchmarks.manager_process import ManagerProcess
from benchmarks.result import Result, Table, median
from secfl.cli.enclaves import Entry, entry_of
from secfl.crypto.aead import random_key
from secfl.linux.images import pack_image
from secfl.shield.config import LaunchConfig
from secfl.tee.simulated.client import PlatformClient
from secfl.tee.simulated.image_source import MeasuredImage
from secfl.tee.simulated.process import MACHINE_FILE, PlatformProcess
from secfl.tee.simulated.requests import EnclaveCommand
from secfl.testing.deployment import Deployment
from secfl.testing.enclaves import KIND
from secfl.volume.image_manifest import Mode

__all__ = ["run"]

_USER = 61_001
_LINE = "the program's first line"
_PYTHON = ("/opt/python/bin/python3", "-I", "-B", "-S", "-c", f"print({_LINE!r}, flush=True)")
_SECONDS = 60.0
_PHASES = (
    "platform: read and hash the manifest",
    "platform: namespaces, mounts, exec",
    "enclave: Python up to its first statement",
    "shield: imports",
    "shield: keys, roots, nonce, evidence, release",
    "shield: open the volumes",
    "gate: new interpreter, namespaces, file system, filter",
    "program: Python up to its first line",
)


@dataclass(frozen=True, slots=True)
class _Stage:
    # What a launch needs.
    platform: PlatformClient
    entry: Entry
    config: bytes
    host: Path

    def files(self) -> list[Path]:
        return [file for folder in (self.entry.image, self.host / "cohort") for file in folder.iterdir()]


def run(*, quick: bool) -> Result:
    """Start the same enclave several times, cold and warm."""
    repetitions = 2 if quick else 7
    with TemporaryDirectory(prefix="secfl-bench-") as place, _stage(Path(place)) as stage:
        _start(stage, cold=False)
        warm = [_start(stage, cold=False) for _ in range(repetitions)]
        cold = [_start(stage, cold=True) for _ in range(repetitions)]
    result = Result("start", __doc__ or "")
    rows = []
    for name, *series in zip((*_PHASES, "all"), *(_medians(found) for found in (cold, warm)), strict=True):
        rows.append((name, *(f"{seconds * 1e3:.0f}" for seconds in series)))
    result.tables.append(Table(f"milliseconds, median of {repetitions}", ("phase", "cold", "warm"), rows))
    result.remarks.append("The mount of the image is new each time, so its own cache is empty for a warm start too.")
    return result


def _medians(starts: Sequence[Sequence[float]]) -> list[float]:
    return [median([start[phase] for start in starts]) for phase in range(len(_PHASES))] + [
        median([sum(start) for start in starts])
    ]


@contextmanager
def _stage(base: Path) -> Iterator[_Stage]:
    """A manager with the study in force, a platform, and the operator's directory."""
    base.chmod(0o711)
    entry = entry_of(ROOT / "build" / "image", "shield")
    host, source, state = base / "host", base / "records", base / "state"
    for folder in (host, source, state):
        folder.mkdir()
    (source / "records.csv").write_text("1,2,3\n")
    key = random_key()
    root = pack_image(source, host / "cohort", mode=Mode.ENCRYPTED, key=key).root
    deployment = Deployment("owner", sites=("hub",), now=int(time.time()))
    policy_hash = _agree(deployment, entry, root, key)
    user = _USER if os.geteuid() == 0 else None
    if user is not None:
        for path in (host, *host.rglob("*")):
            os.chown(path, user, user)
    socket = base / "platform.sock"
    with ManagerProcess(deployment, state) as manager, _platform(base, deployment, socket, user):
        config = LaunchConfig(
            manager=manager.address,
            study="hello",
            service="hello",
            site="hub",
            policy_hash=policy_hash,
            listen="127.0.0.1",
            peers={},
            images={"cohort": "cohort"},
            volumes={},
        )
        yield _Stage(PlatformClient(socket), entry, config.encode(), host)


@contextmanager
def _platform(base: Path, deployment: Deployment, socket: Path, user: int | None) -> Iterator[None]:
    keys = base / "platform"
    keys.mkdir(mode=0o700)
    (keys / MACHINE_FILE).write_bytes(deployment.machines["hub"].encode())
    pid = os.fork()
    if not pid:
        try:
            PlatformProcess(keys, kind=KIND, socket_path=socket, site_user=user).run(lambda _: None)
        finally:
            os._exit(1)
    try:
        while not socket.exists():
            time.sleep(0.01)
        yield
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


def _agree(deployment: Deployment, entry: Entry, root: bytes, key: bytes) -> str:
    """Put the owner's and the study's policy in force and grant the volume; gives the study's hash."""
    party = [deployment.members["owner"].entry()]
    rule = {"update": {"require-all": ["owner"]}}
    owned = {"secfl": "1", "name": "owner/cohort", "parties": party, "access_policy": rule}
    owned["volumes"] = [{"name": "cohort", "root": root.hex(), "deposited": True}]
    owner_hash = deployment.activate("owner/cohort", _yaml(owned), "owner")
    deployment.deposit("owner", "owner/cohort", "cohort", root, key)
    variant = {
        "trust_domain": deployment.domain,
        "tee": KIND,
        "measurement": [entry.measurements[KIND]],
        "tcb_status": ["UpToDate"],
        "minimum_tcb_evaluation": 1,
        "smt": "allow",
    }
    service = {
        "name": "hello",
        "image_name": "hello",
        "command": list(_PYTHON),
        "pwd": "/tmp",
        "attestation": [variant],
        "platforms": [deployment.machines["hub"].platform_id.hex()],
        "network": {"ingress": [], "egress": []},
        "console": "pass",
    }
    imported = {"policy": "owner/cohort", "policy_hash": owner_hash, "volume": "cohort"}
    study = {
        "secfl": "1",
        "name": "hello",
        "parties": party,
        "access_policy": rule,
        "services": [service],
        "images": [{"name": "hello", "volumes": [{"name": "cohort", "path": "/data"}]}],
        "volumes": [{"name": "cohort", "import": imported}],
    }
    study_hash = deployment.activate("hello", _yaml(study), "owner")
    volume = ("owner/cohort", "cohort", root)
    deployment.grant("owner", volume, ("hello", study_hash), expires=deployment.now + 86_400)
    return study_hash


def _yaml(document: Mapping[str, object]) -> bytes:
    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - the base's signature
            return True

    Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, width=10_000).encode()


def _start(stage: _Stage, *, cold: bool) -> list[float]:
    """Start once; gives the seconds of each phase."""

    def prepare() -> None:
        if cold:
            drop_cached(*stage.files())

    # What happens inside the platform and before the shield's first line is found by doing only that.
    prepare()
    measured = _measure_image(stage.entry.image)
    prepare()
    _, launched, lines = _launch(stage, EnclaveCommand(_PYTHON, stage.entry.command.env, "/"))
    python = lines[_LINE] - launched
    prepare()
    started, launched, lines = _launch(stage, stage.entry.command)
    if _LINE not in lines:
        raise RuntimeError(f"the service did not start: {list(lines)}")
    events = {event["event"]: (at, event["ms"] / 1e3) for line, at in lines.items() if (event := _event(line))}
    attested, opened, running = (events[name][0] for name in ("attested", "opened", "launched"))
    # The shield's own clock starts when its imports are done.
    imported = attested - events["attested"][1]
    marks = [
        started,
        started + measured,
        launched,
        launched + python,
        imported,
        attested,
        opened,
        running,
        lines[_LINE],
    ]
    return [later - earlier for earlier, later in pairwise(marks)]


def _event(line: str) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
    return event


def _measure_image(image: Path) -> float:
    """How long the platform takes to read and hash what it measures."""
    opened = [os.open(image / name, os.O_RDONLY) for name in ("manifest", "data")]
    started = time.monotonic()
    MeasuredImage(*opened)
    seconds = time.monotonic() - started
    for descriptor in opened:
        os.close(descriptor)
    return seconds


def _launch(stage: _Stage, command: EnclaveCommand) -> tuple[float, float, dict[str, float]]:
    """Launch an enclave to its end; gives when it was asked for and executed, and when each line came."""
    reader, writer = os.pipe()
    started = time.monotonic()
    try:
        handle = stage.platform.launch(
            stage.entry.image, command, config=stage.config, host_dir=stage.host, stdout=writer, stderr=writer
        )
    finally:
        os.close(writer)
    launched = time.monotonic()
    lines: dict[str, float] = {}
    rest = b""
    while select.select([reader], [], [], _SECONDS)[0] and (part := os.read(reader, 65536)):
        now = time.monotonic()
        *whole, rest = (rest + part).split(b"\n")
        lines |= {line.decode(): now for line in whole if line}
    os.close(reader)
    stage.platform.wait(handle, timeout=_SECONDS)
    return started, launched, lines
