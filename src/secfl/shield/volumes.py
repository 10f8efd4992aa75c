"""The volumes of one service: host directories in, FUSE servers for the program's mounts out.

Read-only images are named by their root before attestation (the evidence carries it) and opened with the root and key
that the manager gave: a host that swaps the files in between gets a refused start (FL-02, SC-01). A writable volume has
the manager as keeper of its root.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from secfl.crypto.transcript import digest256
from secfl.errors import ConfigError, VerificationError
from secfl.linux.fuse_mount import fork_server
from secfl.linux.image_server import serve_image
from secfl.linux.images import DATA_NAME, MANIFEST_NAME, FileReader
from secfl.linux.launcher import ServeVolume
from secfl.linux.program import MountPoint
from secfl.linux.volume_channel import VolumeProcess
from secfl.linux.volume_files import HostDirectory
from secfl.linux.volume_server import CommitPolicy, fork_volume_server
from secfl.protocol.payload import MountedVolume
from secfl.volume.image import MAX_SEALED_MANIFEST_BYTES, image_root, open_image
from secfl.volume.journal import NO_TAG
from secfl.volume.storage import Root, RootKeeper
from secfl.volume.volume import Volume, create_volume, open_volume

__all__ = ["HOST", "MountedSet", "PushRoot", "VolumeKeeper", "Writable", "host_path", "image_roots", "volume_id"]

HOST = Path("/host")
"""The operator's untrusted directory inside the enclave."""
_VOLUME_ID_BYTES = 16
_PROGRAM_MODE = 0o700

PushRoot = Callable[[str, int, bytes | None, bytes], None]
"""Moves a volume's root at the manager: volume, sequence, previous tag or None, tag."""


def image_roots(directories: Mapping[str, str], *, host: Path = HOST) -> dict[str, bytes]:
    """Compute the root of every image that the operator supplied, for the launch claims.

    Raises:
        ConfigError: `volume.missing`, `volume.path` or `image.not_a_file`.
        UnavailableError: `image.unreadable`.
    """
    return {name: image_root(_read_manifest(name, host_path(path, host=host))) for name, path in directories.items()}


def _read_manifest(name: str, directory: Path) -> bytes:
    manifest = FileReader(directory / MANIFEST_NAME)
    try:
        sealed = manifest.pread(0, MAX_SEALED_MANIFEST_BYTES + 1)
    finally:
        manifest.close()
    if len(sealed) > MAX_SEALED_MANIFEST_BYTES:
        raise ConfigError("volume.path", f"the manifest of {name} is too large")
    return sealed


def host_path(directory: str, *, host: Path = HOST) -> Path:
    """Resolve an operator's relative path below the host directory; a link that leads out is refused (FS-08).

    Raises:
        ConfigError: `volume.path` or `volume.missing`.
    """
    if not directory or directory.startswith("/") or "\0" in directory or ".." in Path(directory).parts:
        raise _outside(directory)
    try:
        resolved = (host / directory).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError("volume.missing", f"the operator's {directory[:200]} is not there") from error
    if not resolved.is_relative_to(host.resolve()):
        raise _outside(directory)
    return resolved


def _writable_path(directory: str, host: Path) -> Path:
    """Like `host_path`, for a directory that need not be there; its last part must not be a link when opened."""
    path = Path(directory)
    if not path.name or "\0" in directory or ".." in path.parts:
        raise _outside(directory)
    return host_path(str(path.parent), host=host) / path.name


def _outside(directory: str) -> ConfigError:
    return ConfigError("volume.path", "a volume's directory lies below the host directory", path=directory[:200])


def volume_id(deployment_id: str, study: str, name: str) -> bytes:
    """Name a writable volume within all deployments; binds its journal to this study (FS-03)."""
    return digest256("volume-id", deployment_id.encode(), study.encode(), name.encode())[:_VOLUME_ID_BYTES]


class VolumeKeeper(RootKeeper):
    """The manager as the keeper of one volume's root."""

    def __init__(self, name: str, head: Root | None, push: PushRoot) -> None:
        self._name = name
        self._head = head
        self._push = push

    def head(self) -> Root | None:
        """Return the root that the manager gave at attestation, or the last one it took since."""
        return self._head

    def push(self, sequence: int, previous: bytes, tag: bytes) -> None:
        """Move the root by compare and swap.

        Raises:
            FreshnessError: another writer has moved it.
            UnavailableError: the manager does not answer.
        """
        self._push(self._name, sequence, None if previous == NO_TAG else previous, tag)
        self._head = Root(sequence, tag)


@dataclass(slots=True)
class Writable:
    """A writable volume in use.

    Attributes:
        process: its server.
        keeper: the manager as keeper of its root.
        reopen: opens the volume in this process once the server has ended.
        thread: carries pushes; joined before the server is reaped.
    """

    process: VolumeProcess
    keeper: VolumeKeeper
    reopen: Callable[[], Volume]
    thread: threading.Thread | None = None


class MountedSet:
    """All volumes of the service, in the order of the payload."""

    def __init__(
        self, deployment_id: str, study: str, directories: Mapping[str, str], push: PushRoot, *, host: Path = HOST
    ) -> None:
        """Remember where the operator's directories are.

        Args:
            directories: volume name to path below the host directory.
        """
        self.host = host
        self._deployment_id = deployment_id
        self._study = study
        self._directories = directories
        self._push = push
        self.points: list[MountPoint] = []
        self.servers: list[ServeVolume] = []
        self.writable: dict[str, Writable] = {}
        self.children: dict[str, int] = {}

    def add(self, volume: MountedVolume) -> None:
        """Open a volume, so that a wrong key, root or history stops the start before the program exists.

        Raises:
            ConfigError: `volume.missing`, `volume.path`, `volume.unusable`, `image.not_a_file`.
            VerificationError: the content does not have the required root, or the key is another.
            FreshnessError: a writable volume was rolled back.
            UnavailableError: the manager does not take the first root.
        """
        directory = self._directories.get(volume.name)
        if directory is None:
            raise ConfigError(
                "volume.missing", f"the operator supplied no directory for {volume.name}", hint="see the site file"
            )
        if volume.writable:
            try:
                self._add_writable(volume, _writable_path(directory, self.host))
            except OSError as error:
                raise ConfigError(
                    "volume.unusable", f"the directory of {volume.name} cannot be used: {error.strerror}"
                ) from error
        else:
            self._add_image(volume, host_path(directory, host=self.host))
        self.points.append(MountPoint(volume.path, read_only=not volume.writable))

    def _add_image(self, volume: MountedVolume, directory: Path) -> None:
        if volume.root is None:
            raise VerificationError("volume.no_root", f"the manager gave no root for {volume.name}")
        reader = FileReader(directory / DATA_NAME)
        manifest = _read_manifest(volume.name, directory)
        image = open_image(reader, manifest, root=bytes.fromhex(volume.root), key=volume.key)

        def serve(descriptor: int) -> None:
            child = fork_server(lambda: serve_image(descriptor, image), keep=(descriptor, reader.fd))
            self.children[f"volume {volume.name}"] = child
            os.close(descriptor)

        self.servers.append(serve)

    def _add_writable(self, volume: MountedVolume, directory: Path) -> None:
        if volume.key is None:
            raise VerificationError("volume.no_key", f"the manager gave no key for {volume.name}")
        key = volume.key
        identity = volume_id(self._deployment_id, self._study, volume.name)
        head = None if volume.root is None else Root(volume.sequence, bytes.fromhex(volume.root))
        keeper = VolumeKeeper(volume.name, head, self._push)
        host = HostDirectory(directory)
        try:
            if head is None:
                now = time.time_ns()
                step = create_volume(host.files, key=key, volume_id=identity, mode=_PROGRAM_MODE, now=now)
                keeper.push(*step)
            opened = open_volume(host.files, key=key, volume_id=identity, keeper=keeper)
        except BaseException:
            host.close()
            raise

        def reopen() -> Volume:
            # The server may have replaced the journal, so the files are opened anew.
            host.close()
            return open_volume(HostDirectory(directory).files, key=key, volume_id=identity, keeper=keeper)

        def serve(descriptor: int) -> None:
            process = fork_volume_server(descriptor, opened, policy=CommitPolicy(), owner=(0, 0), keep=host.descriptors)
            os.close(descriptor)
            self.children[f"volume {volume.name}"] = process.pid
            self.writable[volume.name] = Writable(process, keeper, reopen)

        self.servers.append(serve)
