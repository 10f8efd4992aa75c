"""The parties of a federation as process families: which programs, in which order, and when it is over.

Flower's own SuperLink and SuperNode run unmodified, each in a process of its own; the executor runs beside them. The
secret between a Flower process and its executor is drawn here and shared by a private file. All ports are on loopback.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from secfl.errors import EngineError, UnavailableError
from secfl.federation.flower.bundle import Bundle, unpack
from secfl.federation.flower.control import Control
from secfl.federation.flower.executor import ServerFiles, load_component, run_client, run_server
from secfl.federation.flower.launch import HOST, AggregatorLaunch, TrainerLaunch, superlink_arguments
from secfl.federation.flower.peers import PeerFile
from secfl.federation.flower.pins import Pins
from secfl.federation.flower.process import Ended, Family
from secfl.federation.flower.runtime import Endpoint
from secfl.federation.flower.wire import tls_context

__all__ = ["Aggregator", "Trainer", "fail_on_end", "run_family"]

_TICK_SECONDS = 0.1
_LOOK_SECONDS = 0.2
_LOOK_ALONE_SECONDS = 5.0
"""How often to ask the SuperLink who is online: while sites are expected, and while none is admitted yet."""
_ARRIVAL = re.compile(r"Receiving: \S+ message")
"""What Flower's SuperNode logs when a message arrives; seeing it saves polling, missing it costs up to a second."""


@dataclass(slots=True)
class Aggregator:
    """SuperLink, executor and the registration of nodes.

    Attributes:
        launch: the arguments.
        bundle: the pinned bundle.
        finished: whether the run is over and went well.
    """

    launch: AggregatorLaunch
    bundle: Bundle
    finished: bool = False
    _control: Control = field(init=False)
    _peers: PeerFile = field(init=False)
    _registered: dict[str, bytes] = field(default_factory=dict)
    _wake: int = -1
    _run_id: int | None = None
    _ready: bool = False
    _next_look: float = 0.0

    def start(self, family: Family) -> None:
        """Start the programs.

        Raises:
            UnavailableError: `engine.fork`.
            EngineError: `engine.root_certificate`, `engine.app_unpack`.
        """
        directory = Path(self.launch.run_directory)
        (directory / "admitted").mkdir(parents=True, exist_ok=True)
        work = Path(self.launch.work_directory)
        secret, secret_file = _new_secret("superlink")
        root = Path(self.launch.root_certificate).read_bytes()
        arguments = superlink_arguments(self.launch, secret_file)
        family.spawn("superlink", lambda: _superlink(arguments))
        pins = Pins(self.bundle, dict(self.launch.run_config))
        files = ServerFiles(
            directory / "peers.json", directory / "progress", directory / "pending", self.launch.minimum_clients
        )
        read, self._wake = os.pipe2(os.O_CLOEXEC)

        def execute() -> None:
            os.close(self._wake)
            code = unpack(self.bundle, _private("app"))
            app = load_component(self.bundle.server, code, ServerApp)
            os.chdir(work)
            _wait_listening(self._endpoint("flwr-serverapp", root))
            run_server(self._endpoint("flwr-serverapp", root), secret, pins, app, files, wake=read)

        family.spawn("serverapp", execute)
        os.close(read)
        self._control = Control(self._endpoint("flwr", root))
        self._peers = PeerFile(directory / "peers.json")

    def step(self) -> None:
        """Register nodes that appeared, and start the run once every site is online.

        Raises:
            EngineError: `engine.run_not_started`, `engine.api_refused`, `engine.peers_unreadable`.
        """
        waiting = self._run_id is None and (not self._ready or time.monotonic() >= self._next_look)
        if not waiting and not self._registration_changed():
            return
        self._next_look = time.monotonic() + (_LOOK_SECONDS if self._peers.all() else _LOOK_ALONE_SECONDS)
        try:
            online = self._control.online()
        except UnavailableError:
            if self._ready:
                raise
            return
        self._ready = True
        self._register()
        expected = {self._registered.get(site, b"") for site in self.launch.sites}
        if self._run_id is None and expected <= online:
            self._run_id = self._control.start_run(self.bundle, self.launch.run_config)
            os.write(self._wake, b"r")

    def ended(self, child: Ended) -> None:
        """Take notice of a child's end; the executor's is the run's.

        Raises:
            EngineError: `engine.child_ended`, `engine.run_failed`, `engine.api_refused`.
            UnavailableError: `engine.api_unreachable`.
        """
        if child.name != "serverapp" or child.status != 0 or self._run_id is None:
            raise fail_on_end(child)
        self._control.require_completed(self._run_id)
        self.finished = True

    def _endpoint(self, component: str, root: bytes) -> Endpoint:
        return Endpoint(HOST, self.launch.port, tls_context(root), component)

    def _registration_changed(self) -> bool:
        return any(self._registered.get(peer.site) != peer.key for peer in self._peers.all())

    def _register(self) -> None:
        for peer in self._peers.all():
            # A site that restarts comes with a new key; a key that is gone from the file stays powerless (grid).
            if peer.site in self.launch.sites and self._registered.get(peer.site) != peer.key:
                self._control.register(peer.key)
                self._registered[peer.site] = peer.key
                (Path(self.launch.run_directory) / "admitted" / peer.site).touch()


@dataclass(slots=True)
class Trainer:
    """SuperNode and executor of one site.

    Attributes:
        launch: the arguments.
        bundle: the pinned bundle.
        name: prefix of the children's names.
    """

    launch: TrainerLaunch
    bundle: Bundle
    name: str = "trainer"
    _wake: int = -1

    def start(self, family: Family) -> None:
        """Start the programs.

        Raises:
            UnavailableError: `engine.fork`.
        """
        work = Path(self.launch.work_directory)
        work.mkdir(parents=True, exist_ok=True)
        secret, secret_file = _new_secret("supernode")
        arguments = self.launch.supernode_arguments(secret_file)
        pins = Pins(self.bundle, dict(self.launch.run_config))
        endpoint = Endpoint(HOST, self.launch.port, None, "flwr-clientapp")
        read, self._wake = os.pipe2(os.O_CLOEXEC)

        def execute() -> None:
            os.close(self._wake)
            code = unpack(self.bundle, _private("app"))
            app = load_component(self.bundle.client, code, ClientApp)
            os.chdir(work)
            _wait_listening(endpoint)
            run_client(endpoint, secret, pins, app, read)

        family.spawn(f"{self.name}/supernode", lambda: _supernode(arguments), self._arrival)
        family.spawn(f"{self.name}/clientapp", execute)
        os.close(read)

    def ended(self, child: Ended) -> None:
        """Take notice of a child's end: none of them may end by itself.

        Raises:
            EngineError: `engine.child_ended`.
        """
        raise fail_on_end(child)

    def _arrival(self, line: str) -> None:
        if _ARRIVAL.search(line):
            os.write(self._wake, b"m")


def fail_on_end(child: Ended) -> EngineError:
    """Describe the unexpected end of a child; its last lines go to standard error of this process only."""
    sys.stderr.write("".join(f"{child.name}: {line}\n" for line in child.lines if line.strip()))
    return EngineError("engine.child_ended", f"{child.name} ended", name=child.name, status=child.status)


def run_family(family: Family, parties: Mapping[str, Aggregator | Trainer], step: Callable[[], bool]) -> None:
    """Supervise until `step` says that it is over or someone asks to stop; children never outlive this call.

    Raises:
        EngineError: `engine.child_ended`, `engine.run_failed`, `engine.api_refused`, `engine.peers_unreadable`.
        UnavailableError: `engine.api_unreachable`.
    """
    try:
        while not family.stopping and not step():
            for child in family.wait(_TICK_SECONDS):
                party = parties.get(child.name.partition("/")[0])
                if party is None:
                    raise fail_on_end(child)
                party.ended(child)
    finally:
        family.stop()


def _new_secret(name: str) -> tuple[bytes, str]:
    secret = secrets.token_bytes(32)
    path = _private(f"{name}.secret")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
    return secret, str(path)


def _private(name: str) -> Path:
    # Below Flower's private home, which the environment check demands; never a name that was used before: what an
    # earlier run or another process left there would be imported.
    return Path(os.environ["FLWR_HOME"]) / "secfl" / f"{name}-{secrets.token_hex(8)}"


def _superlink(arguments: Sequence[str]) -> None:
    from flwr.supercore.logger import update_console_handler
    from flwr.superlink.cli.flower_superlink import flower_superlink

    update_console_handler(level="WARNING", colored=False)
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def _supernode(arguments: Sequence[str]) -> None:
    from flwr.supercore.logger import update_console_handler
    from flwr.supernode.cli.flower_supernode import flower_supernode

    update_console_handler(level="INFO", colored=False)
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()


def _wait_listening(endpoint: Endpoint) -> None:
    while True:
        try:
            socket.create_connection((endpoint.host, endpoint.port), 1.0).close()
        except OSError:
            time.sleep(_TICK_SECONDS)
        else:
            return
