"""The policy: one closed, typed, immutable value; what it means is in `docs/policy.md`.

Every key is known here or refused. What is absent allows nothing: a list that grants something must be written and
must not be empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from secfl.errors import StateError
from secfl.policy.fields import (
    Closed,
    Digest,
    Name,
    PolicyName,
    RecipientKey,
    VerificationKey,
    text_type,
    unique,
)
from secfl.policy.secret_kinds import Secret
from secfl.policy.services import Service
from secfl.policy.storage import Image, Volume

__all__ = [
    "AccessPolicy",
    "Decimal",
    "Federation",
    "Party",
    "Policy",
    "RequireAll",
    "policy_schema",
]


class Party(Closed):
    """A member and its two public keys."""

    name: Name
    signing_key: VerificationKey
    recipient_key: RecipientKey


class RequireAll(Closed):
    """Everybody listed must agree."""

    require_all: Annotated[
        tuple[Name, ...], Field(alias="require-all", min_length=1, max_length=64), AfterValidator(unique)
    ]


class AccessPolicy(Closed):
    """Who may change the policy."""

    update: RequireAll


class Decimal(Closed):
    """A number with a fraction, as text: binary floats have more than one spelling."""

    decimal: Annotated[
        str,
        AfterValidator(
            text_type(
                r"-?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,17}(?:e-?[1-9][0-9]?)?",
                "policy.decimal",
                'digits, a point and digits in quotes, such as "0.1" or "1.0e-5"',
            )
        ),
    ]


def _value_kind(value: Any) -> str | None:
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int):
        return "number"
    if isinstance(value, str):
        return "text"
    return "decimal number" if isinstance(value, Mapping | Decimal) else None


RunValue = Annotated[
    Annotated[bool, Tag("truth")]
    | Annotated[int, Tag("number")]
    | Annotated[str, Tag("text"), Field(max_length=4096)]
    | Annotated[Decimal, Tag("decimal number")],
    Discriminator(
        _value_kind,
        custom_error_type="policy.run_value",
        custom_error_message="{expected}",
        custom_error_context={
            "expected": 'text, a whole number, true, false or {decimal: "0.1"}',
            "remedy": "write one of these",
        },
    ),
]
RunKey = Annotated[
    str,
    AfterValidator(text_type("[A-Za-z_][A-Za-z0-9_.-]{0,63}", "policy.run_key", "a key of the app's configuration")),
]
EngineVersion = Annotated[
    str, AfterValidator(text_type(r"[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}", "policy.engine_version", '"1.41.0"'))
]


class Federation(Closed):
    """The federated training.

    Attributes:
        aggregator: the service that aggregates.
        trainers: the service of each site.
        rounds: how many.
        minimum_clients: replies without which a round does not count.
        app_bundle: SHA-256 of the engine's app bundle.
        run_config: the app's configuration.
    """

    engine: Literal["flower"]
    engine_version: EngineVersion
    aggregator: Name
    trainers: Annotated[Mapping[Name, Name], Field(min_length=1, max_length=256)]
    rounds: Annotated[int, Field(ge=1, le=1_000_000)]
    minimum_clients: Annotated[int, Field(ge=1, le=256)]
    app_bundle: Digest
    run_config: Annotated[Mapping[RunKey, RunValue], Field(max_length=256)] = {}


class Policy(Closed):
    """A whole policy.

    Attributes:
        secfl: version of the language.
        name: `thing`, or `party/thing` in that party's namespace.
        parties: the members.
        access_policy: the board.
    """

    secfl: Literal["1"]
    name: PolicyName
    parties: Annotated[tuple[Party, ...], Field(min_length=1, max_length=64)]
    access_policy: AccessPolicy
    services: Annotated[tuple[Service, ...], Field(max_length=256)] = ()
    images: Annotated[tuple[Image, ...], Field(max_length=256)] = ()
    volumes: Annotated[tuple[Volume, ...], Field(max_length=256)] = ()
    secrets: Annotated[tuple[Secret, ...], Field(max_length=256)] = ()
    federation: Federation | None = None

    @property
    def namespace(self) -> str | None:
        """The party whose namespace holds this policy."""
        party, slash, _ = self.name.partition("/")
        return party if slash else None

    @property
    def board(self) -> tuple[Party, ...]:
        """The parties that must agree to an update."""
        return tuple(self.party(name) for name in self.access_policy.update.require_all)

    def party(self, name: str) -> Party:
        """Find a party.

        Raises:
            StateError: `policy.unknown_party`.
        """
        for party in self.parties:
            if party.name == name:
                return party
        raise StateError("policy.unknown_party", "the policy has no such party", name=name)

    def service(self, name: str) -> Service:
        """Find a service.

        Raises:
            StateError: `policy.unknown_service`.
        """
        for service in self.services:
            if service.name == name:
                return service
        raise StateError("policy.unknown_service", "the policy has no such service", name=name)

    def image(self, name: str) -> Image:
        """Find an image.

        Raises:
            StateError: `policy.unknown_image`.
        """
        for image in self.images:
            if image.name == name:
                return image
        raise StateError("policy.unknown_image", "the policy has no such image", name=name)

    def volume(self, name: str) -> Volume:
        """Find a volume.

        Raises:
            StateError: `policy.unknown_volume`.
        """
        for volume in self.volumes:
            if volume.name == name:
                return volume
        raise StateError("policy.unknown_volume", "the policy has no such volume", name=name)

    def secret(self, name: str) -> Secret:
        """Find a secret's entry.

        Raises:
            StateError: `policy.unknown_secret`.
        """
        for secret in self.secrets:
            if secret.name == name:
                return secret
        raise StateError("policy.unknown_secret", "the policy has no such secret", name=name)


def policy_schema() -> dict[str, Any]:
    """Give the JSON schema of the language; the cross-reference rules are not part of it."""
    return Policy.model_json_schema(by_alias=True, mode="validation")
