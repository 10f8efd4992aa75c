"""The manager's own trust: anchors and collateral from the operator's files, verified before use.

The operator chooses when to fetch, not what is true: each bundle's collateral must verify under its own root, a root
counts only under the domain that a policy names, and a roll-back of collateral is stopped by the policy's lowest
evaluation number. Nothing comes from an attester.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from secfl.crypto.encoding import to_base64url
from secfl.errors import ConfigError, VerificationError
from secfl.manager.log import Event
from secfl.tee.bundle import MAX_BUNDLE_BYTES, TrustBundle
from secfl.tee.endorsement import check_collateral

__all__ = ["Endorsement", "Trust", "read_trust"]


@dataclass(frozen=True, slots=True)
class Endorsement:
    """A verified bundle and its digest, by which the log names it."""

    bundle: TrustBundle
    digest: str


@dataclass(frozen=True, slots=True)
class Trust:
    """Verified bundles by trust domain."""

    endorsements: Mapping[str, Endorsement] = field(default_factory=dict)

    def candidates(self, domains: tuple[str, ...]) -> tuple[Endorsement, ...]:
        """Give the bundles for the domains that a policy names, in its order.

        Raises:
            VerificationError: `trust.no_anchor`.
        """
        found = tuple(self.endorsements[domain] for domain in domains if domain in self.endorsements)
        if not found:
            raise VerificationError(
                "trust.no_anchor",
                "the manager holds no trust anchor and collateral for what the policy accepts",
                hint="give the manager the bundle of: " + ", ".join(domains),
            )
        return found

    def events(self, logged: frozenset[str]) -> tuple[Event, ...]:
        """Events for bundles that the log does not hold yet."""
        return tuple(
            Event("collateral", {"bundle": to_base64url(one.bundle.encode()), "digest": one.digest})
            for one in self.endorsements.values()
            if one.digest not in logged
        )


def read_trust(path: Path, *, now: int) -> Trust:
    """Read one bundle, or all `*.json` of a directory, and verify each.

    Raises:
        ConfigError: `trust.unreadable` or `trust.domain_twice`.
        SecflError: as `TrustBundle.decode` and `check_collateral`.
    """
    endorsements: dict[str, Endorsement] = {}
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        bundle = TrustBundle.decode(_read(file))
        for collateral in bundle.by_kind.values():
            check_collateral(collateral, bundle.anchor, now)
        if bundle.anchor.domain in endorsements:
            raise ConfigError("trust.domain_twice", "two files for one trust domain", domain=bundle.anchor.domain)
        endorsements[bundle.anchor.domain] = Endorsement(bundle, hashlib.sha256(bundle.encode()).hexdigest())
    return Trust(endorsements)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise ConfigError("trust.unreadable", f"cannot read {path}: {error.strerror}") from error
    return data
