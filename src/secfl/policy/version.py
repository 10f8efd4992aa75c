"""A version of a policy: the bytes as received, what they say, and their hash.

The hash is over the bytes, never over a re-encoding, so that what was voted on is what is in force; `docs/formats/
policy-hash.md` gives it byte by byte.
"""

from __future__ import annotations

from dataclasses import dataclass

from secfl.crypto.transcript import digest256
from secfl.policy.decode import decode
from secfl.policy.model import Policy

__all__ = ["PolicyVersion", "policy_hash"]


def policy_hash(data: bytes) -> bytes:
    """Hash the bytes of a policy (32 bytes); they need not be valid."""
    return digest256("policy", data)


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """A decoded policy with its bytes and hash; made by `read`."""

    data: bytes
    policy: Policy
    hash: bytes

    @classmethod
    def read(cls, data: bytes, *, source: str = "policy") -> PolicyVersion:
        """Decode and hash.

        Raises:
            PolicyError: all `policy.*` codes of `decode`.
        """
        return cls(data, decode(data, source=source), policy_hash(data))
