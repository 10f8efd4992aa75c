"""A manager process under load: the real program with its real store, on a platform that this process plays.

The deployment is prepared in memory and written to the store; then the process opens it, as after a restart.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.machine import children_of, on_cores
from secfl.crypto import strict_json
from secfl.crypto.encoding import to_base64url
from secfl.errors import EngineError
from secfl.linux.https_client import HttpsClient
from secfl.manager.config import LaunchConfig
from secfl.manager.run import STORE_FILE
from secfl.manager.sealed_store import SealedStore
from secfl.manager.store import SqliteStore
from secfl.tee.bundle import TrustBundle
from secfl.testing.deployment import Deployment
from secfl.testing.enclaves import KIND, MANAGER_MEASUREMENT, MachineAttester

__all__ = ["ManagerProcess"]

_PLATFORM_FD, _CONFIG_FD = 3, 4


class ManagerProcess:
    """The manager of a deployment as a process of its own, which ends with the `with` block."""

    def __init__(self, deployment: Deployment, directory: Path, *, cores: Sequence[int] = ()) -> None:
        """Start it and wait until it serves.

        Args:
            cores: the processors that it may run on; all of ours when there are none.
        """
        _write_store(deployment, directory / STORE_FILE)
        self._attester = MachineAttester(deployment.machines["manager"], MANAGER_MEASUREMENT)
        self._platform, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        threading.Thread(target=self._answer, daemon=True).start()
        trust = directory / "collateral.json"
        bundle = TrustBundle(deployment.vendor.anchor(), {KIND: deployment.vendor.collateral(KIND, deployment.now)})
        trust.write_bytes(bundle.encode())
        config = LaunchConfig(
            listen="127.0.0.1:0",
            founders=deployment.founders.founders,
            state_dir=str(directory),
            collateral=str(trust),
            verifier_processes=1,
        )
        self.pid, line = _spawn(config.encode(), child, cores)
        child.close()
        if "ready" not in line:
            raise EngineError("benchmark.no_manager", f"the manager did not start: {line}")
        self.address = str(line["ready"])
        self._pin = hashlib.sha256(deployment.manager.state.identity.public.certificate).digest()

    @property
    def pids(self) -> list[int]:
        """The manager and its verifiers."""
        return children_of(self.pid)

    def client(self) -> HttpsClient:
        """A client that pins the manager's certificate."""
        return HttpsClient(self.address, certificate_sha256=self._pin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.kill(self.pid, signal.SIGTERM)
        os.waitpid(self.pid, 0)
        self._platform.close()

    def _answer(self) -> None:
        while packet := self._platform.recv(65536):
            request = strict_json.decode(packet)
            if request["op"] == "info":
                answer = {"kind": KIND, "platform_id": self._attester.platform_id.hex()}
            elif request["op"] == "seal_key":
                answer = {"key": to_base64url(self._attester.sealing_key(request["label"]))}
            else:
                answer = {"quote": to_base64url(self._attester.collect(bytes.fromhex(request["report_data"])).blob)}
            self._platform.send(strict_json.encode(answer))


def _write_store(deployment: Deployment, path: Path) -> None:
    file = SqliteStore(path)
    SealedStore(file, deployment.sealer).create(deployment.store.meta(), list(deployment.store.rows()))
    file.close()


def _spawn(config: bytes, platform: socket.socket, cores: Sequence[int]) -> tuple[int, dict[str, object]]:
    launch = os.memfd_create("launch")
    os.write(launch, config)
    reading, writing = os.pipe()
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 20) for descriptor in (platform.fileno(), launch, writing)]
    actions = [(os.POSIX_SPAWN_DUP2, high[index], target) for index, target in enumerate((_PLATFORM_FD, _CONFIG_FD, 1))]
    command = [sys.executable, "-I", "-B", "-m", "secfl.manager"]
    environment = {"LANG": "C.UTF-8", "PATH": os.environ["PATH"]}
    with on_cores(cores or os.sched_getaffinity(0)):
        pid = os.posix_spawn(sys.executable, command, environment, file_actions=actions)
    for descriptor in (*high, launch, writing):
        os.close(descriptor)
    with os.fdopen(reading, "rb") as console:
        return pid, strict_json.decode(console.readline().strip())
