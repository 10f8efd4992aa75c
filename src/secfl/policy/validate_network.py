"""The rules on connections: both ends exist, name each other, and no two share an address."""

from __future__ import annotations

from collections.abc import Iterator

from secfl.policy.findings import Path, RuleBreach, shown
from secfl.policy.model import Policy
from secfl.policy.services import Egress, Ingress, Service

__all__ = ["network_breaches"]


def network_breaches(policy: Policy) -> Iterator[RuleBreach]:
    """Give every breach of a network rule."""
    services = {service.name: service for service in policy.services}
    for index, service in enumerate(policy.services):
        base: Path = ("services", index, "network")
        yield from _unique(base, service)
        for number, ingress in enumerate(service.network.ingress):
            yield from _ingress((*base, "ingress", number), service, ingress, services)
        for number, egress in enumerate(service.network.egress):
            yield from _egress((*base, "egress", number), service, egress, services)


def _unique(base: Path, service: Service) -> Iterator[RuleBreach]:
    network = service.network
    values: list[tuple[str, Path, object]] = []
    for number, ingress in enumerate(network.ingress):
        path: Path = (*base, "ingress", number)
        values += [("name", (*path, "name"), ingress.name), ("port", (*path, "port"), ingress.port)]
    for number, egress in enumerate(network.egress):
        path = (*base, "egress", number)
        values += [("name", (*path, "name"), egress.name), ("listen", (*path, "listen"), egress.listen)]
    # A listener on the address where the program listens would take its place.
    values += [("listen", (*base, "ingress", n, "to"), i.to) for n, i in enumerate(network.ingress)]
    seen: set[tuple[str, object]] = set()
    targets: set[object] = set()
    for what, path, value in values:
        is_target = path[-1] == "to"
        if (what, value) in seen and not (is_target and value in targets):
            yield RuleBreach(
                "policy.network_clash", path, "a value used once in this service", shown(value), "choose another"
            )
        seen.add((what, value))
        if is_target:
            targets.add(value)


def _ingress(path: Path, service: Service, ingress: Ingress, services: dict[str, Service]) -> Iterator[RuleBreach]:
    for index, peer in enumerate(ingress.peers):
        if peer not in services:
            yield RuleBreach(
                "policy.unknown_service",
                (*path, "peers", index),
                "a name from `services`",
                shown(peer),
                "add the service",
            )
        elif peer == service.name:
            yield RuleBreach(
                "policy.own_peer", (*path, "peers", index), "another service", "the service itself", "remove it"
            )
    held = [hold.path for hold in ingress.hold]
    for index, url_path in enumerate(held):
        if url_path in held[:index]:
            yield RuleBreach(
                "policy.repeated", (*path, "hold", index, "path"), "each path once", shown(url_path), "keep one"
            )
        elif not any(_covers(rule, url_path) for rule in ingress.allow):
            yield RuleBreach(
                "policy.hold_not_allowed",
                (*path, "hold", index, "path"),
                "a path of `allow`",
                shown(url_path),
                "allow it",
            )


def _covers(rule: str, url_path: str) -> bool:
    pattern = rule.partition(" ")[2]
    return url_path.startswith(pattern[:-1]) if pattern.endswith("*") else url_path == pattern


def _egress(path: Path, service: Service, egress: Egress, services: dict[str, Service]) -> Iterator[RuleBreach]:
    peer = services.get(egress.service)
    if peer is None:
        yield RuleBreach(
            "policy.unknown_service",
            (*path, "service"),
            "a name from `services`",
            shown(egress.service),
            "add the service",
        )
    else:
        ingress = next((entry for entry in peer.network.ingress if entry.name == egress.ingress), None)
        if ingress is None:
            yield RuleBreach(
                "policy.unknown_ingress",
                (*path, "ingress"),
                f"the name of an ingress of {peer.name}",
                shown(egress.ingress),
                "correct the name",
            )
        elif service.name not in ingress.peers:
            yield RuleBreach(
                "policy.not_a_peer",
                (*path, "ingress"),
                f"an ingress whose peers include {service.name}",
                shown(egress.ingress),
                "add the service to its peers",
            )
    if (egress.tls_certificate is None) != (egress.tls_key is None):
        yield RuleBreach(
            "policy.tls_pair", path, "tls_certificate and tls_key, or neither", "one of them", "add the other one"
        )
