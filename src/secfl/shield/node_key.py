"""The node key: the engine's own client key, made inside the enclave and named in its evidence.

The gateway lets a peer speak only with the node key that the peer's evidence carries, so that an attested trainer
cannot act under another one's name (EV-15).
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

__all__ = ["NODE_KEY_PATH", "NodeKey"]

NODE_KEY_PATH = "/run/secfl/node_key"


class NodeKey:
    """A NIST P-256 key in OpenSSH form, as engines take it."""

    def __init__(self) -> None:
        key = generate_private_key(SECP256R1())
        self.private_text = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        self.public_text = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
