"""The runtime image of this very environment: built twice, mounted as a root, started."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest

from mount_world import in_private_namespace
from secfl.errors import ConfigError
from secfl.linux.fuse_mount import fork_server, mount_fuse, open_device
from secfl.linux.image_server import serve_image
from secfl.linux.images import open_image_directory
from secfl.linux.runtime.build import ENTRYPOINTS, build_runtime_image
from secfl.linux.syscalls import MountFlags, mount

LOCK = Path(__file__).parents[2] / "requirements" / "enclave.lock"
PROBE = """
import sys, os
import ssl, sqlite3, ctypes, numpy, flwr.server, cryptography.x509, aiohttp, dcap_qvl, pydantic, yaml
import secfl.shield, secfl.tee
assert sys.flags.isolated and sys.prefix == "/opt/python", sys.prefix
assert all(path.startswith("/opt/python/") for path in sys.path), sys.path
loaded = [m for m in sys.modules.values() if getattr(m, "__cached__", None)]
assert len(loaded) > 500 and all(os.path.exists(m.__cached__) for m in loaded)
assert not [line for line in open("/proc/self/maps") if ".so" in line and "/opt/" not in line and " /lib" not in line]
"""


@pytest.mark.slow
def test_the_image_is_reproducible_and_starts(tmp_path: Path) -> None:
    """Two builds are the same bytes, and Python runs from the mounted image alone, from its compiled files."""
    packages = Path(sysconfig.get_path("purelib"))
    try:
        reference = build_runtime_image(tmp_path / "one", site_packages=packages, lock_file=LOCK)
    except ConfigError as error:
        if error.code in ("runtime.package_missing", "runtime.package_version"):
            pytest.skip(f"this environment is not the locked one: {error}")
        raise
    assert build_runtime_image(tmp_path / "two", site_packages=packages, lock_file=LOCK) == reference
    image = open_image_directory(tmp_path / "one", root=reference.image_root)
    top = tmp_path / "mnt"
    top.mkdir()
    start = ENTRYPOINTS["shield"]

    def body() -> None:
        fd = open_device()
        mount_fuse(fd, str(top), read_only=True)
        fork_server(lambda: serve_image(fd, image), keep=range(3, 64))
        os.close(fd)
        mount("tmpfs", str(top / "tmp"), fstype="tmpfs")
        mount("/proc", str(top / "proc"), flags=MountFlags.BIND | MountFlags.REC)
        pid = os.fork()
        if not pid:
            os.chroot(top)
            os.chdir("/")
            os.execve(start.argv[0], [*start.argv[:3], "-c", PROBE], dict(start.env))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    in_private_namespace(body)
