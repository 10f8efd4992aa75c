"""A sealed image as programs see it: a real mount in a private namespace, served by its own process."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from image_world import CONTENT, KEY, Memory, store
from mount_world import in_private_namespace
from secfl.errors import SecflError
from secfl.linux.fuse_mount import fork_server, mount_fuse, open_device
from secfl.linux.image_server import serve_image
from secfl.linux.images import open_image_directory, pack_image
from secfl.linux.syscalls import umount
from secfl.volume.image import SealedImage, open_image
from secfl.volume.image_manifest import Mode


def _serve(image: SealedImage, top: Path, *, keep: tuple[int, ...] = (), log: Path | None = None) -> int:
    def failed(error: SecflError) -> None:
        if log is not None:
            with log.open("a") as file:
                file.write(error.code + "\n")

    fd = open_device()
    mount_fuse(fd, str(top), read_only=True)
    pid = fork_server(lambda: serve_image(fd, image, failed=failed), keep=[fd, *keep])
    os.close(fd)
    return pid


def _errno(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("mode", Mode)
def test_programs_see_the_packed_tree(mode: Mode, tmp_path: Path) -> None:
    """Names, content, links, sizes and listings are those of the packed tree, also for a directory of many pages."""
    source, top = tmp_path / "source", tmp_path / "mnt"
    top.mkdir()
    (source / "many").mkdir(parents=True)
    for number in range(500):
        (source / "many" / f"name-of-a-file-{number:04}").write_bytes(b"x" * number)
    (source / "big").write_bytes(os.urandom(3_000_001))
    (source / "link").symlink_to("many/name-of-a-file-0007")
    key = KEY if mode is Mode.ENCRYPTED else None
    packed = pack_image(source, tmp_path / "image", mode=mode, key=key)
    image = open_image_directory(tmp_path / "image", root=packed.root, key=key)

    def body() -> None:
        server = _serve(image, top, keep=tuple(range(3, 64)))
        assert sorted(p.name for p in top.iterdir()) == ["big", "link", "many"]
        assert {p.name for p in (top / "many").iterdir()} == {p.name for p in (source / "many").iterdir()}
        assert (top / "big").read_bytes() == (source / "big").read_bytes()
        assert (top / "link").read_bytes() == b"x" * 7
        assert (top / "link").lstat().st_size == len("many/name-of-a-file-0007")
        assert all((top / "many" / f"name-of-a-file-{n:04}").stat().st_size == n for n in range(0, 500, 50))
        assert not (top / "none").exists()
        attempts: list[Callable[[], object]] = [(top / "new").touch, (top / "big").unlink, (top / "many").rmdir]
        for attempt in attempts:
            assert _errno(attempt) == errno.EROFS
        umount(str(top))
        assert os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]) == 0

    in_private_namespace(body)


@pytest.mark.parametrize("mode", Mode)
def test_fs_01_a_changed_chunk_is_an_input_output_error(mode: Mode, tmp_path: Path) -> None:
    """A program reads right bytes or EIO, the shield learns the code, and other files stay readable."""
    top, log = tmp_path / "mnt", tmp_path / "log"
    top.mkdir()
    stored = store(mode)
    data = bytearray(stored.data)
    data[0] ^= 1
    image = open_image(Memory(bytes(data)), stored.manifest, root=stored.root, key=stored.key)

    def body() -> None:
        _serve(image, top, log=log)
        assert _errno((top / "a.bin").read_bytes) == errno.EIO
        assert (top / "sub" / "b.bin").read_bytes() == CONTENT["sub/b.bin"]
        assert (top / "sub" / "big.bin").read_bytes() == CONTENT["sub/big.bin"]

    in_private_namespace(body)
    assert set(log.read_text().split()) == {"volume.chunk_invalid"}


def test_reads_fail_once_the_server_is_gone(tmp_path: Path) -> None:
    """With its server dead a mount gives errors, never the directory underneath."""
    top = tmp_path / "mnt"
    top.mkdir()
    (top / "a.bin").write_text("underneath")
    image = store(Mode.AUTHENTICATED).open()

    def body() -> None:
        server = _serve(image, top)
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
        assert _errno((top / "a.bin").read_bytes) in (errno.ENOTCONN, errno.ECONNABORTED)

    in_private_namespace(body)


def test_a_server_dies_with_its_parent(tmp_path: Path) -> None:
    """No server outlives the process that started it."""
    top, note = tmp_path / "mnt", tmp_path / "pid"
    top.mkdir()
    image = store(Mode.AUTHENTICATED).open()

    def body() -> None:
        note.write_text(str(_serve(image, top)))

    in_private_namespace(body)
    server = int(note.read_text())
    for _ in range(100):
        state = Path(f"/proc/{server}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX":
            return
        os.sched_yield()
        signal.sigtimedwait([], 0.02)
    pytest.fail("the server is still there")
