"""Receiving a released model: the key from the manager, the ciphertext from wherever it lies, the root from both.

What is unpacked is authentic to the byte, or nothing is written under the final name.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from secfl.errors import ConfigError
from secfl.linux.images import open_image_directory
from secfl.party.session import ManagerSession
from secfl.protocol.party import ReleaseAsk, ReleaseReply, release_context
from secfl.volume.image import SealedImage
from secfl.volume.image_manifest import Kind

__all__ = ["open_release", "unpack"]

_PIECE = 1 << 20


def open_release(session: ManagerSession, study: str, volume: str, directory: Path) -> SealedImage:
    """Get the release key and open the release volume.

    Raises:
        AuthorizationError: the policy names another party.
        StateError: `release.not_ready`.
        VerificationError: the ciphertext is not the released one.
    """
    reply = session.ask(
        "releases",
        lambda deployment, nonce: ReleaseAsk(deployment_id=deployment, nonce=nonce, study=study, volume=volume),
        ReleaseReply,
    )
    context = release_context(session.deployment_id, study, volume, reply.root)
    key = session.home.recipient_key().open(reply.sealed_key, purpose="release", context=context)
    return open_image_directory(directory, root=bytes.fromhex(reply.root), key=key)


def unpack(image: SealedImage, out: Path) -> list[Path]:
    """Write all files of an image below a new directory.

    Raises:
        ConfigError: `release.exists` or `release.unwritable`.
        VerificationError: a chunk is not authentic; nothing remains under `out`.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError("release.exists", f"{out} exists already", hint="choose a new directory")
    partial: Path | None = None
    written: list[Path] = []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # A name that nobody can foresee: another user of the folder could have planted a link under it.
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        for entry in image.entries:
            target = partial / entry.path
            if entry.kind is Kind.DIRECTORY:
                target.mkdir(exist_ok=True)
            elif entry.kind is Kind.FILE:
                with target.open("xb") as file:
                    for offset in range(0, entry.size, _PIECE):
                        file.write(image.read(entry, offset, _PIECE))
                written.append(out / entry.path)
            else:
                target.symlink_to(entry.target)
        partial.rename(out)
        partial = None
    except OSError as error:
        raise ConfigError("release.unwritable", f"cannot write {out}: {error.strerror}") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return written
