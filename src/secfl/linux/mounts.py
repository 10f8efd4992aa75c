"""A root file system under construction in a private mount namespace.

The new root is a tmpfs that mirrors a source tree by read-only binds, entry by entry. A directory that needs an entry
which the source lacks is opened up the same way, so nothing is ever written to the source and no overlay is needed.
Mount points therefore lie on private, finally read-only tmpfs: when a mount fails, a write fails too and never falls
through to the host's disk. No component of a path may be a symbolic link (SE-04); nobody else runs here meanwhile.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from secfl.errors import ConfigError
from secfl.linux.syscalls import MountFlags, UmountFlags, mount, pivot_root, umount

__all__ = ["DEVICES", "PRIVATE", "NewRoot", "make_private", "mount_proc", "mount_tmpfs", "require_path"]

DEVICES = ("full", "null", "random", "urandom", "zero")
"""Device nodes that every program gets."""
PRIVATE = frozenset({"dev", "host", "proc", "run", "sys", "tmp"})
"""Top-level entries that are never taken from the source."""
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
_MAX_MIRRORED = 4096
"""Most entries of a directory that is opened up: each costs a mount."""
_MAX_PATH = 1024
_RESTRICTED = MountFlags.NOSUID | MountFlags.NODEV


def require_path(path: str) -> str:
    """Return a path that is absolute and in its one normal form.

    Raises:
        ConfigError: `launch.path_invalid` (SE-03).
    """
    normal = (
        path.startswith("/")
        and path != "/"
        and not path.startswith("//")
        and len(path) <= _MAX_PATH
        and "\0" not in path
        and str(PurePosixPath(path)) == path
        and ".." not in path.split("/")
    )
    if not normal:
        raise ConfigError("launch.path_invalid", "a path inside is absolute and normal", path=path[:_MAX_PATH])
    return path


def make_private() -> None:
    """Cut the tie of mount events to the namespace that this one was copied from.

    Raises:
        ConfigError: `linux.not_permitted`.
        StateError: `linux.call_failed`.
    """
    mount("none", "/", flags=MountFlags.REC | MountFlags.PRIVATE)


def mount_tmpfs(target: str, *, mode: int, size: int | None = None, owner: int = 0) -> None:
    """Mount a private tmpfs without set-uid files and devices.

    Raises:
        ConfigError: `linux.not_permitted`.
        StateError: `linux.call_failed`.
    """
    options = f"mode={mode:o},uid={owner},gid={owner}" + (f",size={size}" if size is not None else "")
    mount("tmpfs", target, fstype="tmpfs", flags=_RESTRICTED, options=options)


def mount_proc(target: str) -> None:
    """Mount the file system of the own process namespace.

    Raises:
        ConfigError: `linux.not_permitted`, also where the surrounding container hides parts of its own /proc.
        StateError: `linux.call_failed`.
    """
    mount("proc", target, fstype="proc", flags=_RESTRICTED | MountFlags.NOEXEC)


class NewRoot:
    """The new root; call `enter` last."""

    def __init__(self, source: str, stage: str) -> None:
        """Mirror `source` below `stage`, a writable directory of this namespace.

        Raises:
            ConfigError: `launch.tree_unsupported` or `linux.not_permitted`.
            StateError: `linux.call_failed`.
        """
        self._source = source
        self._files = f"{stage}/files"
        self.path = f"{stage}/root"
        Path(self._files).mkdir(0o700)
        Path(self.path).mkdir(0o755)
        mount_tmpfs(self.path, mode=0o755)
        self._own: dict[str, bool] = {"": True}
        self._covers: list[tuple[str, str]] = []
        self._mirror("")

    def directory(self, path: str) -> str:
        """Make sure of a directory and return where it is now, to mount on.

        Raises:
            ConfigError: `launch.path_invalid` or `launch.path_occupied`.
            StateError: `linux.call_failed`.
        """
        inside = ""
        for name in require_path(path).split("/")[1:]:
            parent, inside = inside, f"{inside}/{name}"
            kind = self._kind(inside)
            if kind is None:
                self._open_up(parent)
                Path(self.path + inside).mkdir(0o755)
                self._own[inside] = False
            elif not stat.S_ISDIR(kind):
                raise ConfigError("launch.path_occupied", "a component of the path is not a directory", path=path)
        return self.path + inside

    def file(self, path: str, data: bytes, *, mode: int, owner: int) -> None:
        """Put a file, over one of the source when there is one.

        Raises:
            ConfigError: `launch.path_invalid` or `launch.path_occupied`.
            StateError: `linux.call_failed`.
        """
        parent, _, _ = require_path(path).rpartition("/")
        if parent:
            self.directory(parent)
        kind = self._kind(path)
        if kind is None:
            self._open_up(parent)
            _write_new(self.path + path, data, mode, owner)
            return
        if not stat.S_ISREG(kind):
            raise ConfigError("launch.path_occupied", "the path is not a regular file", path=path)
        # Bound last: opening up the directory later would hide it.
        staged = f"{self._files}/{len(self._covers)}"
        _write_new(staged, data, mode, owner)
        self._covers.append((staged, self.path + path))

    def tmpfs(self, path: str, *, mode: int, size: int | None = None, owner: int = 0) -> str:
        """Mount a writable tmpfs and return where it is now.

        Raises:
            ConfigError: `launch.path_invalid`, `launch.path_occupied` or `linux.not_permitted`.
            StateError: `linux.call_failed`.
        """
        target = self.directory(path)
        mount_tmpfs(target, mode=mode, size=size, owner=owner)
        self._own[path] = False
        return target

    def devices(self, source: str, names: tuple[str, ...]) -> None:
        """Fill /dev with the named nodes of `source` and the usual links.

        Raises:
            ConfigError: `linux.not_permitted`.
            StateError: `linux.call_failed`, also when a node is missing.
        """
        target = self.tmpfs("/dev", mode=0o755, size=1 << 16)
        for name in names:
            _touch(f"{target}/{name}")
            mount(f"{source}/{name}", f"{target}/{name}", flags=MountFlags.BIND)
        for name, link in _DEVICE_LINKS.items():
            Path(f"{target}/{name}").symlink_to(link)
        Path(f"{target}/shm").mkdir()

    def enter(self) -> None:
        """Make it the root, detach the old one and close it for writing; nothing of the program runs yet.

        Raises:
            ConfigError: `linux.not_permitted`.
            StateError: `linux.call_failed`.
        """
        for staged, target in self._covers:
            _bind_read_only(staged, target)
        os.chdir(self.path)
        pivot_root(".", ".")
        umount(".", flags=UmountFlags.DETACH)
        os.chdir("/")
        read_only = MountFlags.REMOUNT | MountFlags.BIND | MountFlags.RDONLY | _RESTRICTED
        for inside, opened in self._own.items():
            if opened:
                mount("none", inside or "/", flags=read_only)
        mount("none", "/dev", flags=read_only | MountFlags.NOEXEC)

    def _kind(self, inside: str) -> int | None:
        try:
            return os.lstat(self.path + inside).st_mode
        except FileNotFoundError:
            return None

    def _open_up(self, inside: str) -> None:
        # Writable already: our tmpfs, a tmpfs mounted since, or a directory made on one of them.
        if inside in self._own:
            return
        mount_tmpfs(self.path + inside, mode=0o755)
        self._own[inside] = True
        self._mirror(inside)

    def _mirror(self, inside: str) -> None:
        names = sorted(entry.name for entry in Path(self._source + inside).iterdir())
        if len(names) > _MAX_MIRRORED:
            raise ConfigError("launch.tree_unsupported", "a directory is too large to add to", path=inside)
        for name in names:
            if inside == "" and name in PRIVATE:
                continue
            source, target = f"{self._source}{inside}/{name}", f"{self.path}{inside}/{name}"
            kind = os.lstat(source).st_mode
            if stat.S_ISLNK(kind):
                Path(target).symlink_to(Path(source).readlink())
            elif stat.S_ISDIR(kind):
                Path(target).mkdir()
                _bind_read_only(source, target)
            elif stat.S_ISREG(kind):
                _touch(target)
                _bind_read_only(source, target)
            else:
                raise ConfigError(
                    "launch.tree_unsupported", "neither file, directory nor link", path=f"{inside}/{name}"
                )


def _bind_read_only(source: str, target: str) -> None:
    mount(source, target, flags=MountFlags.BIND)
    # A bind takes its flags only from a second call.
    mount("none", target, flags=MountFlags.REMOUNT | MountFlags.BIND | MountFlags.RDONLY | _RESTRICTED)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _write_new(path: str, data: bytes, mode: int, owner: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as stream:
        stream.write(data)
    os.chown(path, owner, owner)
    Path(path).chmod(mode)
