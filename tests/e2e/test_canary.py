"""A marker in the plaintext of code and records is looked for everywhere else while a federation runs."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from federation_world import AGGREGATOR, APP, EXAMPLE, OWNER, SITES, federation, partition, started
from process_world import nothing_left
from secfl.cli.harness import Harness
from secfl.testing.sites import Site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
_ETH_P_ALL = 3
_LARGEST = 256 * 1024 * 1024


class Canary:
    """A random text in every form in which it would show up."""

    def __init__(self) -> None:
        self.text = f"canary-{secrets.token_hex(16)}"
        raw = self.text.encode()
        # The middle of each of the three alignments in base64 does not depend on what surrounds the text.
        inner = [base64.b64encode(bytes(shift) + raw)[4:-4] for shift in range(3)]
        self.forms = [raw, raw.hex().encode(), *inner, *(form.translate(_URL_SAFE) for form in inner)]

    def inside(self, data: bytes) -> bool:
        """Whether any form is in the data."""
        return any(form in data for form in self.forms)


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def plant(base: Path, code: Canary, records: Canary) -> tuple[Path, dict[str, Path]]:
    """The app with a marked comment, and the records with a marked array and a marked file."""
    app = base / "plain" / "app"
    shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    task = app / "heart" / "task.py"
    task.write_text(task.read_text() + f"\n# {code.text}\n")
    files = partition(EXAMPLE / "heart4.npz", base / "plain" / "records")
    folders = {}
    for site in SITES:
        with np.load(files[site]) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        np.savez(files[site], **values, marker=np.frombuffer(records.text.encode(), dtype=np.uint8))
        folders[site] = Path(files[site]).parent
        (folders[site] / "notes.txt").write_text(records.text)
    return app, folders


def capture(site: Site, target: Path) -> None:
    """Write every frame that this site sees into a file, until the site ends."""

    def work() -> None:
        with (
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as tap,
            target.open("wb") as out,
        ):
            while True:
                out.write(tap.recv(65536))
                out.flush()

    site.spawn(work, log=target.with_suffix(".log"), keep_root=True)


class ProcessListing(threading.Thread):
    """Reads command lines and environments of all processes again and again; keeps those with a marker."""

    def __init__(self, *canaries: Canary) -> None:
        super().__init__(daemon=True)
        self.canaries = canaries
        self.found: set[str] = set()
        self.rounds = 0
        self.enclaves: set[str] = set()
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.1):
            self.rounds += 1
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    with suppress(OSError):
                        self._look(process / name, (process / name).read_bytes())

    def _look(self, path: Path, data: bytes) -> None:
        if b"secfl.shield" in data:
            self.enclaves.add(path.parent.name)
        if any(canary.inside(data) for canary in self.canaries):
            self.found.add(str(path))

    def end(self) -> None:
        """Stop looking."""
        self._done.set()
        self.join()


def files_below(*places: Path, since: float) -> Iterator[Path]:
    """Regular files that were written since; what vanishes meanwhile is none."""
    for place in places:
        for folder, _, names in os.walk(place):
            for name in names:
                path = Path(folder) / name
                with suppress(OSError):
                    status = path.lstat()
                    if (
                        path.is_file()
                        and not path.is_symlink()
                        and since <= status.st_mtime
                        and status.st_size < _LARGEST
                    ):
                        yield path


def holders(canary: Canary, places: list[Path], since: float) -> set[Path]:
    """Files in which the marker stands."""
    found = set()
    for path in files_below(*places, since=since):
        with suppress(OSError):
            if canary.inside(path.read_bytes()):
                found.add(path)
    return found


def test_no_plaintext_leaves_its_owner() -> None:
    """The markers are in no file but the owners' plain ones, no log, no process listing and no frame on the wire."""
    code, records, began = Canary(), Canary(), time.time() - 1
    base = Path(tempfile.mkdtemp(prefix="secfl-canary-"))
    base.chmod(0o711)
    try:
        app, folders = plant(base, code, records)
        with nothing_left(base), federation(base, app=app, records=folders) as harness:
            listing = ProcessListing(code, records)
            listing.start()
            frames = _run(harness, base)
            listing.end()
            _judge(harness, base, (code, records), listing, began)
            if frames is None:
                pytest.skip("files and processes are clean; frames cannot be captured without root")
            data = frames.read_bytes()
            assert len(data) > 10_000
            assert b"\x17\x03\x03" in data  # records of TLS application data were seen
            assert not code.inside(data)
            assert not records.inside(data)
    finally:
        shutil.rmtree(base)


def _run(harness: Harness, base: Path) -> Path | None:
    frames = base / "frames" if harness.sites.isolated else None
    if frames is not None:
        capture(harness.sites[AGGREGATOR], frames)
    started(harness)
    for service in harness.start_services():
        assert service.failure() is None
    lines = list(harness.parties[OWNER].watch("heart", seconds=90))
    assert lines[-1] == {"exit": 0}
    assert harness.services[AGGREGATOR].wait(timeout=30) == 0
    return frames


def _judge(
    harness: Harness, base: Path, canaries: tuple[Canary, Canary], listing: ProcessListing, began: float
) -> None:
    assert not listing.found
    assert listing.rounds > 10
    assert len(listing.enclaves) >= 1 + len(SITES)
    places = [base, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/run")]
    for canary in canaries:
        found = holders(canary, places, began)
        owners = {base / "plain", *(harness.sites[name].home / "plain" for name in harness.party_names)}
        assert any(path.is_relative_to(base / "plain") for path in found), "the marker was not even planted"
        assert not {path for path in found if not any(path.is_relative_to(owner) for owner in owners)}
