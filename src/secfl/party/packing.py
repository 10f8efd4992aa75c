"""Packing: a party's files into a sealed image under a key of its own, and the owner's policy that lists it.

The key is drawn here and stays in the party's private folder; it reaches the manager only sealed to the attested key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secfl.crypto import strict_json
from secfl.crypto.encoding import from_hex
from secfl.errors import ConfigError, EncodingError, SecflError, VerificationError
from secfl.linux.images import PackedImage, pack_image
from secfl.party.documents import deposit_key, propose, vote
from secfl.party.home import PartyHome, PartyIdentity, read_file, write_file
from secfl.party.session import ManagerSession
from secfl.policy.version import PolicyVersion, policy_hash
from secfl.volume.image_manifest import Mode

__all__ = ["OwnedVolume", "owner_policy", "pack_volume", "register_volume"]

_ROOT_BYTES = 32


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

    @classmethod
    def from_document(cls, document: object) -> OwnedVolume:
        """Read the values of the file that is handed over.

        Raises:
            EncodingError: `volume.malformed`.
        """
        if not isinstance(document, dict) or set(document) != {"policy", "policy_hash", "volume", "root"}:
            raise EncodingError("volume.malformed", "a packed volume has policy, policy_hash, volume and root")
        if not all(isinstance(value, str) for value in document.values()):
            raise EncodingError("volume.malformed", "a member of a packed volume is not text")
        return cls(**document)


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
    try:
        packed = pack_image(source, out, mode=Mode.ENCRYPTED, key=key)
    except SecflError:
        # Nothing was packed under it; left there, it would forbid the next attempt under this name.
        home.forget_volume_key(name, volume)
        raise
    policy = owner_policy(identity, volume, packed.root)
    PolicyVersion.read(policy)
    write_file(out / "policy.yaml", policy)
    owned = OwnedVolume(name, policy_hash(policy).hex(), volume, packed.root.hex())
    write_file(out / "volume.json", strict_json.encode(owned.document()))
    return owned, packed


def register_volume(session: ManagerSession, out: Path, *, now: int) -> OwnedVolume:
    """Put the owner's policy in force and deposit the key.

    The directory has been handed around since it was packed, so only what this party would write itself is signed.

    Raises:
        EncodingError: `volume.malformed`.
        VerificationError: `volume.changed`: the files are not those that this party packed.
        SecflError: what the manager refused.
    """
    owned = OwnedVolume.from_document(strict_json.decode(read_file(out / "volume.json")))
    policy = owner_policy(session.home.identity(), owned.volume, from_hex(owned.root, size=_ROOT_BYTES))
    if read_file(out / "policy.yaml") != policy or owned.policy_hash != policy_hash(policy).hex():
        raise VerificationError(
            "volume.changed", f"{out} does not hold the policy that was written when it was packed", hint="pack again"
        )
    propose(session, owned.policy, policy, now=now)
    vote(session, owned.policy, policy, approve=True)
    deposit_key(session, owned.policy, owned.volume, owned.root)
    return owned
