"""The platform process of a site: it measures, launches, and signs quotes for what it launched. SIMULATED: no hardware.

It owns the machine's keys, in a directory that only its own user may enter, and listens on a local socket. Only its own
user and the site's user may ask (the kernel says who asks). It is one thread without blocking calls on a requester:
a quote takes 0.1 ms, a launch goes on in processes of its own. When it ends, however it ends, every enclave ends.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import selectors
import signal
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from secfl.errors import AuthorizationError, ConfigError, EncodingError, SecflError, StateError, UnavailableError
from secfl.linux import packets
from secfl.linux.namespaces import in_initial_user_namespace
from secfl.linux.syscalls import set_dumpable
from secfl.tee.simulated.enclave import Enclave, answer_enclave, measure
from secfl.tee.simulated.enclave_root import EnclaveFiles
from secfl.tee.simulated.image_source import MeasuredImage
from secfl.tee.simulated.launch import launch_enclave
from secfl.tee.simulated.machine import SimulatedMachine
from secfl.tee.simulated.requests import (
    ID_BYTES,
    MAX_CONFIG_BYTES,
    LaunchRequest,
    Request,
    StopRequest,
    WaitRequest,
    parse_request,
)

__all__ = ["BANNER", "MACHINE_FILE", "PlatformProcess", "load_machine"]

BANNER = "SIMULATED platform: no hardware protects what runs here, and root on this machine reads all of it"
MACHINE_FILE = "machine.json"
_MAX_ENCLAVES = 64
_MAX_REQUESTERS = 64
_MAX_STATE = 64 * 1024
_DESCRIPTORS = 6


def load_machine(directory: Path) -> SimulatedMachine:
    """Read the machine's keys from a directory that nobody else may enter.

    Raises:
        ConfigError: `platform.directory_open` or `platform.directory_unreadable`.
        EncodingError: `simulated.machine_state`.
    """
    try:
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise ConfigError("platform.directory_open", "the platform's directory is its own user's, mode 0700")
        with (directory / MACHINE_FILE).open("rb") as stream:
            state = stream.read(_MAX_STATE + 1)
    except OSError as error:
        raise ConfigError("platform.directory_unreadable", f"cannot read the keys: {error.strerror}") from error
    return SimulatedMachine.decode(state)


class PlatformProcess:
    """The server; `run` does not return before it is told to stop."""

    def __init__(self, directory: Path, *, kind: str, socket_path: Path, site_user: int | None = None) -> None:
        """Load the keys.

        Args:
            directory: holds the machine's keys.
            kind: the evidence it gives, `sgx` or `tdx`.
            socket_path: where to listen.
            site_user: the site's numeric user; required when this process is the machine's root, else its own.

        Raises:
            ConfigError: `platform.site_user`, and the codes of `load_machine`.
            EncodingError: `simulated.machine_state`.
        """
        own = os.geteuid()
        if own == 0 and in_initial_user_namespace():
            if not site_user:
                # Files such as /proc/sys/kernel/core_pattern obey the machine's uid 0 even without capabilities.
                raise ConfigError("platform.site_user", "a platform run by root needs the number of the site's user")
        elif site_user not in (None, own):
            raise ConfigError("platform.site_user", "without root, enclaves run as the platform's own user")
        self._user = site_user if site_user is not None else own
        self._machine = load_machine(directory)
        self._directory = directory.resolve()
        self._kind = kind
        self._socket_path = socket_path
        self._allowed = frozenset({own, self._user})
        self._enclaves: dict[str, Enclave] = {}
        self._requesters: set[socket.socket] = set()
        self._selector = selectors.DefaultSelector()
        self._stopping = False

    def run(self, announce: Callable[[str], None]) -> None:
        """Serve until SIGTERM or SIGINT; every enclave ends with it.

        Raises:
            ConfigError: `platform.socket`: the address is taken or not writable.
        """
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        set_dumpable(allowed=False)
        wake_reader, wake_writer = socket.socketpair()
        wake_writer.settimeout(0)
        signal.set_wakeup_fd(wake_writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        listener = self._listen()
        self._watch(listener, lambda: self._accept(listener))
        self._watch(wake_reader, lambda: wake_reader.recv(64))
        announce(f"{BANNER} [{self._kind} {self._machine.platform_id.hex()}]")
        try:
            while not self._stopping:
                for key, _ in self._selector.select():
                    # An earlier event of this round may have closed a later one's socket.
                    if isinstance(key.fileobj, socket.socket) and key.fileobj.fileno() >= 0:
                        key.data()
        finally:
            self._socket_path.unlink(missing_ok=True)
            for enclave in self._enclaves.values():
                if enclave.state in ("starting", "running"):
                    os.kill(enclave.launched.monitor, signal.SIGKILL)
                    os.waitpid(enclave.launched.monitor, 0)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _listen(self) -> socket.socket:
        _remove_stale(self._socket_path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.bind(str(self._socket_path))
            self._socket_path.chmod(0o600)
            os.chown(self._socket_path, self._user, -1)
            listener.listen(16)
        except OSError as error:
            listener.close()
            raise ConfigError("platform.socket", f"cannot listen: {error.strerror}") from error
        return listener

    def _watch(self, source: socket.socket, handler: Callable[[], object]) -> None:
        self._selector.register(source, selectors.EVENT_READ, handler)

    def _accept(self, listener: socket.socket) -> None:
        requester, _ = listener.accept()
        credentials = requester.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, user, _ = struct.unpack("3i", credentials)
        requester.settimeout(0)
        if len(self._requesters) >= _MAX_REQUESTERS:
            requester.close()
            return
        self._requesters.add(requester)
        serve = self._request if user in self._allowed else self._refuse
        self._watch(requester, lambda: serve(requester))

    def _refuse(self, requester: socket.socket) -> None:
        # The question is taken off the socket first; closing over it would lose the answer as well.
        with contextlib.suppress(EncodingError, UnavailableError):
            packets.receive(requester)
        self._reply(
            requester, packets.describe_error(AuthorizationError("platform.not_allowed", "this user may not ask"))
        )
        self._forget(requester)

    def _request(self, requester: socket.socket) -> None:
        try:
            packet = packets.receive(requester, descriptors=_DESCRIPTORS)
        except (EncodingError, UnavailableError) as error:
            self._reply(requester, packets.describe_error(error))
            packet = None
        if packet is None:
            self._forget(requester)
            return
        try:
            answer = self._perform(parse_request(packet), requester)
        except SecflError as error:
            answer = packets.describe_error(error)
        except OSError as error:
            answer = packets.describe_error(
                StateError("platform.launch_failed", error.strerror or "a system call failed")
            )
        finally:
            for descriptor in packet.descriptors:
                os.close(descriptor)
        if answer is not None:
            self._reply(requester, answer)

    def _perform(self, request: Request, requester: socket.socket) -> dict[str, Any] | None:
        if isinstance(request, LaunchRequest):
            self._launch(request, requester)
            return None
        if isinstance(request, StopRequest):
            enclave = self._find(request.enclave)
            if enclave.state in ("starting", "running"):
                number = signal.SIGKILL if request.kill else signal.SIGTERM
                packets.send(enclave.launched.status, {"signal": int(number)})
            return {"ok": True}
        if isinstance(request, WaitRequest):
            enclave = self._find(request.enclave)
            if enclave.code is not None:
                return {"exit": enclave.code}
            enclave.waiters.append(requester)
            return None
        return {"enclaves": [_describe(enclave) for enclave in self._enclaves.values()]}

    def _launch(self, request: LaunchRequest, requester: socket.socket) -> None:
        self._make_room()
        image = MeasuredImage(request.files.manifest, request.files.data)
        self._require_host(request.files.host)
        measurement = measure(self._kind, image.root, request.command)
        config = _copy_config(request.files.config)
        try:
            files = EnclaveFiles(request.files.host, config, request.files.stdout, request.files.stderr)
            launched = launch_enclave(image, request.command, files, user=self._user)
        finally:
            os.close(config)
        enclave = Enclave(secrets.token_hex(ID_BYTES), measurement, launched, requester=requester)
        self._enclaves[enclave.name] = enclave
        launched.channel.settimeout(0)
        self._watch(launched.channel, lambda: self._answer(enclave))
        self._watch(launched.status, lambda: self._progress(enclave))

    def _make_room(self) -> None:
        if len(self._enclaves) < _MAX_ENCLAVES:
            return
        for name, enclave in self._enclaves.items():
            if enclave.state in ("exited", "failed"):
                del self._enclaves[name]
                return
        raise StateError("platform.full", "too many enclaves run here", expected=_MAX_ENCLAVES)

    def _require_host(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != self._user:
            raise ConfigError("platform.host_dir_refused", "the host directory belongs to the site's user")
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        if place == self._directory or place in self._directory.parents or self._directory in place.parents:
            # The platform's own user could read its keys through it.
            raise ConfigError("platform.host_dir_refused", "the host directory overlaps the platform's own")

    def _answer(self, enclave: Enclave) -> None:
        channel = enclave.launched.channel
        try:
            packet = packets.receive(channel)
            if packet is not None:
                packets.send(channel, answer_enclave(self._machine, self._kind, enclave.measurement, packet))
                return
        except (EncodingError, UnavailableError):
            # An enclave that talks nonsense or does not read its answers loses its channel.
            pass
        self._drop(channel)

    def _progress(self, enclave: Enclave) -> None:
        try:
            packet = packets.receive(enclave.launched.status)
        except UnavailableError:
            packet = None
        if packet is not None and packet.message.get("event") == "started":
            enclave.state = "running"
            self._tell_requester(enclave, {"id": enclave.name, "measurement": enclave.measurement.hex()})
            return
        self._finish(enclave, packet)

    def _finish(self, enclave: Enclave, packet: packets.Packet | None) -> None:
        self._drop(enclave.launched.status)
        self._drop(enclave.launched.channel)
        os.kill(enclave.launched.monitor, signal.SIGKILL)
        os.waitpid(enclave.launched.monitor, 0)
        if packet is not None and packet.message.get("event") == "exited":
            enclave.state, enclave.code = "exited", int(packet.message["code"])
        else:
            enclave.state, enclave.code = "failed", 125
            ended = packets.describe_error(StateError("platform.launch_failed", "the launch ended without an answer"))
            self._tell_requester(enclave, packet.message if packet is not None else ended)
        for waiter in enclave.waiters:
            self._reply(waiter, {"exit": enclave.code})
        enclave.waiters.clear()

    def _tell_requester(self, enclave: Enclave, message: dict[str, Any]) -> None:
        if enclave.requester is not None:
            self._reply(enclave.requester, message)
            enclave.requester = None

    def _find(self, name: str) -> Enclave:
        if name not in self._enclaves:
            raise StateError("platform.unknown_enclave", "no enclave has this id", enclave=name)
        return self._enclaves[name]

    def _reply(self, requester: socket.socket, message: dict[str, Any]) -> None:
        try:
            packets.send(requester, message)
        except UnavailableError:
            # It went away; its own read event closes it.
            return

    def _forget(self, requester: socket.socket) -> None:
        self._requesters.discard(requester)
        for enclave in self._enclaves.values():
            enclave.waiters = [waiter for waiter in enclave.waiters if waiter is not requester]
            if enclave.requester is requester:
                enclave.requester = None
        self._drop(requester)

    def _drop(self, source: socket.socket) -> None:
        if source.fileno() >= 0:
            self._selector.unregister(source)
            source.close()


def _remove_stale(path: Path) -> None:
    """Remove the socket of a platform process that was killed: nobody listens there any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            # Absent, of another kind or not ours: binding says what is wrong.
            return


def _describe(enclave: Enclave) -> dict[str, Any]:
    return {
        "id": enclave.name,
        "measurement": enclave.measurement.hex(),
        "state": enclave.state,
        "exit": enclave.code,
    }


def _copy_config(descriptor: int) -> int:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ConfigError("platform.config_refused", "the configuration is a regular or memory file")
    data = os.pread(descriptor, MAX_CONFIG_BYTES + 1, 0)
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError("platform.config_refused", "the configuration is too large", expected=MAX_CONFIG_BYTES)
    return packets.sealed_memory("secfl-config", data)
