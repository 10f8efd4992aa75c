"""The release: a fresh volume for one party, made by the enclave when its program has ended well.

The working key never leaves: the manager makes a release key for this one volume, the enclave packs the content under
it as a sealed image in the operator's directory, and tells the manager the root. The party gets root and key from the
manager when the policy's condition holds (FL-22).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from secfl.errors import ConfigError, EncodingError, VerificationError
from secfl.linux.images import ImageOutput
from secfl.protocol.payload import ServicePayload
from secfl.protocol.service import Released, ReleaseKeyAsk, ReleaseKeyReply
from secfl.shield.enrolment import Enrolment, Transport
from secfl.shield.volumes import MountedSet, host_path
from secfl.volume.image_manifest import Mode
from secfl.volume.records import DIRECTORY, FILE, ROOT_INODE
from secfl.volume.tree import Inode
from secfl.volume.volume import Volume

__all__ = ["RELEASES", "pack_volume", "release_volumes"]

RELEASES = "release"
"""Folder below the host directory where release volumes are left."""
_PIECE = 1 << 20


def release_volumes(
    payload: ServicePayload, mounted: MountedSet, enrolment: Enrolment, transport: Transport
) -> dict[str, bytes]:
    """Pack every volume that the policy releases; returns the roots by volume.

    Raises:
        VerificationError: `release.not_writable`: the manager releases what is no sealed volume.
        SecflError: the manager refuses, the volume cannot be read, or the operator's directory cannot be written.
    """
    roots: dict[str, bytes] = {}
    for volume in payload.volumes:
        if not volume.release:
            continue
        writable = mounted.writable.get(volume.name)
        if writable is None:
            raise VerificationError("release.not_writable", f"{volume.name} is not a writable volume")
        reply = enrolment.call(transport, "service/release-key", ReleaseKeyAsk(volume=volume.name))
        key = enrolment.open_release_key(ReleaseKeyReply.decode(reply), volume.name)
        opened = writable.reopen()
        folder = _release_folder(mounted.host) / f"{volume.name}-{enrolment.admission.lease_id}"
        root = pack_volume(opened, folder, key=key)
        enrolment.call(transport, "service/released", Released(volume=volume.name, root=root.hex()))
        roots[volume.name] = root
    return roots


def _release_folder(host: Path) -> Path:
    try:
        (host / RELEASES).mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigError("release.unwritable", f"the host's {RELEASES} cannot be made: {error.strerror}") from error
    return host_path(RELEASES, host=host)


def pack_volume(volume: Volume, out_dir: Path, *, key: bytes) -> bytes:
    """Copy a sealed volume's tree into a new encrypted image and return its root.

    Raises:
        EncodingError: `release.name`, or a name or link has no place in an image.
        ConfigError: `image.exists` or `release.unwritable`.
        VerificationError: the volume's content is damaged.
    """
    try:
        with ImageOutput(out_dir, mode=Mode.ENCRYPTED, key=key) as output:
            for path, node in sorted(_walk(volume), key=lambda item: item[0]):
                if node.kind == DIRECTORY:
                    output.writer.add_directory(path)
                elif node.kind == FILE:
                    output.writer.add_file(path, _content(volume, node))
                else:
                    output.writer.add_symlink(path, _text(node.target))
            return output.finish()
    except OSError as error:
        raise ConfigError("release.unwritable", f"{out_dir} cannot be written: {error.strerror}") from error


def _walk(volume: Volume) -> Iterator[tuple[str, Inode]]:
    # With a list, not by recursion: the program chooses how deep its directories are.
    waiting = [("", volume.tree.inode(ROOT_INODE))]
    while waiting:
        base, directory = waiting.pop()
        for name, number in directory.entries.items():
            path, node = base + _text(name), volume.tree.inode(number)
            yield path, node
            if node.kind == DIRECTORY:
                waiting.append((path + "/", node))


def _text(name: bytes) -> str:
    try:
        return name.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        raise EncodingError("release.name", "a name or link of the volume is not UTF-8") from error


def _content(volume: Volume, node: Inode) -> Iterator[bytes]:
    for offset in range(0, node.size, _PIECE):
        yield volume.contents.read(node, offset, _PIECE)
