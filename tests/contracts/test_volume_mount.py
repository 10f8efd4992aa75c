"""The sealed volume as programs see it: a real mount in a private namespace, served by its own process."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from secfl.errors import ConfigError, SecflError
from secfl.linux.fuse_mount import mount_fuse, open_device
from secfl.linux.mounts import make_private
from secfl.linux.namespaces import map_single_user
from secfl.linux.syscalls import CloneFlags, UmountFlags, umount, unshare
from secfl.linux.volume_channel import NOT_SEALED, VolumeProcess
from secfl.linux.volume_files import HostDirectory
from secfl.linux.volume_server import CommitPolicy, fork_volume_server
from secfl.testing.volume_world import MemoryKeeper
from secfl.volume.storage import Root
from secfl.volume.volume import create_volume, open_volume

KEY = bytes(range(32))
VOLUME_ID = bytes(range(16))
NO_FUSE = 77
_MAP = """
import mmap, sys
with open(sys.argv[1], "w+b") as stream:
    stream.truncate(300_000)
    with mmap.mmap(stream.fileno(), 300_000) as view:
        view[70_000:70_005] = b"hello"
        view.flush()
"""


@dataclass
class Site:
    """A host directory, a mount point and a freshness service, all in one private namespace."""

    base: Path
    keeper: MemoryKeeper = field(default_factory=MemoryKeeper)
    failed: list[str] = field(default_factory=list)
    last: Root | None = None
    error: SecflError | None = None
    process: VolumeProcess | None = None

    @property
    def top(self) -> Path:
        return self.base / "mnt"

    def start(self, policy: CommitPolicy | None = None) -> threading.Thread:
        host = HostDirectory(self.base / "host")
        if self.keeper.head() is None:
            self.keeper.push(*create_volume(host.files, key=KEY, volume_id=VOLUME_ID, mode=0o700, now=0))
        volume = open_volume(host.files, key=KEY, volume_id=VOLUME_ID, keeper=self.keeper)
        self.top.mkdir(exist_ok=True)
        fd = open_device()
        mount_fuse(fd, str(self.top))
        owner = (os.getuid(), os.getgid())
        self.process = fork_volume_server(
            fd, volume, policy=policy or CommitPolicy(), owner=owner, keep=host.descriptors
        )
        host.close()
        os.close(fd)
        thread = threading.Thread(target=self._serve, args=(self.process,))
        thread.start()
        return thread

    def _serve(self, process: VolumeProcess) -> None:
        try:
            self.last = process.serve(self.keeper, self.failed.append)
        except SecflError as error:
            self.error = error

    @contextlib.contextmanager
    def mounted(self, policy: CommitPolicy | None = None) -> Iterator[Path]:
        thread = self.start(policy)
        assert self.process is not None
        try:
            yield self.top
        finally:
            umount(str(self.top))
            thread.join(10)
            status = self.process.wait()
            self.process.close()
        assert status == 0
        assert self.last == self.keeper.root

    def kill(self, thread: threading.Thread) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        thread.join(10)
        assert self.process.wait() == -signal.SIGKILL
        umount(str(self.top), flags=UmountFlags.DETACH)


def in_private_namespace(work: Callable[[Site], None], base: Path) -> None:
    """Run `work` in a child with its own mounts; skip when this machine has no FUSE for us."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(60)
            os.close(reader)
            try:
                if os.getuid():
                    map_single_user(os.getuid())
                unshare(CloneFlags.NEWNS)
                make_private()
                os.close(open_device())
            except ConfigError as error:
                os.write(writer, str(error).encode())
                os._exit(NO_FUSE)
            work(Site(base))
            status = 0
        except BaseException:  # noqa: BLE001 - reported to the parent, whatever it is
            os.write(writer, traceback.format_exc().encode()[-60000:])
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == NO_FUSE:
        pytest.skip(f"no FUSE mount here: {text}")
    assert status == 0, text


def test_files_directories_and_links_behave_as_posix_says(tmp_path: Path) -> None:
    """Names, links, modes, times, sizes, appends, holes and removals give what a Linux file system gives."""

    def work(site: Site) -> None:
        with site.mounted() as top:
            (top / "d").mkdir()
            file = top / "d" / "f"
            file.write_bytes(b"hello")
            with file.open("ab") as stream:
                stream.write(b" world")
            assert file.read_bytes() == b"hello world"
            os.link(file, top / "hard")
            assert (top / "hard").stat().st_nlink == 2
            (top / "soft").symlink_to("d/f")
            assert (top / "soft").read_bytes() == b"hello world"
            file.chmod(0o640)
            os.utime(file, ns=(1_000_000_001, 2_000_000_002))
            stat = file.stat()
            assert (stat.st_mode & 0o7777, stat.st_mtime_ns, stat.st_atime_ns) == (0o640, 2_000_000_002, 1_000_000_001)
            os.truncate(file, 5)
            os.truncate(file, 200_000)
            assert (top / "hard").read_bytes() == b"hello" + bytes(199_995)
            with pytest.raises(OSError, match="not empty"):
                (top / "d").rmdir()
            file.rename(top / "moved")
            assert sorted(path.name for path in top.iterdir()) == ["d", "hard", "moved", "soft"]
            (top / "d").rmdir()
            with pytest.raises(FileNotFoundError):
                (top / "soft").read_bytes()
            for number in range(300):
                (top / f"many-{number}").touch()
            assert len(list(top.iterdir())) == 303
            for path in top.glob("many-*"):
                path.unlink()
            with pytest.raises(PermissionError):
                os.mkfifo(top / "pipe")
            with pytest.raises(PermissionError):
                os.chown(top, 4321, 4321)
            with pytest.raises(OSError, match="supported") as caught:
                os.setxattr(top, "user.a", b"b")
            assert caught.value.errno == errno.ENOTSUP
            fd = os.open(top / "moved", os.O_RDWR)
            os.posix_fallocate(fd, 0, 300_000)
            assert os.fstat(fd).st_size == 300_000
            os.close(fd)
        with site.mounted() as top:
            assert sorted(path.name for path in top.iterdir()) == ["hard", "moved", "soft"]
            assert (top / "moved").read_bytes() == b"hello" + bytes(299_995)

    in_private_namespace(work, tmp_path)


def test_a_file_without_a_name_lives_until_it_is_closed(tmp_path: Path) -> None:
    """An unlinked or replaced file can be written and read through its descriptor, and leaves nothing behind."""

    def work(site: Site) -> None:
        with site.mounted() as top:
            (top / "new").write_bytes(b"new")
            with (top / "old").open("w+b") as stream:
                stream.write(b"x" * 100_000)
                stream.flush()
                (top / "new").rename(top / "old")
                os.fsync(stream.fileno())
                stream.write(b"y" * 100_000)
                stream.seek(99_999)
                assert stream.read(2) == b"xy"
            assert (top / "old").read_bytes() == b"new"
        with site.mounted() as top:
            assert [path.name for path in top.iterdir()] == ["old"]
            assert (top / "old").read_bytes() == b"new"

    in_private_namespace(work, tmp_path)


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_sqlite_keeps_its_database(tmp_path: Path, mode: str) -> None:
    """SQLite works in rollback-journal and in WAL mode, which maps shared memory, and its check finds no fault."""

    def work(site: Site) -> None:
        with site.mounted() as top:
            for round_number in range(2):
                with contextlib.closing(sqlite3.connect(top / "db")) as db:
                    assert db.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode.lower(),)
                    db.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, v BLOB)")
                    for number in range(20):
                        with db:
                            db.execute("INSERT INTO t (v) VALUES (?)", (bytes([number]) * 5000,))
                    assert db.execute("SELECT count(*) FROM t").fetchone() == (20 * (round_number + 1),)
        with site.mounted() as top, contextlib.closing(sqlite3.connect(top / "db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert db.execute("SELECT count(*) FROM t").fetchone() == (40,)

    in_private_namespace(work, tmp_path)


def test_shared_mappings_are_written_back(tmp_path: Path) -> None:
    """Bytes stored through a shared writable mapping are in the file, and after a remount too."""

    def work(site: Site) -> None:
        with site.mounted() as top:
            # In a process of its own: msync keeps Python's lock, and the thread that carries the push needs it.
            subprocess.run([sys.executable, "-c", _MAP, str(top / "f")], check=True, timeout=30)
            assert (top / "f").read_bytes()[70_000:70_005] == b"hello"
        with site.mounted() as top:
            assert (top / "f").read_bytes() == bytes(70_000) + b"hello" + bytes(229_995)

    in_private_namespace(work, tmp_path)


def test_what_fsync_answered_survives_a_killed_server(tmp_path: Path) -> None:
    """After kill -9 of the server, each checkpoint whose fsync returned is whole, and the program only sees errors."""

    def work(site: Site) -> None:
        for round_number in range(3):
            thread = site.start()
            data = os.urandom(200_000) + bytes([round_number])
            with (site.top / "tmp").open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            (site.top / "tmp").rename(site.top / "checkpoint")
            fd = os.open(site.top, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            (site.top / "later").write_bytes(b"not synced")
            site.kill(thread)
            with site.mounted() as top:
                assert (top / "checkpoint").read_bytes() == data

    in_private_namespace(work, tmp_path)


def test_a_dead_server_gives_errors_and_never_plain_files(tmp_path: Path) -> None:
    """When the server dies under a running program, its writes fail and nothing lands in the directory below."""

    def work(site: Site) -> None:
        thread = site.start()
        assert site.process is not None
        (site.top / "f").write_bytes(b"x")
        os.kill(site.process.pid, signal.SIGKILL)
        thread.join(10)
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is checked below
            (site.top / "secret").write_bytes(b"plain text")
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        assert site.process.wait() == -signal.SIGKILL
        umount(str(site.top), flags=UmountFlags.DETACH)
        assert list(site.top.iterdir()) == []

    in_private_namespace(work, tmp_path)


def test_fsync_waits_for_the_freshness_service(tmp_path: Path) -> None:
    """A sync fails while the service is out of reach, the volume stays usable, and a later fsync makes all durable."""

    def work(site: Site) -> None:
        with site.mounted() as top, (top / "f").open("wb") as stream:
            stream.write(b"one")
            stream.flush()
            os.fsync(stream.fileno())
            site.keeper.reachable = False
            stream.write(b"two")
            stream.flush()
            with pytest.raises(OSError, match="Input/output"):
                os.fsync(stream.fileno())
            assert (top / "f").read_bytes() == b"onetwo"
            site.keeper.reachable = True
            os.fsync(stream.fileno())
            assert site.keeper.root is not None
        with site.mounted() as top:
            assert (top / "f").read_bytes() == b"onetwo"

    in_private_namespace(work, tmp_path)


def test_the_timer_commits_without_any_fsync(tmp_path: Path) -> None:
    """A change reaches the service within the interval although the program never syncs."""

    def work(site: Site) -> None:
        with site.mounted(CommitPolicy(interval=0.05)) as top:
            pushes = site.keeper.pushes
            (top / "f").write_bytes(b"x")
            deadline = time.monotonic() + 5
            while site.keeper.pushes == pushes and time.monotonic() < deadline:
                time.sleep(0.02)
            assert site.keeper.pushes > pushes

    in_private_namespace(work, tmp_path)


def test_close_can_wait_for_the_commit(tmp_path: Path) -> None:
    """Under the close policy a file is acknowledged when close returns."""

    def work(site: Site) -> None:
        with site.mounted(CommitPolicy(on_close=True, interval=60)) as top:
            pushes = site.keeper.pushes
            (top / "f").write_bytes(b"x")
            assert site.keeper.pushes == pushes + 1

    in_private_namespace(work, tmp_path)


def test_fsyncs_during_a_push_share_the_next_one(tmp_path: Path) -> None:
    """Sixteen programs that sync at once while pushes are slow need far fewer pushes than syncs."""

    def work(site: Site) -> None:
        with site.mounted(CommitPolicy(interval=60)) as top:
            site.keeper.delay = 0.1
            before = site.keeper.pushes

            def one(number: int) -> None:
                with (top / str(number)).open("wb") as stream:
                    stream.write(b"x")
                    stream.flush()
                    os.fsync(stream.fileno())

            threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert site.keeper.pushes - before <= 6

    in_private_namespace(work, tmp_path)


def test_a_stop_that_cannot_push_says_not_sealed(tmp_path: Path) -> None:
    """An orderly stop whose last push is refused ends with its own exit status and an error for the shield."""

    def work(site: Site) -> None:
        thread = site.start(CommitPolicy(interval=60))
        assert site.process is not None
        (site.top / "f").write_bytes(b"x")
        site.keeper.reachable = False
        site.process.request_stop()
        thread.join(10)
        assert site.process.wait() == NOT_SEALED
        assert site.error is not None
        assert site.error.code == "volume.not_sealed"
        umount(str(site.top), flags=UmountFlags.DETACH)

    in_private_namespace(work, tmp_path)


def test_a_stop_on_request_makes_the_last_commit(tmp_path: Path) -> None:
    """The shield asks, the server commits what was never synced, and the shield learns the root."""

    def work(site: Site) -> None:
        thread = site.start(CommitPolicy(interval=60))
        assert site.process is not None
        (site.top / "f").write_bytes(b"x")
        site.process.request_stop()
        thread.join(10)
        assert site.process.wait() == 0
        assert site.last == site.keeper.root
        umount(str(site.top), flags=UmountFlags.DETACH)
        with site.mounted() as top:
            assert (top / "f").read_bytes() == b"x"

    in_private_namespace(work, tmp_path)


def test_fs_01_a_damaged_slot_is_an_error_for_the_program(tmp_path: Path) -> None:
    """After the host flips bytes of the slots, reading fails with EIO, other files work, and the shield is told."""

    def work(site: Site) -> None:
        with site.mounted() as top:
            (top / "a").write_bytes(b"a" * 1000)
            (top / "b").write_bytes(b"b" * 1000)
        slots = site.base / "host" / "slots"
        data = bytearray(slots.read_bytes())
        data[10] ^= 1
        slots.write_bytes(data)
        with site.mounted() as top:
            with pytest.raises(OSError, match="Input/output"):
                (top / "a").read_bytes()
            assert (top / "b").read_bytes() == b"b" * 1000
        assert set(site.failed) == {"volume.chunk_damaged"}

    in_private_namespace(work, tmp_path)


def test_fs_15_a_fenced_instance_stops_serving(tmp_path: Path) -> None:
    """When another instance has moved the root, fsync fails and from then on every access to the volume does."""

    def work(site: Site) -> None:
        thread = site.start(CommitPolicy(interval=60))
        assert site.process is not None
        assert site.keeper.root is not None
        site.keeper.root = Root(site.keeper.root.sequence + 1, b"o" * 32)
        with (site.top / "f").open("wb") as stream:
            stream.write(b"x")
            stream.flush()
            with pytest.raises(OSError, match="Input/output"):
                os.fsync(stream.fileno())
        with pytest.raises(OSError, match="Input/output"):
            (site.top / "g").write_bytes(b"y")
        with pytest.raises(OSError, match="Input/output"):
            list(site.top.iterdir())
        site.process.request_stop()
        thread.join(10)
        assert site.process.wait() == NOT_SEALED
        assert site.failed[0] == "counter.conflict"
        umount(str(site.top), flags=UmountFlags.DETACH)

    in_private_namespace(work, tmp_path)


def test_a_lost_shield_ends_the_server(tmp_path: Path) -> None:
    """Without the process that reaches the freshness service, the server ends and accesses fail: nothing hangs."""

    def work(site: Site) -> None:
        thread = site.start()
        assert site.process is not None
        site.process._channel.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        assert site.process.wait() == NOT_SEALED
        with pytest.raises(OSError, match=r"not connected|abort"):
            list(site.top.iterdir())
        umount(str(site.top), flags=UmountFlags.DETACH)

    in_private_namespace(work, tmp_path)
