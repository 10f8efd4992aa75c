"""The export: the audit bundle of a log.

It holds the public part and the commitment of every entry, and the head signed by the manager's TLS key, which its
evidence covers. There is no secret in it: votes, evidence and collateral are in the public parts as received.
"""

from __future__ import annotations

from secfl.crypto import strict_json
from secfl.crypto.encoding import to_base64url
from secfl.manager.identity import ManagerIdentity
from secfl.manager.log import Log
from secfl.manager.store import Store

__all__ = ["BUNDLE_FORMAT", "HEAD_PURPOSE", "make_bundle", "sign_head"]

BUNDLE_FORMAT = "secfl-audit-1"
HEAD_PURPOSE = "secfl/log-head"


def sign_head(identity: ManagerIdentity, *, length: int, head: bytes, time: int) -> bytes:
    """Sign the head of a log."""
    document = {"deployment_id": identity.deployment_id, "head": head.hex(), "length": length, "time": time}
    return identity.tls_key.sign_envelope(HEAD_PURPOSE, strict_json.encode(document))


def make_bundle(store: Store, log: Log, length: int, identity: ManagerIdentity) -> bytes:
    """Read the store again and write the bundle of its first `length` entries.

    Args:
        log: an empty log with the store's key.

    Raises:
        SecflError: as `Log.load`: an entry does not hold.
    """
    entries: list[dict[str, str]] = []
    head, time = log.head, log.time
    for entry in log.load(store.rows()):
        if entry.row.sequence >= length:
            break
        entries.append({"commitment": entry.commitment.hex(), "public": to_base64url(entry.row.public)})
        head, time = entry.row.hash, entry.time
    return strict_json.encode(
        {
            "entries": entries,
            "format": BUNDLE_FORMAT,
            "head": to_base64url(sign_head(identity, length=len(entries), head=head, time=time)),
        }
    )
