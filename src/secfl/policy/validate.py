"""The rules between the parts of a policy: what is named exists, what must differ differs, what excludes is apart.

Each rule gives all of its breaches, so that one run shows everything. The rules on network and placeholders are in
`validate_network` and `validate_secrets`, those on files in `validate_storage`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from secfl.policy.findings import Path, RuleBreach, shown
from secfl.policy.model import Policy
from secfl.policy.services import Attestation
from secfl.policy.validate_network import network_breaches
from secfl.policy.validate_secrets import secret_breaches
from secfl.policy.validate_storage import storage_breaches

__all__ = ["breaches"]

_MEASUREMENT_BYTES = {"tdx": 48, "sgx": 32}


class _Named(Protocol):
    @property
    def name(self) -> str: ...


def breaches(policy: Policy) -> list[RuleBreach]:
    """List every breach."""
    return [
        *_names(policy),
        *_parties(policy),
        *_services(policy),
        *network_breaches(policy),
        *storage_breaches(policy),
        *secret_breaches(policy),
        *_federation(policy),
    ]


def _names(policy: Policy) -> Iterator[RuleBreach]:
    groups: dict[str, Sequence[_Named]] = {
        "parties": policy.parties,
        "services": policy.services,
        "images": policy.images,
        "volumes": policy.volumes,
        "secrets": policy.secrets,
    }
    for group, items in groups.items():
        yield from _distinct(((group, index, "name"), item.name) for index, item in enumerate(items))


def _distinct(entries: Iterable[tuple[Path, object]], rule: str = "policy.duplicate_name") -> Iterator[RuleBreach]:
    seen: list[object] = []
    for path, value in entries:
        if value in seen:
            yield RuleBreach(rule, path, "a value of its own", f"{shown(value)} a second time", "change one of them")
        seen.append(value)


def _parties(policy: Policy) -> Iterator[RuleBreach]:
    # One person under two names would have two votes (PB-02); keys compare by value, whatever their encoding was.
    yield from _distinct(
        ((("parties", i, "signing_key"), party.signing_key.key_id) for i, party in enumerate(policy.parties)),
        "policy.duplicate_key_material",
    )
    yield from _distinct(
        ((("parties", i, "recipient_key"), party.recipient_key) for i, party in enumerate(policy.parties)),
        "policy.duplicate_key_material",
    )
    names = {party.name for party in policy.parties}
    board = policy.access_policy.update.require_all
    for index, name in enumerate(board):
        if name not in names:
            path = ("access_policy", "update", "require-all", index)
            yield RuleBreach("policy.unknown_party", path, "a name from `parties`", shown(name), "add the party")
    if policy.namespace is not None and policy.namespace not in board:
        yield RuleBreach(
            "policy.namespace",
            ("name",),
            "the namespace of a party of the board",
            shown(policy.namespace),
            "put the party on the board or choose another name",
        )
    if policy.name in names:
        yield RuleBreach(
            "policy.name_is_party", ("name",), "a name that no party has", shown(policy.name), "choose another name"
        )


def _services(policy: Policy) -> Iterator[RuleBreach]:
    images = {image.name for image in policy.images}
    for index, service in enumerate(policy.services):
        if service.image_name not in images:
            path: Path = ("services", index, "image_name")
            yield RuleBreach("policy.unknown_image", path, "a name from `images`", shown(service.image_name), "add it")
        if not service.command[0].startswith("/"):
            path = ("services", index, "command", 0)
            yield RuleBreach(
                "policy.command", path, "an absolute path", shown(service.command[0]), "name the program by its path"
            )
        for number, variant in enumerate(service.attestation):
            yield from _attestation(("services", index, "attestation", number), variant)


def _attestation(path: Path, variant: Attestation) -> Iterator[RuleBreach]:
    size = _MEASUREMENT_BYTES[variant.tee]
    for index, measurement in enumerate(variant.measurement):
        if len(measurement) != size:
            yield RuleBreach(
                "policy.measurement",
                (*path, "measurement", index),
                f"{2 * size} hex digits for {variant.tee}",
                f"{2 * len(measurement)}",
                "correct the measurement or `tee`",
            )
    if "UpToDate" not in variant.tcb_status:
        yield RuleBreach(
            "policy.tcb_status",
            (*path, "tcb_status"),
            "a list with UpToDate",
            "none",
            "add it: repaired is never worse",
        )
    tolerates = len(variant.tcb_status) > 1 or bool(variant.advisories)
    if tolerates and variant.tolerated_until is None:
        yield RuleBreach(
            "policy.tolerance_without_end", path, "the key tolerated_until", "nothing", "say when the tolerance ends"
        )
    if not tolerates and variant.tolerated_until is not None:
        yield RuleBreach(
            "policy.tolerance_of_nothing",
            (*path, "tolerated_until"),
            "a tolerated status or advisory",
            "none",
            "remove tolerated_until",
        )


def _federation(policy: Policy) -> Iterator[RuleBreach]:
    federation = policy.federation
    if federation is None:
        return
    services = {service.name for service in policy.services}
    named: list[tuple[Path, str]] = [(("federation", "aggregator"), federation.aggregator)]
    named += [(("federation", "trainers", site), service) for site, service in federation.trainers.items()]
    for path, service in named:
        if service not in services:
            yield RuleBreach(
                "policy.unknown_service", path, "a name from `services`", shown(service), "add the service"
            )
    yield from _distinct(named, "policy.duplicate_role")
    if federation.minimum_clients > len(federation.trainers):
        yield RuleBreach(
            "policy.minimum_clients",
            ("federation", "minimum_clients"),
            f"at most the number of trainers, {len(federation.trainers)}",
            str(federation.minimum_clients),
            "lower it or add trainers",
        )
