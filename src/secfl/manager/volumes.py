"""Volumes: keys that owners deposit, the grants under which services read them, and what a service mounts.

A key leaves only for a service whose study has a live grant for exactly this content; there is no other way out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from secfl.crypto.aead import KEY_BYTES
from secfl.crypto.encoding import to_base64url
from secfl.crypto.transcript import digest256
from secfl.errors import AuthorizationError, EncodingError, FreshnessError, StateError
from secfl.manager.log import Event
from secfl.manager.state import State
from secfl.manager.step import Context, Step
from secfl.policy.grants import Grant, check_grant
from secfl.policy.model import Policy
from secfl.policy.references import check_import
from secfl.policy.storage import DepositedVolume, ImportedVolume, Mount
from secfl.policy.version import PolicyVersion
from secfl.protocol.party import Deposit, GrantReply, Revocation, deposit_context
from secfl.protocol.payload import MountedVolume
from secfl.protocol.public import Empty

__all__ = ["MountPlan", "deposit", "expected_roots", "grant", "grant_id", "plan_mounts", "revoke"]


@dataclass(frozen=True, slots=True)
class MountPlan:
    """What a service mounts.

    Attributes:
        volumes: with keys, for the sealed payload.
        grants: ids of the grants that this rests on.
    """

    volumes: tuple[MountedVolume, ...] = field(repr=False)
    grants: tuple[str, ...]


def grant_id(payload: bytes) -> str:
    """Name a grant by its signed bytes; several signatures over the same bytes are one grant."""
    return digest256("grant", payload).hex()


def deposit(context: Context, message: Deposit) -> Step:
    """Take a volume key from a member of the owner's board.

    Raises:
        StateError: `policy.not_in_force`, `policy.unknown_volume` or `deposit.not_deposited`.
        AuthorizationError: `deposit.not_owner` or `deposit.other_root`.
        VerificationError: `crypto.open_failed`.
        EncodingError: `deposit.key_size`.
    """
    version = context.state.version(message.policy)
    party = _owner(context, version.policy, "deposit.not_owner")
    volume = version.policy.volume(message.volume)
    if not isinstance(volume, DepositedVolume):
        raise StateError("deposit.not_deposited", "the policy takes no key for this volume", volume=message.volume)
    if volume.root.hex() != message.root:
        raise AuthorizationError(
            "deposit.other_root", "the policy lists another root", expected=volume.root.hex(), actual=message.root
        )
    identity = context.state.identity
    key = identity.sealing.open(
        message.sealed_key,
        purpose="volume-key",
        context=deposit_context(identity.deployment_id, message.policy, message.volume, message.root),
    )
    if len(key) != KEY_BYTES:
        raise EncodingError("deposit.key_size", "a volume key has the wrong size", expected=KEY_BYTES)
    public = {
        "envelope": to_base64url(context.envelope),
        "party": party,
        "policy": message.policy,
        "root": message.root,
        "volume": message.volume,
    }
    return Step(Empty(), Event("deposited", public, {"key": to_base64url(key)}))


def grant(context: Context, message: Grant) -> Step:
    """Take a signature under a grant; it takes effect when the owner's whole board has signed.

    Raises:
        StateError: `policy.not_in_force`, `policy.unknown_volume` or `grant.revoked`.
        AuthorizationError: `grant.not_owner` or `grant.other_root`.
        FreshnessError: `grant.expired`.
    """
    version = context.state.version(message.policy)
    party = _owner(context, version.policy, "grant.not_owner")
    volume = version.policy.volume(message.volume)
    if not isinstance(volume, DepositedVolume) or volume.root != message.root:
        raise AuthorizationError("grant.other_root", "the owner's policy lists no such content", volume=message.volume)
    if message.expires < context.now:
        raise FreshnessError("grant.expired", "the grant has expired", expires=message.expires)
    payload = message.encode()
    name = grant_id(payload)
    if name in context.state.revoked:
        raise StateError("grant.revoked", "this grant was revoked", hint="sign a new one")
    signer = context.caller
    public = {
        "document": to_base64url(payload),
        "envelope": to_base64url(context.envelope),
        "grant": name,
        "key": to_base64url(signer.spki if signer else b""),
        "party": party,
    }
    return Step(GrantReply(grant=name), Event("granted", public))


def revoke(context: Context, message: Revocation) -> Step:
    """End a grant; any member of the owner's board may.

    Raises:
        StateError: `grant.unknown` or `policy.not_in_force`.
        AuthorizationError: `grant.not_owner`.
    """
    granted = context.state.grants.get(message.grant)
    if granted is None:
        raise StateError("grant.unknown", "there is no such grant", grant=message.grant)
    owner = context.state.version(granted.grant.policy).policy
    party = _owner(context, owner, "grant.not_owner")
    public = {"envelope": to_base64url(context.envelope), "grant": message.grant, "party": party}
    return Step(Empty(), Event("revoked", public))


def expected_roots(state: State, study: PolicyVersion, service: str) -> dict[str, bytes]:
    """Give the root of each image that a service mounts, by volume: what its launch must state (FL-02).

    Raises:
        StateError: `policy.not_in_force`, `reference.policy_changed` or `reference.not_deposited`.
    """
    policy = study.policy
    roots: dict[str, bytes] = {}
    for mount in policy.image(policy.service(service).image_name).volumes:
        volume = policy.volume(mount.name)
        if isinstance(volume, ImportedVolume):
            roots[mount.name] = check_import(volume.imported, state.version(volume.imported.policy)).root
        elif isinstance(volume, DepositedVolume):
            roots[mount.name] = volume.root
    return roots


def plan_mounts(state: State, study: PolicyVersion, service: str, now: int) -> MountPlan:
    """Find what a service mounts under the policy in force, with a live grant for each imported volume.

    Raises:
        StateError: `volume.no_key`, `policy.not_in_force`, `reference.policy_changed` or `reference.not_deposited`.
        AuthorizationError: `grant.missing`.
    """
    policy = study.policy
    image = policy.image(policy.service(service).image_name)
    volumes: list[MountedVolume] = []
    grants: list[str] = []
    for mount in image.volumes:
        volume = policy.volume(mount.name)
        if isinstance(volume, ImportedVolume):
            owner = state.version(volume.imported.policy)
            listed = check_import(volume.imported, owner)
            grants.append(_live_grant(state, owner, study, listed, now))
            volumes.append(_image(state, mount, owner.policy.name, listed))
        elif isinstance(volume, DepositedVolume):
            volumes.append(_image(state, mount, policy.name, volume))
        else:
            head = state.study(policy.name).heads[mount.name]
            volumes.append(
                MountedVolume(
                    name=mount.name,
                    path=mount.path,
                    writable=True,
                    key=head.key,
                    root=head.tag,
                    sequence=head.sequence,
                    release=volume.release is not None,
                )
            )
    return MountPlan(tuple(volumes), tuple(grants))


def _image(state: State, mount: Mount, policy: str, volume: DepositedVolume) -> MountedVolume:
    deposited = state.deposits.get((policy, volume.name))
    if deposited is None or deposited.root != volume.root.hex():
        raise StateError(
            "volume.no_key",
            "the owner has deposited no key for this content",
            hint=f"the owner of {policy} deposits it",
            volume=volume.name,
        )
    return MountedVolume(
        name=mount.name,
        path=mount.path,
        writable=False,
        key=deposited.key,
        root=deposited.root,
        sequence=0,
        release=False,
    )


def _live_grant(state: State, owner: PolicyVersion, study: PolicyVersion, volume: DepositedVolume, now: int) -> str:
    for name, granted in state.grants.items():
        if name in state.revoked or (granted.grant.policy, granted.grant.volume) != (owner.policy.name, volume.name):
            continue
        try:
            check_grant(
                granted.grant,
                deployment_id=state.identity.deployment_id,
                signers=granted.signers.values(),
                owner=owner,
                study=study,
                now=now,
            )
        except (AuthorizationError, FreshnessError):
            continue  # another grant may do; without any the error below says so
        return name
    raise AuthorizationError(
        "grant.missing",
        "there is no live grant for this volume and this version of the study",
        hint=f"the owner of {owner.policy.name} grants it for policy {study.hash.hex()}",
        volume=volume.name,
    )


def _owner(context: Context, policy: Policy, code: str) -> str:
    for party in policy.board:
        if party.signing_key == context.caller:
            return party.name
    raise AuthorizationError(code, "the caller is not on the board of the owner's policy", policy=policy.name)
