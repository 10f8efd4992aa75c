"""Resolving a service: its own part of the policy with the secrets put in, and nothing of any other service (SE-01).

Pure: the caller adds volume keys and sends the result only to the attested service. Secret parts are left out of
`repr`, so that no log line or trace can show them (SE-07).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from secfl.policy.model import Policy
from secfl.policy.placeholders import Context, Placeholder, parse_template, substitute
from secfl.policy.secret_formats import format_secret
from secfl.policy.secret_values import SecretValues
from secfl.policy.services import Egress, Hold, Ingress
from secfl.policy.storage import WritableVolume

__all__ = [
    "ResolvedEgress",
    "ResolvedFile",
    "ResolvedIngress",
    "ResolvedMount",
    "ResolvedService",
    "resolve_service",
]


@dataclass(frozen=True, slots=True)
class ResolvedFile:
    """A file to be made in memory; `mode` is the number that the octal text names."""

    path: str
    content: bytes = field(repr=False)
    mode: int


@dataclass(frozen=True, slots=True)
class ResolvedMount:
    """A volume of the policy and where it goes."""

    volume: str
    path: str
    writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedIngress:
    """An ingress; `tls_server_ca` is PEM."""

    name: str
    port: int
    to: str
    peers: tuple[str, ...]
    allow: tuple[str, ...]
    node_key_header: str | None
    hold: tuple[Hold, ...]
    tls_server_ca: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedEgress:
    """An egress; certificate and key are PEM."""

    name: str
    listen: str
    service: str
    ingress: str
    tls_certificate: str | None
    tls_key: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedService:
    """All that a service needs but the keys of its volumes.

    Attributes:
        released: names of the secrets whose values stand in it, for the log of releases.
    """

    name: str
    command: tuple[str, ...] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    pwd: str
    files: tuple[ResolvedFile, ...]
    mounts: tuple[ResolvedMount, ...]
    ingress: tuple[ResolvedIngress, ...]
    egress: tuple[ResolvedEgress, ...]
    console: str
    released: frozenset[str]


def resolve_service(policy: Policy, service: str, secrets: SecretValues) -> ResolvedService:
    """Put the secrets into one service's part of the policy.

    Raises:
        StateError: `policy.unknown_service`, `policy.unknown_image`, `secret.no_value` or `secret.kind_changed`.
        EncodingError: the codes of `substitute`.
    """
    entry = policy.service(service)
    image = policy.image(entry.image_name)
    writer = _Writer(policy, secrets)
    files = tuple(
        ResolvedFile(file.path, writer.fill(file.content, Context.FILE), int(file.permission, 8))
        for file in image.injection_files
    )
    mounts = tuple(
        ResolvedMount(mount.name, mount.path, isinstance(policy.volume(mount.name), WritableVolume))
        for mount in image.volumes
    )
    return ResolvedService(
        name=entry.name,
        command=tuple(writer.text(argument, Context.ARGUMENT) for argument in entry.command),
        environment={name: writer.text(value, Context.ENVIRONMENT) for name, value in entry.environment.items()},
        pwd=entry.pwd,
        files=files,
        mounts=mounts,
        ingress=tuple(writer.ingress(ingress) for ingress in entry.network.ingress),
        egress=tuple(writer.egress(egress) for egress in entry.network.egress),
        console=entry.console,
        released=frozenset(writer.released),
    )


class _Writer:
    """Fills templates and remembers which secrets went out."""

    def __init__(self, policy: Policy, secrets: SecretValues) -> None:
        self._policy = policy
        self._secrets = secrets
        self._kinds = {secret.name: secret.kind for secret in policy.secrets}
        self.released: set[str] = set()

    def fill(self, text: str, context: Context) -> bytes:
        self.released.update(part.name for part in parse_template(text) if isinstance(part, Placeholder))
        return substitute(text, context, kinds=self._kinds, lookup=self._lookup)

    def text(self, text: str, context: Context) -> str:
        return self.fill(text, context).decode()

    def ingress(self, ingress: Ingress) -> ResolvedIngress:
        return ResolvedIngress(
            name=ingress.name,
            port=ingress.port,
            to=ingress.to,
            peers=ingress.peers,
            allow=ingress.allow,
            node_key_header=ingress.node_key_header,
            hold=ingress.hold,
            tls_server_ca=self._optional(ingress.tls_server_ca, Context.TLS_AUTHORITY),
        )

    def egress(self, egress: Egress) -> ResolvedEgress:
        return ResolvedEgress(
            name=egress.name,
            listen=egress.listen,
            service=egress.service,
            ingress=egress.ingress,
            tls_certificate=self._optional(egress.tls_certificate, Context.TLS_CERTIFICATE),
            tls_key=self._optional(egress.tls_key, Context.TLS_KEY),
        )

    def _optional(self, text: str | None, context: Context) -> str | None:
        return None if text is None else self.text(text, context)

    def _lookup(self, name: str, chosen: str) -> bytes:
        return format_secret(self._policy, self._secrets, name, chosen)
