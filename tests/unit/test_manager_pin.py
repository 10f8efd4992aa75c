"""What a party remembers of the manager that it attested."""

from __future__ import annotations

import pytest

from secfl.attestation.statement import Isolation, ManagerClaims
from secfl.errors import FreshnessError
from secfl.party.session import ManagerPin
from secfl.testing.deployment import Deployment
from secfl.testing.forge import NOW


def pin(length: int, head: bytes) -> ManagerPin:
    identity = Deployment("cleveland").manager.state.identity.public
    return ManagerPin(
        address="127.0.0.1:1",
        identity=identity,
        trust_domain="simulated:x",
        attested_at=NOW,
        log_sequence=length,
        log_head=head,
    )


def statement(length: int, head: bytes) -> ManagerClaims:
    return ManagerClaims(Isolation.FULL, "m", (), length, head, "none")


def test_an_older_log_than_the_party_saw_is_refused() -> None:
    """A shorter log, or another one of the same length, is not the pinned log continued."""
    seen = pin(5, b"\5" * 32)
    for older in (statement(4, b"\4" * 32), statement(0, bytes(32)), statement(5, b"\6" * 32)):
        with pytest.raises(FreshnessError, match=r"manager\.rolled_back"):
            seen.require_later(older)


def test_the_same_or_a_longer_log_is_taken() -> None:
    """A manager may be attested again at once, and after it went on."""
    seen = pin(5, b"\5" * 32)
    for later in (statement(5, b"\5" * 32), statement(6, b"\6" * 32)):
        assert seen.require_later(later) is later
