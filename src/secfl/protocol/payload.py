"""The service payload: configuration and secrets of one service, as the manager seals it to the attested key.

It is complete: a shield needs nothing else from outside to run the service, and takes nothing else.
"""

from __future__ import annotations

from typing import Literal

from secfl.protocol.message import Base64, Digest, JsonObject, Message, Name, Seconds
from secfl.protocol.service import Peer

__all__ = ["Egress", "Hold", "Ingress", "InjectedFile", "Linger", "MountedVolume", "ServicePayload"]


class InjectedFile(Message):
    """A file that exists only in the enclave's memory; `permission` is octal, for example `0400`."""

    path: str
    content: Base64
    permission: str


class MountedVolume(Message):
    """A volume and where it is mounted.

    Attributes:
        name: the volume's name in the study.
        path: the mount point.
        writable: a sealed volume (true) or a sealed image (false).
        key: the volume key; absent for an image that is authenticated only.
        root: root of an image, or tag of the head of a sealed volume; absent for a sealed volume still empty.
        sequence: sequence number of that head; 0 for images and for an empty volume.
        release: a release volume is to be made of it when the program has ended well.
    """

    name: Name
    path: str
    writable: bool
    key: Base64 | None = None
    root: Digest | None = None
    sequence: int
    release: bool


class Hold(Message):
    """Keep an empty answer of this path back for so many seconds."""

    path: str
    seconds: Seconds


class Linger(Message):
    """Delay the answer of this path."""

    path: str
    milliseconds: int


class Ingress(Message):
    """A port on which attested peers reach the program."""

    name: Name
    port: int
    to: str
    peers: tuple[Name, ...]
    allow: tuple[str, ...]
    node_key_header: str | None = None
    hold: tuple[Hold, ...]
    linger: tuple[Linger, ...]
    tls_server_ca: str | None = None


class Egress(Message):
    """A listener in the program's network that leads to one ingress of a peer."""

    name: Name
    listen: str
    service: Name
    ingress: Name
    tls_certificate: str | None = None
    tls_key: str | None = None


class ServicePayload(Message):
    """Everything that the shield needs to run one service.

    Attributes:
        ca_certificate: DER certificate of the study's CA, the only root for peers.
        federation: the policy's federation section as canonical JSON, where it has one.
        roster: live peers at this moment.
        lease_seconds: how long a lease lasts; renew well before.
    """

    study: Name
    policy_hash: Digest
    service: Name
    site: Name
    command: tuple[str, ...]
    environment: dict[str, str]
    pwd: str
    files: tuple[InjectedFile, ...]
    volumes: tuple[MountedVolume, ...]
    ingress: tuple[Ingress, ...]
    egress: tuple[Egress, ...]
    console: Literal["pass", "suppress"]
    ca_certificate: Base64
    federation: JsonObject | None = None
    roster: tuple[Peer, ...]
    lease_seconds: Seconds
