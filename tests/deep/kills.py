"""Kills real processes with SIGKILL at random moments and looks at what the next start finds.

`volume`: the server of a mounted volume, while a program writes. `enclave`: a process of a running enclave, chosen at
random. `store`: a process that appends to the manager's log on disk.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from deep.outcome import arguments, report
from mount_world import in_private_namespace
from secfl.errors import SecflError
from secfl.linux.fuse_mount import mount_fuse, open_device
from secfl.linux.syscalls import UmountFlags, umount
from secfl.linux.volume_files import HostDirectory
from secfl.linux.volume_server import CommitPolicy, fork_volume_server
from secfl.manager.log import Event, Log
from secfl.manager.store import SqliteStore
from secfl.testing.enclave_world import EnclaveWorld, acting_as, pack_python_image, python_command
from secfl.testing.volume_world import MemoryKeeper
from secfl.volume.volume import create_volume, open_volume

__all__ = ["main"]

KEY, VOLUME_ID = bytes(range(32)), bytes(range(16))


class _Volume:
    """A volume whose server dies again and again; one file carries the number of its last write."""

    def __init__(self, base: Path, draw: random.Random) -> None:
        self.host, self.top, self.draw = base / "host", base / "mnt", draw
        self.top.mkdir()
        self.keeper = MemoryKeeper()
        self.written = self.acknowledged = 0
        host = HostDirectory(self.host)
        self.keeper.push(*create_volume(host.files, key=KEY, volume_id=VOLUME_ID, mode=0o700, now=0))
        host.close()

    def once(self) -> None:
        """Serve, check what is there, write until the kill, clean up."""
        host = HostDirectory(self.host)
        volume = open_volume(host.files, key=KEY, volume_id=VOLUME_ID, keeper=self.keeper)
        device = open_device()
        mount_fuse(device, str(self.top))
        owner = (os.getuid(), os.getgid())
        process = fork_volume_server(device, volume, policy=CommitPolicy(), owner=owner, keep=host.descriptors)
        host.close()
        os.close(device)
        service = threading.Thread(target=self._serve, args=(process,))
        service.start()
        try:
            found = self._found()
            if not self.acknowledged <= found <= self.written:
                raise AssertionError(f"found write {found} of {self.written}, {self.acknowledged} were acknowledged")
            self.written = self.acknowledged = found
            killer = threading.Timer(self.draw.uniform(0, 0.03), os.kill, (process.pid, signal.SIGKILL))
            killer.start()
            self._write()
            killer.join()
        finally:
            _kill(process.pid)
            service.join(10)
            process.wait()
            process.close()
            umount(str(self.top), flags=UmountFlags.DETACH)

    def _serve(self, process: object) -> None:
        try:
            process.serve(self.keeper, lambda code: None)  # type: ignore[attr-defined]
        except SecflError:
            return  # the server was killed, as intended

    def _found(self) -> int:
        path = self.top / "file"
        if not path.exists():
            return 0
        data = path.read_bytes()
        if data != data[:8] * (len(data) // 8):
            raise AssertionError("a write is there in part, although it was one commit")
        return int.from_bytes(data[:8], "big")

    def _write(self) -> None:
        try:
            while True:
                following = self.written + 1
                fd = os.open(self.top / "new", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
                try:
                    os.write(fd, following.to_bytes(8, "big") * self.draw.choice((1, 100, 12_500)))
                    os.fsync(fd)
                finally:
                    os.close(fd)
                self.written = following
                (self.top / "new").rename(self.top / "file")
                directory = os.open(self.top, os.O_RDONLY)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
                self.acknowledged = following
        except OSError:
            return  # the server is gone


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def volume(draw: random.Random, count: int) -> int:
    """Kill the server of a volume; give how many writes were acknowledged."""
    base = Path(tempfile.mkdtemp(prefix="secfl-deep-"))
    reading, writing = os.pipe()

    def work() -> None:
        site = _Volume(base, draw)
        total = 0
        for _ in range(count):
            before = site.acknowledged
            site.once()
            total += max(0, site.acknowledged - before)
        os.write(writing, b"%d" % total)

    try:
        in_private_namespace(work)
        os.close(writing)
        return int(os.read(reading, 32))
    finally:
        os.close(reading)
        shutil.rmtree(base)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def enclave(draw: random.Random, count: int) -> int:
    """Kill a process of an enclave; give how many enclaves ended and were reported."""
    base = Path(tempfile.mkdtemp(prefix="secfl-image-"))
    world = EnclaveWorld(pack_python_image(base), as_root=False)
    command = python_command(
        "import os, time; os.fork(); os.write(1, b'u')\nwhile True: os.stat('/opt'); time.sleep(0.001)"
    )
    try:
        for _ in range(count):
            handle, console = world.start(command)
            with os.fdopen(console, "rb") as stream:
                if stream.read(2) != b"uu":
                    raise AssertionError("the enclave did not start")
                time.sleep(draw.uniform(0, 0.01))
                _kill(draw.choice(_descendants(world.platform)))
                # A killed child of the program leaves the enclave running; then its first process is ended too.
                with acting_as(world.user):
                    world.client.stop(handle, grace=0)
                if stream.read() != b"":
                    raise AssertionError("a process of the enclave outlived it")
            if left := _descendants(world.platform):
                raise AssertionError(f"{len(left)} processes are left")
        return count
    finally:
        world.close()
        shutil.rmtree(base)


def store(draw: random.Random, count: int) -> int:
    """Kill a process that appends to a log; give how many entries were acknowledged."""
    directory = Path(tempfile.mkdtemp(prefix="secfl-deep-"))
    path = directory / "manager.sqlite"
    deployment, key = bytes(16), bytes(32)
    fresh = SqliteStore(path)
    fresh.create({"deployment_id": deployment}, [])
    fresh.close()
    acknowledged = 0
    try:
        for _ in range(count):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                _append_for_ever(path, Log(deployment, key), writing)
            os.close(writing)
            with os.fdopen(reading, "rb") as stream:
                stream.read(1)
                time.sleep(draw.uniform(0, 0.02))
                _kill(child)
                os.waitpid(child, 0)
                acknowledged += len(stream.read())
            opened = SqliteStore(path)
            entries = list(Log(deployment, key).load(opened.rows()))
            opened.close()
            if len(entries) < acknowledged:
                raise AssertionError(f"{len(entries)} entries are left, {acknowledged} were acknowledged")
            acknowledged = len(entries)
        return acknowledged
    finally:
        shutil.rmtree(directory)


def _append_for_ever(path: Path, log: Log, writing: int) -> None:
    try:
        opened = SqliteStore(path)
        list(log.load(opened.rows()))
        os.write(writing, b"!")
        while True:
            entries = [log.append(Event("exported", {}), now=1, salt=os.urandom(32)) for _ in range(2)]
            opened.append([entry.row for entry in entries])
            os.write(writing, b"..")
    finally:
        traceback.print_exc()
        os._exit(1)


PARTS: dict[str, Callable[[random.Random, int], int]] = {"volume": volume, "enclave": enclave, "store": store}


def main() -> int:
    """Run; a broken promise ends the part and is reported with its traceback."""
    options = arguments(PARTS)
    draw = random.Random(f"{options.seed}/{options.first}/{options.part}")
    try:
        reached = PARTS[options.part](draw, options.count)
    except Exception:  # noqa: BLE001 - whatever broke is the result
        options.failures.mkdir(parents=True, exist_ok=True)
        name = f"kills-{options.part}-{options.first}.txt"
        (options.failures / name).write_text(traceback.format_exc())
        return report(0, [name])
    return report(options.count, [], acknowledged=reached)


if __name__ == "__main__":
    sys.exit(main())
