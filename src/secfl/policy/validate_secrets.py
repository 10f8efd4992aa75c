"""The rules on secrets: keys and issuers exist and fit, and each placeholder names a secret in a legal form."""

from __future__ import annotations

from collections.abc import Iterator

from secfl.errors import EncodingError
from secfl.policy.findings import Path, RuleBreach, shown
from secfl.policy.model import Policy
from secfl.policy.placeholders import Context, Placeholder, check_format, parse_template
from secfl.policy.secret_kinds import AuthoritySecret, CertificateSecret, PrivateKeySecret, Secret
from secfl.policy.services import Egress, Service

__all__ = ["secret_breaches"]

_KEY_TYPES = {"x509-ca": ("P-256",), "x509": ("P-256", "Ed25519")}


def secret_breaches(policy: Policy) -> Iterator[RuleBreach]:
    """Give every breach of a rule on secrets and placeholders."""
    secrets = {secret.name: secret for secret in policy.secrets}
    for index, secret in enumerate(policy.secrets):
        if isinstance(secret, AuthoritySecret | CertificateSecret):
            yield from _certificate(("secrets", index), secret, secrets)
    for path, text, context in _templates(policy):
        yield from _template(path, text, context, secrets)
    for index, service in enumerate(policy.services):
        for number, egress in enumerate(service.network.egress):
            yield from _tls_pair(("services", index, "network", "egress", number), egress, secrets)


def _certificate(
    path: Path, secret: AuthoritySecret | CertificateSecret, secrets: dict[str, Secret]
) -> Iterator[RuleBreach]:
    key = secrets.get(secret.private_key)
    allowed = _KEY_TYPES[secret.kind]
    if not isinstance(key, PrivateKeySecret) or key.key_type not in allowed:
        yield RuleBreach(
            "policy.certificate_key",
            (*path, "private_key"),
            f"a secret of kind private-key and type {' or '.join(allowed)}",
            shown(secret.private_key),
            "declare such a secret",
        )
    if isinstance(secret, CertificateSecret):
        yield from _issuer(path, secret, secrets.get(secret.issuer))


def _issuer(path: Path, secret: CertificateSecret, issuer: Secret | None) -> Iterator[RuleBreach]:
    # Only a self-signed authority issues, so that chains have length two and cannot be circular.
    if not isinstance(issuer, AuthoritySecret):
        yield RuleBreach(
            "policy.certificate_issuer",
            (*path, "issuer"),
            "a secret of kind x509-ca",
            shown(secret.issuer),
            "declare it",
        )
    elif secret.valid_for > issuer.valid_for // 3:
        # An authority is renewed when a third of its time is left: no leaf of it may last longer than that.
        yield RuleBreach(
            "policy.certificate_outlives_issuer",
            (*path, "valid_for"),
            "at most a third of the time of its issuer",
            f"{secret.valid_for // 3600} of {issuer.valid_for // 3600} hours",
            "shorten it, or lengthen the issuer's valid_for",
        )


def _templates(policy: Policy) -> Iterator[tuple[Path, str, Context]]:
    for index, service in enumerate(policy.services):
        yield from _service_templates(("services", index), service)
    for index, image in enumerate(policy.images):
        for number, file in enumerate(image.injection_files):
            yield ("images", index, "injection_files", number, "content"), file.content, Context.FILE


def _service_templates(base: Path, service: Service) -> Iterator[tuple[Path, str, Context]]:
    for number, argument in enumerate(service.command):
        yield (*base, "command", number), argument, Context.ARGUMENT
    for name, value in service.environment.items():
        yield (*base, "environment", name), value, Context.ENVIRONMENT
    for number, ingress in enumerate(service.network.ingress):
        if ingress.tls_server_ca is not None:
            yield (
                (*base, "network", "ingress", number, "tls_server_ca"),
                ingress.tls_server_ca,
                Context.TLS_AUTHORITY,
            )
    for number, egress in enumerate(service.network.egress):
        path = (*base, "network", "egress", number)
        if egress.tls_certificate is not None:
            yield (*path, "tls_certificate"), egress.tls_certificate, Context.TLS_CERTIFICATE
        if egress.tls_key is not None:
            yield (*path, "tls_key"), egress.tls_key, Context.TLS_KEY


def _template(path: Path, text: str, context: Context, secrets: dict[str, Secret]) -> Iterator[RuleBreach]:
    try:
        parts = parse_template(text)
    except EncodingError as error:
        yield RuleBreach(error.code, path, "a whole placeholder", error.message, error.hint or "correct it")
        return
    if context in {Context.TLS_CERTIFICATE, Context.TLS_KEY, Context.TLS_AUTHORITY} and (
        len(parts) != 1 or not isinstance(parts[0], Placeholder)
    ):
        yield RuleBreach("policy.placeholder", path, "one placeholder and nothing else", shown(text), "name a secret")
        return
    for part in parts:
        if isinstance(part, str):
            continue
        if part.name not in secrets:
            yield RuleBreach(
                "policy.placeholder_unknown", path, "a name from `secrets`", shown(part.name), "declare it"
            )
            continue
        try:
            check_format(part, secrets[part.name].kind, context)
        except EncodingError as error:
            yield RuleBreach(
                error.code, path, error.message, shown(part.format or "no format"), error.hint or "correct it"
            )


def _tls_pair(path: Path, egress: Egress, secrets: dict[str, Secret]) -> Iterator[RuleBreach]:
    certificate = _named(egress.tls_certificate, secrets)
    key = _named(egress.tls_key, secrets)
    if (
        isinstance(certificate, CertificateSecret)
        and key is not None
        and key.name
        not in {
            certificate.name,
            certificate.private_key,
        }
    ):
        yield RuleBreach(
            "policy.tls_pair", (*path, "tls_key"), f"the key of {certificate.name}", shown(key.name), "name its key"
        )


def _named(text: str | None, secrets: dict[str, Secret]) -> Secret | None:
    try:
        parts = parse_template(text or "")
    except EncodingError:  # reported by its own rule
        return None
    return secrets.get(parts[0].name) if len(parts) == 1 and isinstance(parts[0], Placeholder) else None
