"""Party questions: challenges to running services, the state of a study, and the release of a model.

A key leaves here in one case only: to the party that the policy names, sealed to that party's recipient key, after the
policy's condition holds (FL-22).
"""

from __future__ import annotations

from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.crypto.hpke import seal_to
from secfl.errors import AuthorizationError, StateError
from secfl.manager.log import Event
from secfl.manager.records import Study
from secfl.manager.rounds import require_rounds
from secfl.manager.services import roster
from secfl.manager.step import Context, Step, member
from secfl.policy.storage import WritableVolume
from secfl.protocol.message import JsonObject
from secfl.protocol.party import (
    ChallengeAsk,
    ChallengePoll,
    ChallengeReply,
    ChallengeState,
    LogExport,
    ReleaseAsk,
    ReleaseReply,
    StatusAsk,
    StatusReply,
    release_context,
)
from secfl.protocol.public import Empty

__all__ = ["challenge", "challenge_state", "export", "release", "status"]

_ID_BYTES = 16


def challenge(context: Context, message: ChallengeAsk) -> Step:
    """Put a party's challenge into a running service's mailbox.

    Raises:
        StateError: `policy.not_in_force` or `service.not_running`.
        AuthorizationError: `policy.not_a_party`.
    """
    party = member(context, context.state.version(message.study).policy)
    lease = context.state.study(message.study).leases.get(message.service)
    if lease is None or lease.until < context.now:
        raise StateError("service.not_running", "the service has no live lease", service=message.service)
    challenge_id = context.random(_ID_BYTES).hex()
    public = {
        "challenge": to_base64url(message.challenge),
        "challenge_id": challenge_id,
        "expires": context.now + context.settings.answer,
        "lease_id": lease.lease_id,
        "party": party.name,
        "service": message.service,
        "study": message.study,
    }
    return Step(ChallengeReply(challenge_id=challenge_id), Event("challenged", public))


def challenge_state(context: Context, message: ChallengePoll) -> Step:
    """Give the answer to a challenge, to a party of the study.

    Raises:
        StateError: `challenge.unknown`.
        AuthorizationError: `policy.not_a_party`.
    """
    asked = context.state.challenges.get(message.challenge_id)
    if asked is None or (asked.answer is None and asked.expires < context.now):
        raise StateError("challenge.unknown", "there is no such challenge, or it was not answered in time")
    member(context, context.state.version(asked.study).policy)
    if asked.answer is None:
        return Step(ChallengeState(answered=False))
    return Step(
        ChallengeState(
            answered=True,
            evidence=asked.answer["evidence"],
            site=asked.answer["site"],
            policy_hash=asked.answer["policy_hash"],
            tls_key=from_base64url(asked.answer["tls_key"]),
            sealing_key=from_base64url(asked.answer["sealing_key"]),
            launch_claims=from_base64url(asked.answer["launch_claims"]),
        )
    )


def release(context: Context, message: ReleaseAsk) -> Step:
    """Give the key of a released volume to the party that the policy names, and to nobody else.

    Raises:
        StateError: `policy.not_in_force`, `policy.unknown_volume`, `release.not_ready`, `release.rounds` or
            `release.too_few_clients`.
        AuthorizationError: `policy.not_a_party`, `release.not_in_policy` or `release.other_party`.
    """
    policy = context.state.version(message.study).policy
    party = member(context, policy)
    volume = policy.volume(message.volume)
    if not isinstance(volume, WritableVolume) or volume.release is None:
        raise AuthorizationError("release.not_in_policy", "the policy releases no such volume", volume=message.volume)
    if volume.release.to != party.name:
        raise AuthorizationError("release.other_party", "the policy releases this volume to another party")
    found = context.state.study(message.study).releases.get(message.volume)
    if found is None or found.root is None or not found.completed:
        raise StateError(
            "release.not_ready", "the condition of the release does not hold yet", when=volume.release.when
        )
    if policy.federation is not None:
        require_rounds(policy.federation, context.state.study(message.study).progress)
    sealed = seal_to(
        party.recipient_key,
        found.key,
        purpose="release",
        context=release_context(context.state.identity.deployment_id, message.study, message.volume, found.root),
    )
    public = {"party": party.name, "root": found.root, "study": message.study, "volume": message.volume}
    return Step(ReleaseReply(root=found.root, sealed_key=sealed), Event("released", public))


def export(context: Context, message: LogExport) -> Step:
    """Note that a party takes the audit bundle; the edge, which can read the store, puts it together.

    Raises:
        AuthorizationError: `caller.none`.
    """
    del message
    return Step(Empty(), Event("exported", {"key": context.key_id}))


def status(context: Context, message: StatusAsk) -> Step:
    """Describe a study: policy, services, refused attestations, volumes, progress; no secret.

    Raises:
        StateError: `policy.not_in_force`.
        AuthorizationError: `policy.not_a_party`.
    """
    version = context.state.version(message.study)
    member(context, version.policy)
    study = context.state.study(message.study)
    described: JsonObject = {
        "exits": dict(study.exits),
        "grants": [
            {
                "expires": granted.grant.expires,
                "grant": name,
                "owner_policy": granted.grant.policy,
                "revoked": name in context.state.revoked,
                "signatures": len(granted.signers),
                "volume": granted.grant.volume,
            }
            for name, granted in context.state.grants.items()
            if granted.grant.study_policy_hash == version.hash
        ],
        "now": context.now,
        "policy_hash": version.hash.hex(),
        "progress": list(study.progress),
        "refusals": list(study.refusals),
        "roster": [peer.model_dump(exclude_none=True) for peer in roster(study, context.now)],
        "services": _services(study, context.now),
        "simulated": any(lease.trust_domain.startswith("simulated:") for lease in study.leases.values()),
        "version": len(context.state.history(message.study).versions),
        "volumes": _volumes(study),
    }
    return Step(StatusReply(status=described))


def _services(study: Study, now: int) -> list[JsonObject]:
    return [
        {
            "lease_until": lease.until,
            "live": lease.until >= now,
            "platform": lease.platform_id,
            "service": lease.service,
            "site": lease.site,
            "statement": lease.claims.decode(),
            "trust_domain": lease.trust_domain,
        }
        for _, lease in sorted(study.leases.items())
    ]


def _volumes(study: Study) -> list[JsonObject]:
    described: list[JsonObject] = []
    for name, head in sorted(study.heads.items()):
        found = study.releases.get(name)
        described.append(
            {
                "released": found is not None and found.root is not None,
                "ready": found is not None and found.root is not None and found.completed,
                "sequence": head.sequence,
                "tag": head.tag or "",
                "volume": name,
            }
        )
    return described
