"""The peers that the shield vouches for: site, engine node key, lease.

The shield rewrites `peers.json` atomically; this module only reads it. A site that is absent or whose lease lapsed is
not a peer, and a file that cannot be understood is an error, never an empty list.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from secfl.crypto import strict_json
from secfl.errors import ConfigError, EngineError

__all__ = ["Peer", "PeerFile", "parse_peers", "public_key_pem"]

_MAX_PEERS = 1024
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Peer:
    """One admitted site.

    Attributes:
        site: the site's name in the policy; its order is the order of aggregation.
        key: the node key as the SuperLink stores it (PEM).
        lease_until: Unix time in seconds after which the site is out.
    """

    site: str
    key: bytes
    lease_until: int


def public_key_pem(ssh_text: str) -> bytes:
    """Turn an OpenSSH public key into the PEM form that Flower stores.

    Raises:
        ConfigError: `engine.node_key`.
    """
    try:
        key = serialization.load_ssh_public_key(ssh_text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("engine.node_key", "a node key is not an OpenSSH public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError("engine.node_key", "a node key is not on a NIST curve")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def parse_peers(data: bytes) -> tuple[Peer, ...]:
    """Parse `peers.json`; the result is in the order of site names.

    Raises:
        ConfigError: `engine.peers_malformed`, `engine.node_key`.
        EncodingError: `json.too_large`, `json.too_deep`, `json.malformed`, `json.not_canonical`.
    """
    document = strict_json.decode_any(data, max_bytes=_MAX_BYTES)
    if not isinstance(document, dict) or set(document) != {"peers"} or not isinstance(document["peers"], list):
        raise ConfigError("engine.peers_malformed", "peers.json must hold one list, `peers`")
    if len(document["peers"]) > _MAX_PEERS:
        raise ConfigError("engine.peers_malformed", "peers.json lists too many peers")
    peers: dict[str, Peer] = {}
    for entry in document["peers"]:
        if not isinstance(entry, dict) or set(entry) != {"site", "node_key", "lease_until"}:
            raise ConfigError("engine.peers_malformed", "a peer has site, node_key and lease_until")
        site, text, until = entry["site"], entry["node_key"], entry["lease_until"]
        if not isinstance(site, str) or not isinstance(text, str) or isinstance(until, bool):
            raise ConfigError("engine.peers_malformed", "a peer's field has the wrong type")
        if not isinstance(until, int) or not _is_name(site) or site in peers:
            raise ConfigError("engine.peers_malformed", f"the peer {site!r} is not valid or is listed twice")
        peers[site] = Peer(site, public_key_pem(text), until)
    if len({peer.key for peer in peers.values()}) != len(peers):
        raise ConfigError("engine.peers_malformed", "two peers share a node key")
    return tuple(peers[site] for site in sorted(peers))


class PeerFile:
    """The live view of `peers.json`."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._version: tuple[int, int, int] | None = None
        self._peers: tuple[Peer, ...] = ()

    def all(self) -> tuple[Peer, ...]:
        """Return every listed peer; before the shield writes the file there is none.

        Raises:
            ConfigError: `engine.peers_malformed`, `engine.node_key`.
            EncodingError: `json.too_large`, `json.too_deep`, `json.malformed`, `json.not_canonical`.
            EngineError: `engine.peers_unreadable`.
        """
        try:
            status = self._path.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            if version != self._version:
                self._peers = parse_peers(self._path.read_bytes())
                self._version = version
        except FileNotFoundError:
            self._peers, self._version = (), None
        except OSError as error:
            raise EngineError("engine.peers_unreadable", "peers.json cannot be read") from error
        return self._peers

    def live(self) -> dict[bytes, Peer]:
        """Return the peers whose lease is running, by node key, in the order of site names.

        Raises:
            ConfigError: `engine.peers_malformed`, `engine.node_key`.
            EncodingError: `json.too_large`, `json.too_deep`, `json.malformed`, `json.not_canonical`.
            EngineError: `engine.peers_unreadable`.
        """
        now = self._now()
        return {peer.key: peer for peer in self.all() if now < peer.lease_until}


def _is_name(site: str) -> bool:
    # A site's name becomes a file name under admitted/.
    return 0 < len(site) <= 64 and all(c.isascii() and (c.isalnum() or c in "-_.") for c in site) and site[0] != "."
