"""Grants: an owner's signed consent that one study version may read one volume until a stated time.

A grant names the study by the hash of its bytes, so a changed study needs a new consent. It is separate from both
policies: the owner can end it without touching either.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from secfl.crypto import strict_json
from secfl.crypto.signing import PublicKey
from secfl.errors import AuthorizationError, EncodingError, FreshnessError
from secfl.policy.fields import Closed, Digest, Name, PolicyName, text_type
from secfl.policy.storage import DepositedVolume
from secfl.policy.version import PolicyVersion

__all__ = ["Grant", "check_grant"]

_MAX_BYTES = 16 * 1024
_MAX_TIME = 2**40

DeploymentId = Annotated[
    str, AfterValidator(text_type("[0-9a-f]{32}", "grant.malformed", "a deployment id: 32 hex digits"))
]


class Grant(Closed):
    """The signed payload.

    Attributes:
        deployment_id: the manager it is for.
        policy: the owner's policy.
        volume: the volume's name there.
        root: root of the image that may be read; a repacked volume needs a new grant.
        rights: what is granted.
        study: name of the study's policy.
        study_policy_hash: the one version that may read.
        expires: last second at which it holds, Unix time.
    """

    deployment_id: DeploymentId
    policy: PolicyName
    volume: Name
    root: Digest
    rights: tuple[Literal["read"]]
    study: PolicyName
    study_policy_hash: Digest
    expires: Annotated[int, Field(ge=0, lt=_MAX_TIME)]

    def encode(self) -> bytes:
        """Give the one spelling, to be signed."""
        fields = self.model_dump()
        return strict_json.encode(
            {**fields, "root": self.root.hex(), "study_policy_hash": self.study_policy_hash.hex()}
        )

    @classmethod
    def decode(cls, payload: bytes) -> Grant:
        """Read a signed payload.

        Raises:
            EncodingError: `grant.malformed` and the `json.*` codes.
        """
        document = strict_json.decode(payload, max_bytes=_MAX_BYTES)
        if isinstance(document, dict) and isinstance(document.get("rights"), list):
            document["rights"] = tuple(document["rights"])
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise EncodingError("grant.malformed", "not a grant", field=where[:80]) from None


def check_grant(
    grant: Grant,
    *,
    signers: Collection[PublicKey],
    deployment_id: str,
    owner: PolicyVersion,
    study: PolicyVersion,
    now: int,
) -> DepositedVolume:
    """Return the volume that a study may read.

    Args:
        signers: the keys whose signature over this payload was verified.
        owner: the owner's policy in force.
        study: the study's policy in force.

    Raises:
        AuthorizationError: `grant.other_deployment`, `grant.other_policy`, `grant.other_study`, `grant.other_root` or
            `grant.not_signed`.
        FreshnessError: `grant.expired`.
        StateError: `policy.unknown_volume`.
    """
    # 1. It is about this deployment and these two policies: a grant moved to another study or version is worth nothing.
    if grant.deployment_id != deployment_id:
        raise AuthorizationError("grant.other_deployment", "the grant is for another deployment")
    if grant.policy != owner.policy.name:
        raise AuthorizationError("grant.other_policy", "the grant is for another policy", name=grant.policy)
    if grant.study != study.policy.name or grant.study_policy_hash != study.hash:
        raise AuthorizationError(
            "grant.other_study",
            "the grant is for another study or another version of it",
            hint="ask the owner for a grant for this version",
            expected=grant.study_policy_hash.hex(),
            actual=study.hash.hex(),
        )
    # 2. It is about the content that the owner's policy lists now.
    volume = owner.policy.volume(grant.volume)
    if not isinstance(volume, DepositedVolume) or volume.root != grant.root:
        raise AuthorizationError(
            "grant.other_root", "the grant is for another content of the volume", name=grant.volume
        )
    # 3. All who decide over the owner's policy signed it: one of them alone cannot give away what all must agree to.
    for party in owner.policy.board:
        if party.signing_key not in signers:
            raise AuthorizationError(
                "grant.not_signed", "a party of the owner's board has not signed", party=party.name
            )
    # 4. It is in force.
    if now > grant.expires:
        raise FreshnessError("grant.expired", "the grant has expired", hint="ask for a new one", expires=grant.expires)
    return volume
