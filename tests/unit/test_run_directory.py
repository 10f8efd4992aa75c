"""The run directory against a hostile program, and the lines to network processes against hung and broken ones."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from secfl.crypto import strict_json
from secfl.errors import EncodingError, StateError
from secfl.protocol.service import Peer, Progress
from secfl.shield.process_line import ProcessLine
from secfl.shield.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory, opened as the launcher does."""
    return RunDirectory(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))


def peer(site: str, node_key: str | None = "key") -> Peer:
    return Peer(site=site, service=f"trainer-{site}", tls_key_id="00" * 32, node_key=node_key, lease_until=9)


def line(number: int) -> bytes:
    return Progress(round=number, phase="train", metrics={}, replies=("a",)).encode() + b"\n"


def test_peers_are_replaced_whole_and_only_those_with_a_key(run: RunDirectory, tmp_path: Path) -> None:
    """The program reads one document or the next, never a part; nothing else stays behind."""
    run.write_peers([peer("a"), peer("b", None)])
    run.write_peers([peer("b"), peer("c")])
    found = strict_json.decode((tmp_path / "peers.json").read_bytes())
    assert [entry["site"] for entry in found["peers"]] == ["b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == ["peers.json"]


def test_fs_08_a_link_in_the_place_of_the_peers_is_not_followed(run: RunDirectory, tmp_path: Path) -> None:
    """The rename takes the link's place and leaves its target alone."""
    target = tmp_path / "target"
    target.write_bytes(b"old")
    (tmp_path / "peers.json").symlink_to(target)
    run.write_peers([peer("a")])
    assert target.read_bytes() == b"old"
    assert not (tmp_path / "peers.json").is_symlink()


def test_a_program_that_blocks_the_peers_file_is_an_error(run: RunDirectory, tmp_path: Path) -> None:
    """A directory in the place of the file stops the service instead of leaving old peers in force."""
    (tmp_path / "peers.json").mkdir()
    with pytest.raises(StateError, match=r"run_directory\.unwritable"):
        run.write_peers([peer("a")])


def test_only_a_regular_file_admits_a_site(run: RunDirectory, tmp_path: Path) -> None:
    """Links, FIFOs, directories and names with a path admit nobody."""
    assert not run.is_admitted("a")
    (tmp_path / "admitted").mkdir()
    (tmp_path / "admitted" / "a").touch()
    (tmp_path / "admitted" / "b").symlink_to(tmp_path / "admitted" / "a")
    os.mkfifo(tmp_path / "admitted" / "c")
    (tmp_path / "admitted" / "d").mkdir()
    assert run.is_admitted("a")
    assert not any(run.is_admitted(name) for name in ("b", "c", "d", "e", "../admitted/a", "a/", "", ".", "A"))


def test_fs_08_a_linked_folder_admits_nobody(run: RunDirectory, tmp_path: Path) -> None:
    """The folder itself must not be a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").touch()
    (tmp_path / "admitted").symlink_to(tmp_path / "real")
    assert not run.is_admitted("a")


def test_a_signature_changes_with_the_file(run: RunDirectory, tmp_path: Path) -> None:
    """A file that appears or grows is noticed; without one the signature is zero."""
    assert run.signature("pending") == (0, 0)
    (tmp_path / "pending").write_bytes(b"x")
    first = run.signature("pending")
    (tmp_path / "pending").write_bytes(b"xx")
    assert first[1] == 1
    assert run.signature("pending") != first


def test_progress_comes_line_by_line(run: RunDirectory, tmp_path: Path) -> None:
    """Complete lines come once, in order; a part waits for its rest."""
    assert run.new_progress() == []
    path = tmp_path / "progress"
    path.write_bytes(line(1) + line(2)[:-5])
    assert [entry.round for entry in run.new_progress()] == [1]
    assert run.new_progress() == []
    path.write_bytes(line(1) + line(2) + line(3))
    assert [entry.round for entry in run.new_progress()] == [2, 3]
    assert run.new_progress() == []


def test_a_flood_of_progress_comes_in_bounded_parts(run: RunDirectory, tmp_path: Path) -> None:
    """One call takes at most a mebibyte; nothing is lost."""
    count = 3_000_000 // len(line(1000))
    (tmp_path / "progress").write_bytes(line(1000) * count)
    parts = []
    while entries := run.new_progress():
        parts.append(len(entries))
    assert sum(parts) == count
    assert max(parts) * len(line(1000)) <= 1024 * 1024


@pytest.mark.parametrize(
    "content",
    [b"x" * 70_000, b"{}\n", b"\n", b"not json\n", line(1)[:-1] + b"\r\n", b"[" * 5000 + b"\n", b"y" * 70_000 + b"\n"],
    ids=["endless", "empty object", "blank", "text", "carriage return", "deep", "long"],
)
def test_malformed_progress_is_an_error(run: RunDirectory, tmp_path: Path, content: bytes) -> None:
    """Whatever is no progress message ends the watch with one code."""
    (tmp_path / "progress").write_bytes(content)
    with pytest.raises(EncodingError, match=r"progress\.malformed"):
        run.new_progress()


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "huge"])
def test_fs_08_links_fifos_and_huge_files_are_no_progress(run: RunDirectory, tmp_path: Path, kind: str) -> None:
    """None of them is followed, waited for or read."""
    path = tmp_path / "progress"
    if kind == "link":
        (tmp_path / "secret").write_bytes(line(1))
        path.symlink_to(tmp_path / "secret")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    with pytest.raises(EncodingError, match=r"progress\.malformed"):
        run.new_progress()


@pytest.mark.parametrize("content", [None, b"", line(1)])
def test_progress_that_is_taken_back_is_an_error(run: RunDirectory, tmp_path: Path, content: bytes | None) -> None:
    """A file that shrinks or goes away is noticed: a record of rounds only grows."""
    path = tmp_path / "progress"
    path.write_bytes(line(1) + line(2))
    assert len(run.new_progress()) == 2
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EncodingError, match=r"progress\.malformed"):
        run.new_progress()


def pair(patience: float = 0.1) -> tuple[ProcessLine, socket.socket]:
    ours, theirs = socket.socketpair()
    return ProcessLine("gateway fleet", ours, patience=patience), theirs


def test_sv_22_a_hung_process_does_not_block_the_shield() -> None:
    """A process that reads nothing is an error after a bounded time, however much there is to say."""
    line_, theirs = pair()
    started = time.monotonic()
    with pytest.raises(StateError, match=r"network\.process_hung"):
        line_.tell(b"x" * 10_000_000)
    assert time.monotonic() - started < 2
    theirs.close()


def test_a_long_message_reaches_a_slow_process() -> None:
    """A process that reads arrives at the whole message."""
    line_, theirs = pair(5.0)
    got: list[bytes] = []

    def read() -> None:
        while sum(map(len, got)) < 2_000_000:
            got.append(theirs.recv(100_000))

    thread = threading.Thread(target=read)
    thread.start()
    line_.tell(b"y" * 2_000_000)
    thread.join(5)
    assert b"".join(got) == b"y" * 2_000_000


def test_a_process_that_ended_is_not_told() -> None:
    """Its end is noticed by its exit; the line says nothing and reports nothing more."""
    line_, theirs = pair()
    theirs.sendall(b'{"event":"ready"}\n')
    theirs.close()
    line_.tell(b"late\n")
    assert line_.events() in ([], [{"event": "ready"}])
    line_.close()
    line_.close()


def test_events_are_read_without_waiting_and_whole() -> None:
    """Complete lines come as they are; a part waits."""
    line_, theirs = pair()
    assert line_.events() == []
    theirs.sendall(b'{"event":"ready"}\n{"event":"refu')
    assert line_.events() == [{"event": "ready"}]
    theirs.sendall(b'sed"}\n')
    assert line_.events() == [{"event": "refused"}]


@pytest.mark.parametrize("report", [b"[]\n", b"7\n", b"{\n", b'{"event":7}\n', b'{"event": "x"}\n', b"\xff\n"])
def test_a_process_that_reports_something_else_is_an_error(report: bytes) -> None:
    """What a process that was taken over writes is refused with one code."""
    line_, theirs = pair()
    theirs.sendall(report)
    with pytest.raises(EncodingError, match=r"network\.process_malformed"):
        line_.events()


def test_sv_22_a_process_that_writes_without_end_is_an_error() -> None:
    """A line without an end is bounded, and each call returns."""
    line_, theirs = pair()
    theirs.settimeout(0.05)

    def flood() -> None:
        for _ in range(64):
            try:
                theirs.sendall(b"x" * 65536)
            except TimeoutError:
                return

    def listen() -> None:
        for _ in range(64):
            flood()
            line_.events()

    with pytest.raises(EncodingError, match=r"network\.process_malformed"):
        listen()
