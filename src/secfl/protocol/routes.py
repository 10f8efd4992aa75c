"""The route: one operation of the manager, who may call it, and what its body is signed for.

There is one table. Server, clients and the role matrix of the tests read it; a path that is not in it does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from secfl.errors import EncodingError

__all__ = ["BY_PATH", "ROUTES", "Role", "Route", "route"]

_SMALL = 64 * 1024
_EVIDENCE = 256 * 1024
_POLICY = 2 * 1024 * 1024
"""A policy of 1 MiB in two layers of base64."""


class Role(Enum):
    """Who may call a route."""

    PUBLIC = "public"
    """Anybody; the body is not signed."""
    PARTY = "party"
    """A party: the body is an envelope signed by a founder's key or by a key of a policy in force."""
    SERVICE = "service"
    """An attested service: the body is an envelope signed by the TLS key of a live lease."""


@dataclass(frozen=True, slots=True)
class Route:
    """One operation.

    Attributes:
        method: `GET` or `POST`.
        path: the exact path.
        role: who may call it.
        limit: largest body in bytes.
    """

    method: str
    path: str
    role: Role
    limit: int

    @property
    def name(self) -> str:
        """The path without the version, for example `policies/propose`."""
        return self.path.removeprefix("/v1/")

    @property
    def purpose(self) -> str:
        """The purpose that a signed body is signed for, so that no body serves two routes."""
        return f"secfl/{self.name}"


ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/identity", Role.PUBLIC, 0),
    Route("POST", "/v1/manager/evidence", Role.PUBLIC, _SMALL),
    Route("POST", "/v1/nonces", Role.PUBLIC, _SMALL),
    Route("POST", "/v1/attest", Role.PUBLIC, _EVIDENCE),
    Route("POST", "/v1/renew", Role.PUBLIC, _EVIDENCE),
    Route("POST", "/v1/policies/propose", Role.PARTY, _POLICY),
    Route("POST", "/v1/policies/vote", Role.PARTY, _SMALL),
    Route("POST", "/v1/policies/get", Role.PARTY, _SMALL),
    Route("POST", "/v1/volumes/deposit", Role.PARTY, _SMALL),
    Route("POST", "/v1/grants", Role.PARTY, _SMALL),
    Route("POST", "/v1/grants/revoke", Role.PARTY, _SMALL),
    Route("POST", "/v1/challenges", Role.PARTY, _SMALL),
    Route("POST", "/v1/challenges/poll", Role.PARTY, _SMALL),
    Route("POST", "/v1/studies/status", Role.PARTY, _SMALL),
    Route("POST", "/v1/releases", Role.PARTY, _SMALL),
    Route("POST", "/v1/log/export", Role.PARTY, _SMALL),
    Route("POST", "/v1/service/mailbox", Role.SERVICE, _SMALL),
    Route("POST", "/v1/service/answer", Role.SERVICE, _EVIDENCE),
    Route("POST", "/v1/service/roots", Role.SERVICE, _SMALL),
    Route("POST", "/v1/service/progress", Role.SERVICE, _SMALL),
    Route("POST", "/v1/service/release-key", Role.SERVICE, _SMALL),
    Route("POST", "/v1/service/released", Role.SERVICE, _SMALL),
    Route("POST", "/v1/service/exit", Role.SERVICE, _SMALL),
)

BY_PATH = {(entry.method, entry.path): entry for entry in ROUTES}
_BY_NAME = {entry.name: entry for entry in ROUTES}


def route(name: str) -> Route:
    """Look a route up by its name.

    Raises:
        EncodingError: `route.unknown`.
    """
    found = _BY_NAME.get(name)
    if found is None:
        raise EncodingError("route.unknown", "there is no such operation", route=name)
    return found
