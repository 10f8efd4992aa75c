"""Packing: a party's files into a sealed image under a key of its own, and the owner's policy that lists it.

The key is drawn here and stays in the party's private folder; it reaches the manager only sealed to the attested key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secfl.crypto import strict_json
from secfl.errors import ConfigError
from secfl.linux.images import PackedImage, pack_image
from secfl.party.documents import deposit_key, propose, vote
from secfl.party.home import PartyHome, PartyIdentity, read_file, write_file
from secfl.party.session import ManagerSession
from secfl.policy.version import PolicyVersion, policy_hash
from secfl.volume.image_manifest import Mode

__all__ = ["OwnedVolume", "owner_policy", "pack_volume", "register_volume"]


@dataclass(frozen=True, slots=True)
class OwnedVolume:
    """A packed volume as others know it.

    Attributes:
        policy: name of the owner's policy.
        policy_hash: hash of that policy's bytes.
        volume: the volume's name in it.
        root: root of the sealed image.
    """

    policy: str
    policy_hash: str
    volume: str
    root: str

    def document(self) -> dict[str, str]:
        """The values of the file that is handed over."""
        return {
            "policy": self.policy,
            "policy_hash": self.policy_hash,
            "volume": self.volume,
            "root": self.root,
        }


def owner_policy(identity: PartyIdentity, volume: str, root: bytes) -> bytes:
    """Write the policy that lists one deposited volume under its owner's sole control."""
    document = identity.document()
    text = (
        f"# Owned by {identity.name}: the manager keeps the key, a study uses it under a grant.\n"
        'secfl: "1"\n'
        f"name: {identity.name}/{volume}\n"
        "parties:\n"
        f"  - name: {identity.name}\n"
        f'    signing_key: "{document["signing_key"]}"\n'
        f'    recipient_key: "{document["recipient_key"]}"\n'
        "access_policy:\n"
        f"  update: {{require-all: [{identity.name}]}}\n"
        "volumes:\n"
        f'  - {{name: {volume}, root: "{root.hex()}", deposited: true}}\n'
    )
    return text.encode()


def pack_volume(home: PartyHome, source: Path, out: Path, *, volume: str) -> tuple[OwnedVolume, PackedImage]:
    """Pack a folder into `out` with `data`, `manifest`, `policy.yaml` and `volume.json`.

    Raises:
        StateError: `volume.key_exists`.
        ConfigError: the folder cannot be packed, or `out` exists.
    """
    identity = home.identity()
    name = f"{identity.name}/{volume}"
    if out.exists():
        raise ConfigError("image.exists", f"{out} exists already", hint="choose a new directory")
    key = home.volume_key(name, volume, create=True)
    packed = pack_image(source, out, mode=Mode.ENCRYPTED, key=key)
    policy = owner_policy(identity, volume, packed.root)
    PolicyVersion.read(policy)
    write_file(out / "policy.yaml", policy)
    owned = OwnedVolume(name, policy_hash(policy).hex(), volume, packed.root.hex())
    write_file(out / "volume.json", strict_json.encode(owned.document()))
    return owned, packed


def register_volume(session: ManagerSession, out: Path, *, now: int) -> OwnedVolume:
    """Put the owner's policy in force and deposit the key.

    Raises:
        SecflError: what the manager refused.
        EncodingError: `volume.json` is malformed.
    """
    document = strict_json.decode(read_file(out / "volume.json"))
    owned = OwnedVolume(**document)
    policy = read_file(out / "policy.yaml")
    propose(session, owned.policy, policy, now=now)
    vote(session, owned.policy, policy, approve=True)
    deposit_key(session, owned.policy, owned.volume, owned.root)
    return owned
