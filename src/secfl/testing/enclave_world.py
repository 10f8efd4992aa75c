"""A simulated machine for tests: a small Python image, a platform process as root or as an ordinary user, and launches.

It takes the interpreter that runs the tests. As root the ordinary-user case gets a FUSE device of its own first, in a
private mount namespace, as a developer's machine would have it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import secfl
from secfl.errors import UnavailableError
from secfl.linux.images import pack_image
from secfl.linux.mounts import make_private
from secfl.linux.syscalls import CloneFlags, MountFlags, mount, unshare
from secfl.tee.simulated.client import EnclaveHandle, PlatformClient
from secfl.tee.simulated.machine import SimulatedMachine
from secfl.tee.simulated.process import MACHINE_FILE, PlatformProcess
from secfl.tee.simulated.requests import EnclaveCommand
from secfl.tee.simulated.vendor import Vendor
from secfl.volume.image_manifest import Mode

__all__ = [
    "ENV",
    "PYTHON",
    "SITE_USER",
    "EnclaveWorld",
    "Finished",
    "acting_as",
    "build_python_tree",
    "pack_python_image",
    "python_command",
]

PYTHON = "/opt/python/bin/python3"
ENV = {"LANG": "C.UTF-8", "PATH": "/opt/python/bin"}
SITE_USER = 61_001
_LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "ensurepip", "lib2to3", "tkinter", "config-3*", "turtledemo")
_FUSE_DEVICE = (10, 229)


def build_python_tree(tree: Path) -> None:
    """Copy this interpreter, its libraries and this package into a root file system.

    Raises:
        OSError: a file cannot be copied.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base, home = Path(sys.base_prefix), tree / "opt/python"
    (home / "bin").mkdir(parents=True)
    (tree / "lib").mkdir()
    shutil.copy2(Path(sys.executable).resolve(), home / "bin/python3")
    library = home / "lib" / version
    skip = shutil.ignore_patterns(*_LEFT_OUT, "__pycache__", "_tkinter*", "_test*")
    shutil.copytree(base / "lib" / version, library, ignore=skip)
    packages = library / "site-packages"
    packages.mkdir()
    shutil.copytree(Path(secfl.__file__).parent, packages / "secfl", ignore=shutil.ignore_patterns("__pycache__"))
    installed = Path(sys.prefix) / "lib" / version / "site-packages"
    for name in ("cryptography", "cffi"):
        shutil.copytree(installed / name, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    for extension in installed.glob("_cffi_backend*"):
        shutil.copy2(extension, packages)
    _copy_libraries(tree, [home / "bin/python3", *home.rglob("*.so*")])


def python_command(script: str, *, env: Mapping[str, str] | None = None, cwd: str = "/") -> EnclaveCommand:
    """Make the command that runs a script in the image's interpreter."""
    return EnclaveCommand((PYTHON, "-I", "-B", "-c", script), env if env is not None else ENV, cwd)


@dataclass
class Finished:
    """What an enclave left: exit code, measurement, output."""

    code: int
    measurement: bytes
    output: str


class EnclaveWorld:
    """One machine with a running platform process."""

    def __init__(self, image: Path, *, as_root: bool, kind: str = "tdx") -> None:
        """Enroll a machine and start its platform; `as_root` needs root.

        Raises:
            UnavailableError: `platform.unavailable`: the platform did not start.
        """
        self.base = Path(tempfile.mkdtemp(prefix="secfl-enclave-"))
        self.base.chmod(0o755)
        self.image = image
        self.user = SITE_USER if os.geteuid() == 0 else os.geteuid()
        self.kind = kind
        now = int(time.time())
        self.vendor = Vendor.create(now)
        self.machine = SimulatedMachine.enroll(self.vendor, now=now)
        self.keys, self.host, sockets = (self._directory(name) for name in ("keys", "host", "sockets"))
        (self.keys / MACHINE_FILE).write_bytes(self.machine.encode())
        sockets.chmod(0o755)
        for path in (self.host, *((self.keys, self.keys / MACHINE_FILE, sockets) if not as_root else ())):
            os.chown(path, self.user, self.user)
        self.socket_path = sockets / "platform.sock"
        self.client = PlatformClient(self.socket_path)
        self.platform = self._start(as_root=as_root)

    def _directory(self, name: str) -> Path:
        path = self.base / name
        path.mkdir(mode=0o700)
        return path

    def _start(self, *, as_root: bool) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                if not as_root and os.geteuid() == 0:
                    _offer_fuse()
                    _become(self.user)
                process = PlatformProcess(self.keys, kind=self.kind, socket_path=self.socket_path, site_user=self.user)
                process.run(self._announce)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                raise
            finally:
                os._exit(0)
        deadline = time.monotonic() + 10
        while not (self.socket_path.parent / "ready").exists():
            if time.monotonic() > deadline:
                raise UnavailableError("platform.unavailable", "the platform did not start")
            time.sleep(0.01)
        return pid

    def _announce(self, text: str) -> None:
        ready = self.socket_path.parent / "ready"
        ready.with_suffix(".new").write_text(text)
        ready.with_suffix(".new").rename(ready)

    def start(
        self, command: EnclaveCommand, *, config: bytes = b"{}", image: Path | None = None
    ) -> tuple[EnclaveHandle, int]:
        """Launch and return the handle and the reading end of the console.

        Raises:
            StateError: the platform refused, with its code.
        """
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            with acting_as(self.user):
                handle = self.client.launch(
                    image or self.image, command, config=config, host_dir=self.host, stdout=writer, stderr=writer
                )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        return handle, reader

    def run(self, command: EnclaveCommand, *, config: bytes = b"{}", image: Path | None = None) -> Finished:
        """Launch, wait for the end, return everything.

        Raises:
            StateError: the platform refused, with its code.
        """
        handle, reader = self.start(command, config=config, image=image)
        with os.fdopen(reader, "rb") as console:
            output = console.read().decode("utf-8", "replace")
        with acting_as(self.user):
            return Finished(self.client.wait(handle, timeout=30), handle.measurement, output)

    def close(self) -> None:
        """Stop the platform and remove everything."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.platform, signal.SIGKILL)
            os.waitpid(self.platform, 0)
        shutil.rmtree(self.base)


@contextlib.contextmanager
def acting_as(user: int) -> Iterator[None]:
    """Act as another user for a while, when this is root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


def pack_python_image(base: Path) -> Path:
    """Build the tree and pack it; return the image's directory, readable for everyone.

    Raises:
        ConfigError: packing failed.
    """
    tree, image = base / "tree", base / "image"
    build_python_tree(tree)
    pack_image(tree, image, mode=Mode.AUTHENTICATED)
    for path in (base, image):
        path.chmod(0o755)
    for path in image.iterdir():
        path.chmod(0o644)
    return image


def _offer_fuse() -> None:
    unshare(CloneFlags.NEWNS)
    make_private()
    mount("tmpfs", "/mnt", fstype="tmpfs", flags=MountFlags.NOSUID)
    node = Path("/mnt/fuse")
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(*_FUSE_DEVICE))
    node.chmod(0o666)
    mount(str(node), "/dev/fuse", flags=MountFlags.BIND)


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _copy_libraries(tree: Path, binaries: list[Path]) -> None:
    found: set[str] = set()
    for binary in binaries:
        listing = subprocess.run(["/usr/bin/ldd", binary], capture_output=True, text=True, check=False).stdout
        found.update(word for line in listing.splitlines() for word in line.split() if word.startswith("/"))
    for name in sorted(found):
        # The loader has its path in every binary; the rest is looked for in /lib.
        target = tree / name.lstrip("/") if "ld-linux" in name else tree / "lib" / Path(name).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, target)
