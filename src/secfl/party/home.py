"""A party's home directory.

Public files may be handed over; what is private has mode 0600 under `private/` and is written before it is used. A file
is replaced by rename, so that a crash leaves the old one or the new one.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from secfl.crypto import strict_json
from secfl.crypto.aead import KEY_BYTES
from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.crypto.hpke import PUBLIC_KEY_BYTES, SealingKey
from secfl.crypto.signing import PublicKey, SigningKey
from secfl.errors import ConfigError, EncodingError, StateError

__all__ = ["PartyHome", "PartyIdentity", "read_file", "write_file"]

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")
_MAX_FILE = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PartyIdentity:
    """The public half of a party: what it hands to the others.

    Attributes:
        name: lower-case letters, digits and inner hyphens.
        signing_key: verifies its proposals, votes, grants and requests.
        recipient_key: 1,216-byte hybrid key to which models are released.
    """

    name: str
    signing_key: PublicKey
    recipient_key: bytes

    def document(self) -> dict[str, str]:
        """The values of `identity.json`, which are also those of a policy's `parties` entry."""
        return {
            "name": self.name,
            "signing_key": to_base64url(self.signing_key.spki),
            "recipient_key": to_base64url(self.recipient_key),
        }

    @classmethod
    def from_document(cls, document: object) -> PartyIdentity:
        """Read the values of `identity.json`.

        Raises:
            EncodingError: `party.identity_malformed` or a malformed key.
        """
        if not isinstance(document, dict) or set(document) != {"name", "signing_key", "recipient_key"}:
            raise EncodingError("party.identity_malformed", "an identity has name, signing_key and recipient_key")
        if not all(isinstance(value, str) for value in document.values()) or not _NAME.match(document["name"]):
            raise EncodingError("party.identity_malformed", "name or keys are not of the required form")
        return cls(
            document["name"],
            PublicKey(from_base64url(document["signing_key"])),
            from_base64url(document["recipient_key"], size=PUBLIC_KEY_BYTES),
        )


class PartyHome:
    """The files of one party."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, name: str) -> PartyHome:
        """Make the party's keys.

        Raises:
            ConfigError: `party.name`.
            StateError: `party.exists`; keys are never overwritten.
        """
        if not _NAME.match(name):
            raise ConfigError("party.name", f"not a party name: {name!r}", hint="lower-case letters, digits, hyphens")
        home = cls(path)
        if home.identity_path.exists():
            raise StateError("party.exists", f"{path} already holds a party", hint="choose another --home")
        for folder in (path, home.private, home.private / "volumes"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        signing, seed = SigningKey.generate(), SealingKey.generate_seed()
        write_file(home.private / "signing.pem", signing.to_pem(), mode=0o600)
        write_file(home.private / "recipient.seed", seed, mode=0o600)
        identity = PartyIdentity(name, signing.public, SealingKey(seed).public)
        write_file(home.identity_path, strict_json.encode(identity.document()))
        return home

    @property
    def private(self) -> Path:
        """The folder that nobody else may read."""
        return self.path / "private"

    @property
    def identity_path(self) -> Path:
        """The public identity file."""
        return self.path / "identity.json"

    @property
    def reference_path(self) -> Path:
        """What this party accepts as the manager; held by the party, never fetched from the manager."""
        return self.path / "manager-reference.json"

    @property
    def pin_path(self) -> Path:
        """The manager that this party has attested."""
        return self.path / "manager-pin.json"

    @property
    def collateral_path(self) -> Path:
        """The party's own collateral and trust anchors."""
        return self.path / "collateral.json"

    def identity(self) -> PartyIdentity:
        """Read the public identity.

        Raises:
            ConfigError: `party.missing` when there is no party here.
            EncodingError: the file is malformed.
        """
        if not self.identity_path.exists():
            raise ConfigError("party.missing", f"no party in {self.path}", hint="secfl party create NAME --home DIR")
        return PartyIdentity.from_document(strict_json.decode(read_file(self.identity_path)))

    def signing_key(self) -> SigningKey:
        """Read the signing key.

        Raises:
            ConfigError: `file.unreadable`.
            EncodingError: `key.unreadable`.
        """
        return SigningKey.from_pem(read_file(self.private / "signing.pem"))

    def recipient_key(self) -> SealingKey:
        """Read the key to which models are released.

        Raises:
            ConfigError: `file.unreadable`.
            EncodingError: `hpke.seed_size`.
        """
        return SealingKey(read_file(self.private / "recipient.seed"))

    def volume_key(self, policy: str, volume: str, *, create: bool = False) -> bytes:
        """The key of one of the party's own volumes.

        Raises:
            StateError: `volume.key_exists` when it should be created but is there.
            ConfigError: `volume.key_missing` or `volume.name`.
        """
        path = self._volume_key_path(policy, volume)
        if create:
            if path.exists():
                raise StateError("volume.key_exists", f"{policy} {volume} has a key already", hint="choose a new name")
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(path, secrets.token_bytes(KEY_BYTES), mode=0o600)
        if not path.exists():
            raise ConfigError("volume.key_missing", f"no key for {policy} {volume}", hint="secfl volume pack")
        key = read_file(path)
        if len(key) != KEY_BYTES:
            raise ConfigError("volume.key_missing", f"the key of {policy} {volume} is damaged")
        return key

    def forget_volume_key(self, policy: str, volume: str) -> None:
        """Remove the key of a volume that could not be packed.

        Raises:
            ConfigError: `volume.name`.
        """
        self._volume_key_path(policy, volume).unlink(missing_ok=True)

    def _volume_key_path(self, policy: str, volume: str) -> Path:
        for part in (*policy.split("/"), volume):
            if not _NAME.match(part):
                raise ConfigError("volume.name", f"not a policy or volume name: {policy!r} {volume!r}")
        # No name holds an underscore, so two volumes never share a file.
        return self.private / "volumes" / f"{policy.replace('/', '_')}_{volume}.key"


def read_file(path: Path, *, max_bytes: int = _MAX_FILE) -> bytes:
    """Read a file of the user with a bound.

    Raises:
        ConfigError: `file.unreadable` or `file.too_large`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError("file.unreadable", f"cannot read {path}: {error.strerror}") from error
    if len(data) > max_bytes:
        raise ConfigError("file.too_large", f"{path} is larger than {max_bytes} bytes")
    return data


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file whole and durably.

    Raises:
        ConfigError: `file.unwritable`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ConfigError("file.unwritable", f"cannot write {path}: {error.strerror}") from error


def _sync_directory(path: Path) -> None:
    # Without it a crash may forget the new name, and with it a key under which volumes are already packed.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
