"""Reading a large file from a sealed image, in a program's place: cold and warm, beside the plain file and gocryptfs.

Every reading is one pass from start to end. Cold: a fresh mount, and the backing files' pages dropped from the cache.
Warm: the same file once more. All mounts live in a private namespace, which ends with the process that reads.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.machine import drop_cached
from benchmarks.result import Result, Table, median
from secfl.crypto.aead import random_key
from secfl.errors import SecflError
from secfl.linux.fuse_mount import fork_server, mount_fuse, open_device
from secfl.linux.image_server import serve_image
from secfl.linux.images import open_image_directory, pack_image
from secfl.linux.mounts import make_private
from secfl.linux.namespaces import map_single_user
from secfl.linux.syscalls import CloneFlags, umount, unshare
from secfl.volume.image_manifest import Mode

__all__ = ["run"]

_NAME = "records.bin"
_PIECE = 1 << 20
_MOUNT_SECONDS = 10.0
_PLAIN, _PEER = "plain file", "gocryptfs"
_Times = dict[str, list[float]]


def run(*, quick: bool) -> Result:
    """Measure in a process of its own, since it changes its namespaces."""
    size, repetitions = (64 << 20, 2) if quick else (1 << 30, 3)
    with TemporaryDirectory(prefix="secfl-bench-") as place:
        base = Path(place)
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            _child(base, size, repetitions, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
    if not answer:
        raise RuntimeError("the reading process ended without an answer")
    measured, remarks = json.loads(answer)
    return _report(measured, remarks, size, repetitions)


def _report(measured: dict[str, _Times], remarks: list[str], size: int, repetitions: int) -> Result:
    result = Result("volume", __doc__ or "")
    speed = {name: {kind: size / 2**20 / median(times[kind]) for kind in times} for name, times in measured.items()}
    rows = []
    for name, found in speed.items():
        row = [f"{found[kind]:.0f}" for kind in ("cold", "warm")]
        for other in (_PLAIN, _PEER):
            row += [f"{found[kind] / speed[other][kind]:.2f}" if other in speed else "" for kind in ("cold", "warm")]
        rows.append((name, *row))
    columns = ("", "cold MiB/s", "warm MiB/s", "cold / plain", "warm / plain", "cold / gocryptfs", "warm / gocryptfs")
    title = f"one file of {size >> 20} MiB, median of {repetitions}"
    result.tables.append(Table(title, columns, rows))
    result.remarks += remarks
    return result


def _child(base: Path, size: int, repetitions: int, writer: int) -> None:
    status = 1
    try:
        if os.geteuid() != 0:
            map_single_user(0)
        unshare(CloneFlags.NEWNS)
        make_private()
        answer = _measure(base, size, repetitions)
        os.write(writer, json.dumps(answer).encode())
        status = 0
    finally:
        os._exit(status)


def _measure(base: Path, size: int, repetitions: int) -> tuple[dict[str, _Times], list[str]]:
    source = base / "source"
    source.mkdir()
    with (source / _NAME).open("wb") as file:
        for _ in range(size // _PIECE):
            file.write(os.urandom(_PIECE))
    found = {_PLAIN: _readings(lambda: _plain(source), [source / _NAME], repetitions)}
    for mode in (Mode.ENCRYPTED, Mode.AUTHENTICATED):
        key = random_key() if mode is Mode.ENCRYPTED else None
        image = base / mode.name.lower()
        root = pack_image(source, image, mode=mode, key=key).root
        mount = lambda: _sealed(image, base / "top", root, key)  # noqa: B023, E731 - called within this turn
        found[f"sealed image, {mode.name.lower()}"] = _readings(
            mount, [image / "data", image / "manifest"], repetitions
        )
        shutil.rmtree(image)
    try:
        found[_PEER] = _gocryptfs(base, source, repetitions)
    except (OSError, subprocess.SubprocessError, SecflError) as error:
        return found, [f"gocryptfs is left out: {error}"]
    return found, []


def _readings(mount: Callable[[], object], backing: list[Path], repetitions: int) -> _Times:
    times: _Times = {"cold": [], "warm": []}
    for _ in range(repetitions):
        drop_cached(*backing)
        with mount() as top:  # type: ignore[attr-defined]
            for kind in times:
                times[kind].append(_read(top / _NAME))
    return times


def _read(path: Path) -> float:
    piece = bytearray(_PIECE)
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass
    return time.perf_counter() - started


@contextmanager
def _plain(source: Path) -> Iterator[Path]:
    yield source


@contextmanager
def _sealed(image: Path, top: Path, root: bytes, key: bytes | None) -> Iterator[Path]:
    top.mkdir(exist_ok=True)
    opened = open_image_directory(image, root=root, key=key)
    connection = open_device()
    mount_fuse(connection, str(top), read_only=True)
    server = fork_server(lambda: serve_image(connection, opened), keep=range(3, 256))
    os.close(connection)
    try:
        yield top
    finally:
        umount(str(top))
        os.waitpid(server, 0)


def _gocryptfs(base: Path, source: Path, repetitions: int) -> _Times:
    program = shutil.which("gocryptfs")
    if program is None:
        raise FileNotFoundError("it is not installed (Debian packages gocryptfs and fuse3)")
    cipher, top, secret = base / "cipher", base / "top", base / "password"
    cipher.mkdir()
    top.mkdir(exist_ok=True)
    secret.write_text("benchmark")
    common = [program, "-q", "-passfile", str(secret)]
    subprocess.run([*common, "-scryptn", "10", "-init", str(cipher)], check=True, timeout=60, stdout=subprocess.DEVNULL)

    @contextmanager
    def mount() -> Iterator[Path]:
        process = subprocess.Popen([*common, "-fg", str(cipher), str(top)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _MOUNT_SECONDS
        try:
            while not os.path.ismount(top):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise OSError("it did not mount")
                time.sleep(0.02)
            yield top
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_MOUNT_SECONDS)

    with mount():
        shutil.copyfile(source / _NAME, top / _NAME)
    backing = [file for file in cipher.iterdir() if not file.name.startswith("gocryptfs.")]
    return _readings(mount, backing, repetitions)
