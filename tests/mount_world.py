"""Private namespaces for tests that mount."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

import pytest

from secfl.errors import ConfigError
from secfl.linux.fuse_mount import open_device
from secfl.linux.mounts import make_private
from secfl.linux.namespaces import map_single_user
from secfl.linux.syscalls import CloneFlags, unshare

UNAVAILABLE = 77


def in_private_namespace(body: Callable[[], None]) -> None:
    """Run `body` in a child with user and mount namespaces of its own; its failure is the test's."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            try:
                map_single_user(0)
                unshare(CloneFlags.NEWNS)
                make_private()
                os.close(open_device())
            except ConfigError:
                status = UNAVAILABLE
            else:
                body()
                status = 0
        except BaseException:  # noqa: BLE001 - a child has no other way to tell
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == UNAVAILABLE:
        pytest.skip("this machine offers no user namespaces or no FUSE device")
    assert status == 0
