"""The release: a fresh volume for one party, made by the enclave when its program has ended well.

The working key never leaves: the manager makes a release key for this one volume, the enclave packs the content under
it as a sealed image in the operator's directory, and tells the manager the root. The party gets root and key from the
manager when the policy's condition holds (FL-22).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from secfl.errors import EncodingError
from secfl.linux.images import ImageOutput
from secfl.protocol.payload import ServicePayload
from secfl.protocol.service import Released, ReleaseKeyAsk, ReleaseKeyReply
from secfl.shield.enrolment import Enrolment, Transport
from secfl.shield.volumes import HOST, MountedSet
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
        SecflError: the manager refuses, the volume cannot be read, or the operator's directory cannot be written.
    """
    roots: dict[str, bytes] = {}
    for volume in payload.volumes:
        if not volume.release:
            continue
        reply = enrolment.call(transport, "service/release-key", ReleaseKeyAsk(volume=volume.name))
        key = enrolment.open_release_key(ReleaseKeyReply.decode(reply), volume.name)
        opened = mounted.writable[volume.name].reopen()
        folder = HOST / RELEASES / f"{volume.name}-{enrolment.admission.lease_id}"
        root = pack_volume(opened, folder, key=key)
        enrolment.call(transport, "service/released", Released(volume=volume.name, root=root.hex()))
        roots[volume.name] = root
    return roots


def pack_volume(volume: Volume, out_dir: Path, *, key: bytes) -> bytes:
    """Copy a sealed volume's tree into a new encrypted image and return its root.

    Raises:
        EncodingError: a name or link has no place in an image.
        ConfigError: `image.exists`.
        VerificationError: the volume's content is damaged.
    """
    output = ImageOutput(out_dir, mode=Mode.ENCRYPTED, key=key)
    for path, node in sorted(_walk(volume, "", volume.tree.inode(ROOT_INODE)), key=lambda item: item[0]):
        if node.kind == DIRECTORY:
            output.writer.add_directory(path)
        elif node.kind == FILE:
            output.writer.add_file(path, _content(volume, node))
        else:
            output.writer.add_symlink(path, node.target.decode("utf-8", "strict"))
    return output.finish()


def _walk(volume: Volume, base: str, directory: Inode) -> Iterator[tuple[str, Inode]]:
    for name, number in directory.entries.items():
        try:
            path = f"{base}/{name.decode('utf-8', 'strict')}" if base else name.decode("utf-8", "strict")
        except UnicodeDecodeError as error:
            raise EncodingError("release.name", "a file name of the volume is not UTF-8") from error
        node = volume.tree.inode(number)
        yield path, node
        if node.kind == DIRECTORY:
            yield from _walk(volume, path, node)


def _content(volume: Volume, node: Inode) -> Iterator[bytes]:
    for offset in range(0, node.size, _PIECE):
        yield volume.contents.read(node, offset, _PIECE)
