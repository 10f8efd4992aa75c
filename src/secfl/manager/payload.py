"""The content of a service's sealed payload: its part of the policy, with secrets, files and volume keys put in."""

from __future__ import annotations

from dataclasses import dataclass, field

from secfl.crypto.encoding import to_base64url
from secfl.manager.services import roster
from secfl.manager.step import Context
from secfl.manager.volumes import MountPlan
from secfl.policy.model import Decimal, Federation
from secfl.policy.resolve import ResolvedEgress, ResolvedIngress, resolve_service
from secfl.policy.secret_values import SecretValues, generate
from secfl.policy.services import Linger as PolicyLinger
from secfl.policy.version import PolicyVersion
from secfl.protocol.message import JsonObject
from secfl.protocol.payload import Egress, Hold, Ingress, InjectedFile, Linger, ServicePayload

__all__ = ["Content", "service_payload"]


@dataclass(frozen=True, slots=True)
class Content:
    """A payload and what goes with it.

    Attributes:
        payload: for the attested service only.
        released: names of the secrets in it.
        secret: sealed part of the event: secrets that were made anew because their certificates ran out.
    """

    payload: ServicePayload = field(repr=False)
    released: frozenset[str]
    secret: JsonObject = field(repr=False)


def service_payload(context: Context, version: PolicyVersion, service: str, site: str, plan: MountPlan) -> Content:
    """Put a service's payload together.

    Raises:
        StateError: the policy's parts do not fit, see `resolve_service`.
        EncodingError: a secret cannot be put where the policy wants it.
    """
    policy = version.policy
    study = context.state.study(policy.name)
    secrets, secret = _current_secrets(context, version, study.secrets)
    resolved = resolve_service(policy, service, secrets)
    files = tuple(
        InjectedFile(path=file.path, content=file.content, permission=f"{file.mode:04o}") for file in resolved.files
    )
    lingers = {one.name: one.linger for one in policy.service(service).network.ingress}
    payload = ServicePayload(
        study=policy.name,
        policy_hash=version.hash.hex(),
        service=service,
        site=site,
        command=resolved.command,
        environment=dict(resolved.environment),
        pwd=resolved.pwd,
        files=files,
        volumes=plan.volumes,
        ingress=tuple(_ingress(one, lingers[one.name]) for one in resolved.ingress),
        egress=tuple(_egress(one) for one in resolved.egress),
        console="pass" if resolved.console == "pass" else "suppress",
        ca_certificate=study.authority.certificate,
        federation=None if policy.federation is None else _federation(policy.federation),
        roster=roster(study, context.now),
        lease_seconds=context.settings.lease,
    )
    return Content(payload, resolved.released, secret)


def _current_secrets(
    context: Context, version: PolicyVersion, secrets: SecretValues
) -> tuple[SecretValues, JsonObject]:
    due = [value for value in secrets.values.values() if value.renew_at is not None and value.renew_at <= context.now]
    if not due:
        return secrets, {}
    renewed = generate(version.policy, secrets, random=context.random, now=context.now)
    return renewed, {"secrets": to_base64url(renewed.encode())}


def _ingress(resolved: ResolvedIngress, lingers: tuple[PolicyLinger, ...]) -> Ingress:
    return Ingress(
        name=resolved.name,
        port=resolved.port,
        to=resolved.to,
        peers=resolved.peers,
        allow=resolved.allow,
        node_key_header=resolved.node_key_header,
        hold=tuple(Hold(path=hold.path, seconds=hold.seconds) for hold in resolved.hold),
        linger=tuple(Linger(path=linger.path, milliseconds=linger.milliseconds) for linger in lingers),
        tls_server_ca=resolved.tls_server_ca,
    )


def _egress(resolved: ResolvedEgress) -> Egress:
    return Egress(
        name=resolved.name,
        listen=resolved.listen,
        service=resolved.service,
        ingress=resolved.ingress,
        tls_certificate=resolved.tls_certificate,
        tls_key=resolved.tls_key,
    )


def _federation(federation: Federation) -> JsonObject:
    return {
        "aggregator": federation.aggregator,
        "app_bundle": federation.app_bundle.hex(),
        "engine": federation.engine,
        "engine_version": federation.engine_version,
        "minimum_clients": federation.minimum_clients,
        "rounds": federation.rounds,
        "run_config": {
            key: {"decimal": value.decimal} if isinstance(value, Decimal) else value
            for key, value in federation.run_config.items()
        },
        "trainers": dict(federation.trainers),
    }
