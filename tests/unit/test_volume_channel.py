"""The volume server's channel and its host files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.crypto import strict_json
from secfl.errors import ConfigError, EncodingError, StateError
from secfl.linux.volume_channel import Answer, encode_push, parse_answer, parse_push
from secfl.linux.volume_files import HostDirectory
from secfl.volume.storage import Push

VOLUME_ID = bytes(range(16))
TAGS = st.binary(min_size=32, max_size=32)


@given(st.integers(1, 2**63 - 1), TAGS, TAGS)
def test_a_push_comes_back_as_it_was(sequence: int, previous: bytes, tag: bytes) -> None:
    """Encoding, canonical JSON and parsing give the same step."""
    step = Push(sequence, previous, tag)
    message = strict_json.decode(strict_json.encode(encode_push(VOLUME_ID, step)))
    assert parse_push(message, VOLUME_ID) == step


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("volume", "00" * 16),
        ("sequence", 0),
        ("sequence", True),
        ("sequence", "1"),
        ("previous", "00" * 31),
        ("previous", None),
        ("tag", "AA" * 32),
        ("extra", 1),
    ],
)
def test_a_push_with_one_defect_is_refused(field: str, value: object) -> None:
    """Another volume, a wrong type or size, and an unknown field are each refused."""
    message = encode_push(VOLUME_ID, Push(1, bytes(32), bytes(32)))
    message[field] = value
    with pytest.raises(EncodingError):
        parse_push(message, VOLUME_ID)


def test_answers_are_ok_or_an_error_with_its_retry() -> None:
    """The two forms parse; everything else is refused and never taken for an acknowledgement."""
    assert parse_answer({"ok": True}) == Answer("", retry=False)
    assert parse_answer({"error": "counter.unavailable", "retry": True}) == Answer("counter.unavailable", retry=True)
    for message in (
        {},
        {"ok": False},
        {"ok": True, "error": "x"},
        {"error": ""},
        {"error": "x"},
        {"error": 1, "retry": True},
    ):
        with pytest.raises(EncodingError):
            parse_answer(dict(message))


def test_fs_08_a_planted_link_or_pipe_is_not_opened(tmp_path: Path) -> None:
    """A symbolic link or a FIFO in the place of a volume's file is refused and not followed."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "slots").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        HostDirectory(tmp_path / "one")
    (tmp_path / "two").mkdir()
    os.mkfifo(tmp_path / "two" / "journal")
    with pytest.raises(ConfigError) as caught:
        HostDirectory(tmp_path / "two")
    assert caught.value.code == "volume.not_a_file"
    assert victim.read_bytes() == b"precious"


def test_a_directory_is_held_by_one_process(tmp_path: Path) -> None:
    """A second opening of the same directory is refused until the first is closed."""
    first = HostDirectory(tmp_path / "v")
    with pytest.raises(StateError) as caught:
        HostDirectory(tmp_path / "v")
    assert caught.value.code == "volume.in_use"
    first.close()
    HostDirectory(tmp_path / "v").close()


def test_replace_survives_a_leftover_and_changes_the_whole_file(tmp_path: Path) -> None:
    """Replacing leaves exactly the new bytes, in a file that goes on being written, and no second file."""
    host = HostDirectory(tmp_path / "v")
    (tmp_path / "v" / "journal.new").write_bytes(b"left over from a crash, and longer")
    journal = host.files.journal
    journal.pwrite(0, b"old content")
    journal.replace(b"new")
    journal.pwrite(3, b"er")
    journal.sync()
    assert (tmp_path / "v" / "journal").read_bytes() == b"newer"
    assert journal.pread(0, 100) == b"newer"
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == ["journal", "slots"]
    host.close()
