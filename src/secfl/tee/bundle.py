"""The trust bundle: one trust anchor with its collateral for each kind of evidence, as one file that is handed over.

An endorser publishes it (Intel's through a caching service, a simulated vendor as a file); each relying party holds its
own copy. Reading it proves nothing: evidence is verified against it, and a root is believed only under the domain that
a policy or a person named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from secfl.attestation.evidence import KINDS
from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.errors import EncodingError, VerificationError
from secfl.tee.anchor import TrustAnchor
from secfl.tee.collateral import MAX_COLLATERAL_BYTES, Collateral

__all__ = ["MAX_BUNDLE_BYTES", "TrustBundle"]

MAX_BUNDLE_BYTES = 2 * len(KINDS) * MAX_COLLATERAL_BYTES


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """A trust anchor and unverified collateral by kind of evidence."""

    anchor: TrustAnchor
    by_kind: Mapping[str, Collateral]

    def collateral(self, kind: str) -> Collateral:
        """Return the collateral for one kind of evidence.

        Raises:
            VerificationError: `collateral.missing`; without it nothing can be verified.
        """
        found = self.by_kind.get(kind)
        if found is None:
            raise VerificationError("collateral.missing", f"no {kind} collateral for {self.anchor.domain}")
        return found

    def encode(self) -> bytes:
        """Write canonical JSON."""
        return strict_json.encode(
            {
                "collateral": {kind: to_base64url(value.encode()) for kind, value in self.by_kind.items()},
                "domain": self.anchor.domain,
                "root": to_base64url(self.anchor.root_der),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> TrustBundle:
        """Read what `encode` wrote.

        Raises:
            EncodingError: `bundle.malformed`, or a code of a member.
            VerificationError: the root is not the domain's, see `TrustAnchor`.
        """
        document = strict_json.decode(data, max_bytes=MAX_BUNDLE_BYTES)
        if not isinstance(document, dict) or set(document) != {"collateral", "domain", "root"}:
            raise EncodingError("bundle.malformed", "a trust bundle has collateral, domain and root")
        by_kind, domain, root = document["collateral"], document["domain"], document["root"]
        if not isinstance(by_kind, dict) or not by_kind or not set(by_kind) <= set(KINDS):
            raise EncodingError("bundle.malformed", "collateral is given by kind of evidence")
        texts = (domain, root, *by_kind.values())
        if not all(isinstance(text, str) for text in texts):
            raise EncodingError("bundle.malformed", "a member is not text")
        return cls(
            TrustAnchor(domain, from_base64url(root)),
            {kind: Collateral.decode(from_base64url(text)) for kind, text in by_kind.items()},
        )
