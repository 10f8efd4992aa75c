"""Images and volumes: what a program finds in its files, and where each part comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from secfl.policy.fields import AbsolutePath, Affirmed, Closed, Digest, Name, Permission, PolicyName

__all__ = [
    "DepositedVolume",
    "Image",
    "ImportReference",
    "ImportedVolume",
    "InjectionFile",
    "Mount",
    "Release",
    "Volume",
    "WritableVolume",
]

_MAX_FILE = 128 * 1024


class ImportReference(Closed):
    """A volume of another policy, pinned by that policy's hash: a name alone could be squatted (PB-13)."""

    policy: PolicyName
    policy_hash: Digest
    volume: Name


class ImportedVolume(Closed):
    """A volume that an owner's policy lists; its key is released under the owner's grant."""

    name: Name
    imported: Annotated[ImportReference, Field(alias="import")]


class DepositedVolume(Closed):
    """A sealed image whose key its owner deposits at the manager."""

    name: Name
    root: Digest
    deposited: Affirmed


class Release(Closed):
    """When a writable volume's content goes to a party."""

    to: Name
    when: Literal["completed"]


class WritableVolume(Closed):
    """A sealed volume whose key the manager makes and nobody sees."""

    name: Name
    writable: Affirmed
    release: Release | None = None


_KINDS = {"import": "imported volume", "deposited": "deposited volume", "writable": "writable volume"}
"""Union tags by the key that decides; with a blank in it no tag can be taken for a key in an error's location."""


def _volume_kind(value: Any) -> str | None:
    if isinstance(value, ImportedVolume | DepositedVolume | WritableVolume):
        value = value.model_dump(by_alias=True, exclude_none=True)
    present = [tag for key, tag in _KINDS.items() if isinstance(value, Mapping) and key in value]
    return present[0] if len(present) == 1 else None


Volume = Annotated[
    Annotated[ImportedVolume, Tag("imported volume")]
    | Annotated[DepositedVolume, Tag("deposited volume")]
    | Annotated[WritableVolume, Tag("writable volume")],
    Discriminator(
        _volume_kind,
        custom_error_type="policy.volume_kind",
        custom_error_message="{expected}",
        custom_error_context={
            "expected": "exactly one of `import`, `deposited: true` with `root`, `writable: true`",
            "remedy": "say where the volume comes from",
        },
    ),
]


class Mount(Closed):
    """A volume and where the program finds it."""

    name: Name
    path: AbsolutePath


class InjectionFile(Closed):
    """A file that exists only in the enclave's memory; placeholders may stand in its content."""

    path: AbsolutePath
    content: Annotated[str, Field(max_length=_MAX_FILE)]
    permission: Permission


class Image(Closed):
    """Volumes and injected files of the services that name this image."""

    name: Name
    volumes: Annotated[tuple[Mount, ...], Field(max_length=64)] = ()
    injection_files: Annotated[tuple[InjectionFile, ...], Field(max_length=256)] = ()
