"""Sites on one machine: as root each has a network namespace with an address and an OS user of its own.

The namespaces have no names in the file system: a holder process keeps each alive and dies with its parent, so that
nothing stays behind, not even after `kill -9`. Without root all sites share the machine's loopback, each with an
address of its own, and `Sites.isolated` says so.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from secfl.crypto import strict_json
from secfl.errors import ConfigError, EngineError, SecflError

__all__ = ["Site", "SiteStepError", "Sites"]

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_FIRST_UID = 61_001
_LIBC = ctypes.CDLL(None, use_errno=True)


class SiteStepError(EngineError):
    """A step in a site's process failed; carries what it printed."""


@dataclass(slots=True)
class Site:
    """One participant's machine.

    Attributes:
        name: used for paths and messages.
        address: IPv4 address that the other sites reach.
        home: directory that belongs to the site's user.
        uid: numeric OS user, or None when all run as the caller.
    """

    name: str
    address: str
    home: Path
    uid: int | None
    network: int | None = None
    children: list[int] = field(default_factory=list)

    def enter(self, *, keep_root: bool = False) -> None:
        """Turn the calling process into one of this site: network namespace, then OS user.

        Raises:
            OSError: the namespace or user cannot be taken.
        """
        if self.network is not None and _LIBC.setns(self.network, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        if self.uid is not None and not keep_root:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        os.environ["HOME"] = str(self.home)
        os.umask(0o077)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function as this site and return its JSON-able result.

        Raises:
            SiteStepError: `site.step_failed` with the error's text.
        """
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            self._child(writer, function, arguments)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            data = pipe.read()
        os.waitpid(pid, 0)
        if not data:
            raise SiteStepError("site.step_failed", f"{self.name}: the step ended without an answer")
        answer = strict_json.decode(data)
        if "error" in answer:
            raise SiteStepError("site.step_failed", f"{self.name}: {answer['error']}", reason=answer["code"])
        return answer["value"]

    def _child(self, writer: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        status = 0
        try:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            self.enter()
            answer = {"value": function(*arguments)}
        except BaseException as error:  # noqa: BLE001 - the parent gets it as text; this process ends either way
            answer = {"error": str(error) or repr(error), "code": getattr(error, "code", type(error).__name__)}
            if os.environ.get("SECFL_TRACEBACK"):
                traceback.print_exc()
            status = 1
        try:
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(_encoded(answer))
        finally:
            # Whatever happens, the copy of the parent's program ends here.
            os._exit(status)

    def stream(self, function: Callable[[Callable[[Any], None]], None]) -> Iterator[Any]:
        """Run a function as this site; yield each JSON-able value that it emits, until it ends.

        Raises:
            SiteStepError: `site.step_failed` with the error's text.
        """
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            with os.fdopen(os.dup(writer), "wb", buffering=0) as pipe:

                def emit(value: Any) -> None:
                    pipe.write(strict_json.encode({"emitted": value}) + b"\n")

                self._child(writer, function, (emit,))
        os.close(writer)
        ended = False
        try:
            with os.fdopen(reader, "rb") as lines:
                for line in lines:
                    answer = strict_json.decode(line.removesuffix(b"\n"))
                    if "error" in answer:
                        raise SiteStepError(
                            "site.step_failed", f"{self.name}: {answer['error']}", reason=answer["code"]
                        )
                    if "emitted" in answer:
                        yield answer["emitted"]
                    ended = "value" in answer
            if not ended:
                raise SiteStepError("site.step_failed", f"{self.name}: the step ended without an answer")
        finally:
            _end(pid, at_once=True)

    def spawn(self, function: Callable[..., None], *arguments: Any, log: Path, keep_root: bool = False) -> int:
        """Start a long-running process of this site; returns its pid. Its output goes to `log`."""
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                os.setsid()
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                if self.uid is not None and not keep_root:
                    os.fchown(output, self.uid, self.uid)
                null = os.open(os.devnull, os.O_RDONLY)
                os.dup2(null, 0)
                os.dup2(output, 1)
                os.dup2(output, 2)
                self.enter(keep_root=keep_root)
                function(*arguments)
                status = 0
            except BaseException:  # noqa: BLE001 - written to the log of this process, which ends
                traceback.print_exc()
            os._exit(status)
        self.children.append(pid)
        return pid


class Sites:
    """All sites of one demonstration or test; a context manager that ends every process it started."""

    def __init__(self, names: list[str], base: Path, *, subnet: str = "10.83.0") -> None:
        """Make homes and, as root, networks and users.

        Raises:
            ConfigError: `sites.too_many` or `sites.network` when a namespace cannot be made.
        """
        if len(names) > 200:
            raise ConfigError("sites.too_many", "at most 200 sites")
        self.isolated = os.getuid() == 0
        # Modules that the library loads on first use: a site's user may not be able to read the interpreter's files.
        time.strptime("2000", "%Y")
        "localhost".encode("idna")
        self.sites: dict[str, Site] = {}
        self._holders: list[int] = []
        self._switch: int | None = None
        base.mkdir(parents=True, exist_ok=True)
        if self.isolated:
            base.chmod(0o755)
        try:
            if self.isolated:
                self._switch = self._hold()
                self._in_network(self._switch, ["link", "add", "sw", "type", "bridge"], ["link", "set", "sw", "up"])
            for number, name in enumerate(names, start=1):
                self.sites[name] = self._make(name, number, base, subnet)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Site:
        return self.sites[name]

    def close(self) -> None:
        """End the processes of all sites, then their networks."""
        for site in self.sites.values():
            for pid in site.children:
                _end(pid)
            site.children.clear()
            if site.network is not None:
                os.close(site.network)
                site.network = None
        for pid in self._holders:
            _end(pid, at_once=True)
        self._holders.clear()

    def _make(self, name: str, number: int, base: Path, subnet: str) -> Site:
        home = base / name
        home.mkdir(mode=0o700, exist_ok=True)
        if not self.isolated:
            return Site(name, f"127.83.0.{number}", home, None)
        uid = _FIRST_UID + number
        os.chown(home, uid, uid)
        holder = self._hold()
        assert self._switch is not None
        port = f"v{number}"
        self._in_network(
            self._switch,
            ["link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(holder)],
            ["link", "set", port, "master", "sw"],
            ["link", "set", port, "up"],
        )
        address = f"{subnet}.{number}"
        self._in_network(
            holder,
            ["link", "set", "lo", "up"],
            ["addr", "add", f"{address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
        )
        return Site(name, address, home, uid, os.open(f"/proc/{holder}/ns/net", os.O_RDONLY))

    def _hold(self) -> int:
        ready_reader, ready_writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            made = _LIBC.unshare(_CLONE_NEWNET) == 0
            os.write(ready_writer, b"1" if made else b"0")
            os.close(ready_writer)
            signal.pause()
            os._exit(0)
        os.close(ready_writer)
        answer = os.read(ready_reader, 1)
        os.close(ready_reader)
        self._holders.append(pid)
        if answer != b"1":
            raise ConfigError("sites.network", "a network namespace cannot be made here")
        return pid

    @staticmethod
    def _in_network(holder: int, *commands: list[str]) -> None:
        batch = "\n".join(" ".join(command) for command in commands) + "\n"
        descriptor = os.open(f"/proc/{holder}/ns/net", os.O_RDONLY)

        def enter() -> None:
            if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

        try:
            subprocess.run(
                ["ip", "-batch", "-"],  # noqa: S607 - iproute2 lies in different places
                input=batch.encode(),
                preexec_fn=enter,  # this process has one thread here
                pass_fds=(descriptor,),
                check=True,
                capture_output=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ConfigError("sites.network", f"iproute2 cannot set up a network: {error}") from error
        finally:
            os.close(descriptor)


def _encoded(answer: Any) -> bytes:
    try:
        return strict_json.encode(answer)
    except SecflError as error:
        return strict_json.encode({"error": str(error), "code": error.code})


def _end(pid: int, *, at_once: bool = False) -> None:
    """Ask a child to stop, then make it."""
    for number, patience in ((signal.SIGKILL, 100),) if at_once else ((signal.SIGTERM, 100), (signal.SIGKILL, 100)):
        try:
            os.kill(pid, number)
            for _ in range(patience):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    return
                signal.sigtimedwait([signal.SIGCHLD], 0.05)
        except (ProcessLookupError, ChildProcessError):
            return
