"""The rules on files: volumes exist, nothing covers or contains another thing, and writers are single."""

from __future__ import annotations

from collections.abc import Iterator

from secfl.policy.findings import Path, RuleBreach, shown
from secfl.policy.model import Policy
from secfl.policy.storage import Image, ImportedVolume, WritableVolume

__all__ = ["storage_breaches"]

_RESERVED = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/host",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt/python",
    "/opt/secfl",
    "/proc",
    "/run/secfl",
    "/sbin",
    "/sys",
    "/usr",
)
"""Parts of the measured runtime and of the kernel: a mount over them would change the program that was attested."""
_MEMORY = ("/run", "/tmp")  # noqa: S108  # mount points of the enclave's own memory file systems
"""The only writable places; an injected file lives in one of them."""


def storage_breaches(policy: Policy) -> Iterator[RuleBreach]:
    """Give every breach of a rule on images and volumes."""
    volumes = {volume.name for volume in policy.volumes}
    for index, image in enumerate(policy.images):
        base: Path = ("images", index)
        for number, mount in enumerate(image.volumes):
            if mount.name not in volumes:
                path = (*base, "volumes", number, "name")
                yield RuleBreach(
                    "policy.unknown_volume", path, "a name from `volumes`", shown(mount.name), "add the volume"
                )
        yield from _places(base, image)
        yield from _mounted_once(base, image)
    yield from _sources(policy)
    yield from _single_writer(policy)


def _inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def _places(base: Path, image: Image) -> Iterator[RuleBreach]:
    taken: list[tuple[Path, str]] = []
    for number, mount in enumerate(image.volumes):
        taken.append(((*base, "volumes", number, "path"), mount.path))
    for number, file in enumerate(image.injection_files):
        path: Path = (*base, "injection_files", number, "path")
        taken.append((path, file.path))
        if not any(file.path.startswith(f"{place}/") for place in _MEMORY):
            yield RuleBreach(
                "policy.injection_path", path, "a path below /run or /tmp", shown(file.path), "choose another path"
            )
    for index, (path, place) in enumerate(taken):
        if any(_inside(place, reserved) or _inside(reserved, place) for reserved in _RESERVED):
            yield RuleBreach(
                "policy.reserved_path", path, "a path apart from the runtime's own", shown(place), "choose another path"
            )
        for _, other in taken[:index]:
            if _inside(place, other) or _inside(other, place):
                yield RuleBreach(
                    "policy.path_clash",
                    path,
                    "a path neither in nor around another one",
                    shown(place),
                    f"part it from {other}",
                )


def _mounted_once(base: Path, image: Image) -> Iterator[RuleBreach]:
    seen: set[str] = set()
    for number, mount in enumerate(image.volumes):
        if mount.name in seen:
            path = (*base, "volumes", number, "name")
            yield RuleBreach("policy.mounted_twice", path, "each volume once", shown(mount.name), "remove one mount")
        seen.add(mount.name)


def _sources(policy: Policy) -> Iterator[RuleBreach]:
    parties = {party.name for party in policy.parties}
    for index, volume in enumerate(policy.volumes):
        if isinstance(volume, ImportedVolume) and volume.imported.policy == policy.name:
            path: Path = ("volumes", index, "import", "policy")
            yield RuleBreach("policy.own_import", path, "another policy", "this policy", "name the volume directly")
        if isinstance(volume, WritableVolume) and volume.release and volume.release.to not in parties:
            path = ("volumes", index, "release", "to")
            yield RuleBreach(
                "policy.unknown_party", path, "a name from `parties`", shown(volume.release.to), "add the party"
            )


def _single_writer(policy: Policy) -> Iterator[RuleBreach]:
    # Two writers of one sealed volume would fork its history, which freshness then refuses.
    writable = {volume.name for volume in policy.volumes if isinstance(volume, WritableVolume)}
    images = {image.name: image for image in policy.images}
    writer: dict[str, str] = {}
    for index, service in enumerate(policy.services):
        image = images.get(service.image_name)
        for mount in image.volumes if image else ():
            if mount.name not in writable:
                continue
            if mount.name in writer:
                yield RuleBreach(
                    "policy.two_writers",
                    ("services", index, "image_name"),
                    f"{mount.name} mounted by one service",
                    f"{writer[mount.name]} and {service.name}",
                    "give each service a writable volume and an image of its own",
                )
            writer.setdefault(mount.name, service.name)
