"""What to launch: the complete description of a program and its surroundings.

Nothing is inherited: argv, environment, directory, files and mounts are exactly what stands here. The description
reaches the launching process through a sealed memory file, never through arguments, since files may hold secrets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.errors import ConfigError, EncodingError
from secfl.linux.mounts import PRIVATE, require_path

__all__ = ["InjectedFile", "MountPoint", "ProgramSpec"]

_MAX_STRING = 128 * 1024
"""Linux's own limit for one argument or variable, in bytes."""
_MAX_VOLUMES = 32
_CLOSED = frozenset({"dev", "host", "proc", "sys"})


@dataclass(frozen=True, slots=True)
class InjectedFile:
    """A file to place: path inside, content, permission bits."""

    path: str
    data: bytes
    mode: int = 0o400


@dataclass(frozen=True, slots=True)
class MountPoint:
    """Where a FUSE volume appears inside."""

    path: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSpec:
    """The description, checked when made.

    Attributes:
        argv: program and arguments; the program is an absolute path.
        env: the whole environment.
        cwd: working directory inside.
        files: injected files; below /run, /tmp and /dev/shm on the program's own tmpfs, else read-only.
        mounts: FUSE volumes.
        root: the tree that the program sees as its root, read-only.
        uid: user and group of the launching user namespace; the program itself sees 1000.
        tmp_bytes: size of each of /tmp and /dev/shm.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str = "/"
    files: tuple[InjectedFile, ...] = field(default=(), repr=False)
    mounts: tuple[MountPoint, ...] = ()
    root: str = "/"
    uid: int = 0
    tmp_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        """Check everything that can be checked before a process starts.

        Raises:
            ConfigError: `launch.argv_invalid`, `launch.env_invalid`, `launch.path_invalid`, `launch.path_reserved`,
                `launch.path_overlap`.
        """
        if not self.argv or not self.argv[0].startswith("/") or not all(_plain(item) for item in self.argv):
            raise ConfigError("launch.argv_invalid", "argv starts with an absolute path and holds no NUL")
        for name, value in self.env.items():
            if not name or "=" in name or not _plain(name) or not _plain(value):
                raise ConfigError("launch.env_invalid", "a variable has a name without '=' and no NUL", name=name[:64])
        if self.cwd != "/":
            require_path(self.cwd)
        points = [point.path for point in self.mounts]
        paths = [file.path for file in self.files]
        for path in (*points, *paths):
            if require_path(path).split("/")[1] in _CLOSED and not path.startswith("/dev/shm/"):  # noqa: S108
                raise ConfigError("launch.path_reserved", "nothing is placed in the kernel's directories", path=path)
        for path in points:
            if path[1:] in PRIVATE or len(points) > _MAX_VOLUMES:
                raise ConfigError("launch.path_reserved", "a volume cannot take this place", path=path)
        _require_disjoint(points, paths)

    def encode(self) -> bytes:
        """Encode for the launching process.

        Raises:
            EncodingError: `json.not_canonical`.
        """
        return strict_json.encode(
            {
                "argv": list(self.argv),
                "env": dict(self.env),
                "cwd": self.cwd,
                "files": [[file.path, to_base64url(file.data), file.mode] for file in self.files],
                "mounts": [[point.path, point.read_only] for point in self.mounts],
                "root": self.root,
                "uid": self.uid,
                "tmp_bytes": self.tmp_bytes,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> ProgramSpec:
        """Decode what `encode` wrote.

        Raises:
            EncodingError: `launch.malformed`, the codes of strict JSON.
            ConfigError: as for a new description.
        """
        value = strict_json.decode(data, max_bytes=1 << 28)
        if not isinstance(value, dict) or set(value) != set(cls.__dataclass_fields__):
            raise _malformed()
        try:
            files = tuple(InjectedFile(path, from_base64url(text), mode) for path, text, mode in value["files"])
            mounts = tuple(MountPoint(path, read_only) for path, read_only in value["mounts"])
            return cls(**{**value, "argv": tuple(value["argv"]), "files": files, "mounts": mounts})
        except (AttributeError, IndexError, TypeError, ValueError):
            raise _malformed() from None


def _malformed() -> EncodingError:
    return EncodingError("launch.malformed", "not the description of a program")


def _plain(text: str) -> bool:
    return "\0" not in text and len(text) < _MAX_STRING


def _require_disjoint(points: list[str], files: list[str]) -> None:
    # A mount below a mount, or a file below one, would depend on what the outer volume holds.
    taken = sorted([*points, *files])
    for index, path in enumerate(taken):
        for other in taken[index + 1 :]:
            if other == path or other.startswith(path + "/"):
                raise ConfigError("launch.path_overlap", "two entries want overlapping places", path=other)
