"""Service operations: what an attested service does during its lease.

Every call was signed by the attested TLS key and has a fresh sequence number; here it is decided against the service's
own lease only, so a service never touches what another one mounts.
"""

from __future__ import annotations

from secfl.attestation.statement import LaunchClaims, decode_statement
from secfl.crypto.aead import KEY_BYTES
from secfl.crypto.encoding import to_base64url
from secfl.crypto.hpke import seal_to
from secfl.errors import AuthorizationError, FreshnessError, StateError
from secfl.manager.log import Event
from secfl.manager.records import Lease, Study
from secfl.manager.step import Context, Step
from secfl.policy.model import Policy
from secfl.policy.storage import WritableVolume
from secfl.protocol.public import Empty
from secfl.protocol.service import (
    Answer,
    Exit,
    MailboxAsk,
    MailboxReply,
    Peer,
    PendingChallenge,
    Progress,
    Released,
    ReleaseKeyAsk,
    ReleaseKeyReply,
    RootUpdate,
    release_key_context,
)

__all__ = [
    "answer",
    "exit_service",
    "mailbox",
    "mounted",
    "progress",
    "release_key",
    "released",
    "roots",
    "roster",
]

_MAX_METRICS = 256
_PHASES = frozenset({"train", "evaluate"})


def roster(study: Study, now: int) -> tuple[Peer, ...]:
    """The live services of a study."""
    return tuple(
        Peer(
            site=lease.site,
            service=lease.service,
            tls_key_id=lease.tls_key.key_id,
            node_key=lease.node_key or None,
            lease_until=lease.until,
        )
        for _, lease in sorted(study.leases.items())
        if lease.until >= now
    )


def mailbox(context: Context, message: MailboxAsk) -> Step:
    """Give waiting challenges and the roster.

    Raises:
        StateError: `lease.lapsed`.
    """
    del message  # how long to wait is the edge's business
    lease = context.live_lease
    study = context.state.study(lease.study)
    waiting = tuple(
        PendingChallenge(challenge_id=challenge.challenge_id, nonce=challenge.nonce)
        for challenge in context.state.challenges.values()
        if challenge.lease_id == lease.lease_id and challenge.answer is None and challenge.expires >= context.now
    )
    return Step(
        MailboxReply(
            version=study.version,
            challenges=waiting,
            roster=roster(study, context.now),
            policy_hash=context.state.version(lease.study).hash.hex(),
        )
    )


def answer(context: Context, message: Answer) -> Step:
    """Take the evidence for one challenge; whether it is any good is for the challenger to say.

    Raises:
        StateError: `lease.lapsed`, `challenge.unknown` or `challenge.answered`.
        EncodingError: the statement is malformed.
    """
    lease = context.live_lease
    challenge = context.state.challenges.get(message.challenge_id)
    if challenge is None or challenge.lease_id != lease.lease_id or challenge.expires < context.now:
        raise StateError("challenge.unknown", "there is no such open challenge for this service")
    if challenge.answer is not None:
        raise StateError("challenge.answered", "the challenge was answered before")
    if not isinstance(decode_statement(message.launch_claims), LaunchClaims):
        raise StateError("challenge.unknown", "not the statement of a shield")
    public = {
        "answer": {
            "evidence": message.evidence,
            "launch_claims": to_base64url(message.launch_claims),
            "policy_hash": lease.policy_hash,
            "sealing_key": to_base64url(lease.sealing_key),
            "site": lease.site,
            "tls_key": to_base64url(lease.tls_key.spki),
        },
        "challenge_id": message.challenge_id,
        **_names(lease),
    }
    return Step(Empty(), Event("answered", public))


def roots(context: Context, message: RootUpdate) -> Step:
    """Move the head of a writable volume; the same update again is acknowledged again, since its answer may be lost.

    Raises:
        StateError: `lease.lapsed`.
        AuthorizationError: `volume.not_mounted`.
        FreshnessError: `volume.stale_head`: the volume has moved on; whoever wrote this holds an old copy.
    """
    lease = context.live_lease
    _mounted_writable(context, lease, message.volume)
    head = context.state.study(lease.study).heads[message.volume]
    if (message.sequence, message.tag) == (head.sequence, head.tag):
        return Step(Empty())
    if message.previous != head.tag or message.sequence != head.sequence + 1:
        raise FreshnessError(
            "volume.stale_head",
            "the update does not follow the volume's head",
            expected=head.sequence + 1,
            actual=message.sequence,
        )
    public = {"number": message.sequence, "previous": message.previous, "tag": message.tag, "volume": message.volume}
    return Step(Empty(), Event("rooted", {**public, **_names(lease)}))


def progress(context: Context, message: Progress) -> Step:
    """Note the metrics of a round.

    Raises:
        StateError: `lease.lapsed` or `progress.malformed`.
    """
    lease = context.live_lease
    if message.phase not in _PHASES or message.round < 0 or len(message.metrics) > _MAX_METRICS:
        raise StateError("progress.malformed", "not the record of a round")
    for value in message.metrics.values():
        try:
            float.fromhex(value)
        except (ValueError, OverflowError):
            raise StateError("progress.malformed", "a metric is not a hexadecimal float") from None
    record = {
        "metrics": message.metrics,
        "phase": message.phase,
        "replies": list(message.replies),
        "round": message.round,
    }
    return Step(Empty(), Event("progressed", {"progress": record, **_names(lease)}))


def release_key(context: Context, message: ReleaseKeyAsk) -> Step:
    """Make a fresh key for the release of a volume; the working key never leaves (FL-22).

    Raises:
        StateError: `lease.lapsed`.
        AuthorizationError: `volume.not_mounted` or `release.not_in_policy`.
    """
    lease = context.live_lease
    volume = _mounted_writable(context, lease, message.volume)
    if volume.release is None:
        raise AuthorizationError("release.not_in_policy", "the policy releases no such volume", volume=message.volume)
    key = context.random(KEY_BYTES)
    sealed = seal_to(
        lease.sealing_key,
        key,
        purpose="release-key",
        context=release_key_context(context.state.identity.deployment_id, lease.lease_id, message.volume),
    )
    event = Event("release-key", {"volume": message.volume, **_names(lease)}, {"key": to_base64url(key)})
    return Step(ReleaseKeyReply(sealed_key=sealed), event)


def released(context: Context, message: Released) -> Step:
    """Note the root of a packed release volume.

    Raises:
        StateError: `lease.lapsed` or `release.no_key`.
        AuthorizationError: `volume.not_mounted`.
    """
    lease = context.live_lease
    _mounted_writable(context, lease, message.volume)
    release = context.state.study(lease.study).releases.get(message.volume)
    if release is None or release.lease_id != lease.lease_id or release.root not in (None, message.root):
        raise StateError("release.no_key", "this service asked for no release key, or reported another root before")
    if release.root == message.root:
        return Step(Empty())
    return Step(Empty(), Event("packed", {"root": message.root, "volume": message.volume, **_names(lease)}))


def exit_service(context: Context, message: Exit) -> Step:
    """End the lease with the program's status.

    Raises:
        StateError: `lease.lapsed`.
    """
    lease = context.live_lease
    return Step(Empty(), Event("exited", {"status": message.status, **_names(lease)}))


def mounted(policy: Policy, service: str) -> frozenset[str]:
    """Names of the volumes that a service mounts."""
    image = policy.image(policy.service(service).image_name)
    return frozenset(mount.name for mount in image.volumes)


def _mounted_writable(context: Context, lease: Lease, name: str) -> WritableVolume:
    policy = context.state.version(lease.study).policy
    volume = policy.volume(name) if name in mounted(policy, lease.service) else None
    if not isinstance(volume, WritableVolume):
        raise AuthorizationError("volume.not_mounted", "this service mounts no such writable volume", volume=name)
    return volume


def _names(lease: Lease) -> dict[str, str]:
    return {"lease_id": lease.lease_id, "service": lease.service, "study": lease.study}
