"""The system-call layer: typed errors, and the tie to the parent."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from secfl.errors import ConfigError, SecflError, StateError
from secfl.linux.fuse_mount import fork_server
from secfl.linux.syscalls import Prctl, die_with_parent, mount, prctl, raise_errno


@pytest.mark.parametrize(
    ("number", "code", "kind"),
    [
        (errno.EPERM, "linux.not_permitted", ConfigError),
        (errno.EACCES, "linux.not_permitted", ConfigError),
        (errno.ENOSYS, "linux.not_supported", ConfigError),
        (errno.ENODEV, "linux.not_supported", ConfigError),
        (errno.EBUSY, "linux.call_failed", StateError),
    ],
)
def test_an_errno_becomes_the_error_that_says_what_to_do(number: int, code: str, kind: type[SecflError]) -> None:
    """What the machine does not offer and what the state does not allow are different errors."""
    with pytest.raises(kind) as refusal:
        raise_errno("mount", number)
    assert refusal.value.code == code
    assert refusal.value.details == {"call": "mount", "errno": errno.errorcode[number]}


def test_a_failed_call_raises(tmp_path: Path) -> None:
    """No return value has to be looked at."""
    with pytest.raises(SecflError) as refusal:
        mount("none", str(tmp_path / "missing"), fstype="tmpfs")
    assert refusal.value.code in ("linux.call_failed", "linux.not_permitted")
    with pytest.raises(StateError, match=r"linux\.call_failed"):
        prctl(Prctl.SET_PDEATHSIG, 9999)


def test_a_path_with_nul_reaches_no_system_call() -> None:
    """A cut path would name something else."""
    with pytest.raises(ConfigError, match=r"linux\.path_invalid"):
        mount("none", "/tmp\0/x", fstype="tmpfs")


def test_a_child_whose_parent_is_gone_does_not_start() -> None:
    """A parent that died between fork and call is noticed."""
    pid = os.fork()
    if not pid:
        try:
            die_with_parent(signal.SIGKILL, 1 << 22)
        except StateError as error:
            os._exit(0 if error.code == "linux.parent_gone" else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_server_child_holds_only_what_it_is_given() -> None:
    """Descriptors of others do not live on in a server."""
    ours, theirs = os.pipe()
    kept_read, kept_write = os.pipe()

    def serve() -> None:
        for closed in (ours, theirs, kept_read):
            try:
                os.fstat(closed)
            except OSError:
                continue
            os._exit(3)
        os.write(kept_write, b"x")

    pid = fork_server(serve, keep=[kept_write])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert os.read(kept_read, 1) == b"x"
    for fd in (ours, theirs, kept_read, kept_write):
        os.close(fd)
