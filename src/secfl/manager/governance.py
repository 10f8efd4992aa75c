"""Governance: proposals, votes, and the policy in force.

The board's rules are in `secfl.policy.board`, where any party recomputes them; here they are enforced. The vote that
decides puts the policy in force in the same event, so there is no moment between the two.
"""

from __future__ import annotations

from secfl.attestation.result_certificate import make_study_ca, service_dns_name
from secfl.crypto.aead import KEY_BYTES
from secfl.crypto.encoding import from_hex, to_base64url
from secfl.crypto.signing import PublicKey, SigningKey
from secfl.crypto.x509 import Validity
from secfl.errors import AuthorizationError, FreshnessError, StateError, UnavailableError, VerificationError
from secfl.manager.log import Event
from secfl.manager.records import OpenProposal
from secfl.manager.step import Context, Step
from secfl.policy.board import Ballot, Motion, Outcome, authorize_proposer, check_motion, electorate, tally
from secfl.policy.secret_values import SecretValues, generate
from secfl.policy.storage import WritableVolume
from secfl.policy.version import PolicyVersion
from secfl.protocol.party import PolicyAsk, PolicyReply, Proposal, ProposalReply, Vote, VoteReply, proposal_id

__all__ = ["get_policy", "propose", "vote"]

_MAX_OPEN = 32
"""Most proposals open at once under one name."""
_DAY = 86_400
_AUTHORITY_SECONDS = 5 * 366 * _DAY
"""Longest life of a study's CA; a new version of the policy gets a new one."""


def propose(context: Context, message: Proposal) -> Step:
    """Take a proposal.

    Raises:
        PolicyError: the bytes are no policy.
        StateError: `proposal.repeated`, `proposal.expiry`, or `board.predecessor`.
        UnavailableError: `proposal.too_many`.
        SecflError: as `check_motion` and `authorize_proposer`.
    """
    proposed = PolicyVersion.read(message.policy, source=message.name)
    history = context.state.history(message.name)
    motion = Motion(
        deployment_id=context.state.identity.deployment_id,
        proposal=proposal_id(message.encode()),
        name=message.name,
        policy_hash=proposed.hash,
        predecessor=None if message.predecessor is None else from_hex(message.predecessor, size=32),
    )
    check_motion(motion, proposed=proposed, lineage=history.lineage)
    party = authorize_proposer(
        _caller(context), proposed=proposed, lineage=history.lineage, founders=context.state.founders
    )
    if motion.proposal in history.seen:
        raise StateError("proposal.repeated", "this very proposal was made before", hint="sign a new one")
    if not context.now < message.expires <= context.now + context.settings.proposal:
        raise StateError("proposal.expiry", "a proposal expires in the future, not later than allowed")
    if sum(open_one.expires >= context.now for open_one in history.proposals.values()) >= _MAX_OPEN:
        raise UnavailableError("proposal.too_many", "too many open proposals under this name")
    for service in proposed.policy.services:
        service_dns_name(service.name, message.name)
    public = {
        "envelope": to_base64url(context.envelope),
        "expires": message.expires,
        "name": message.name,
        "party": party,
        "policy": to_base64url(message.policy),
        "policy_hash": proposed.hash.hex(),
        "predecessor": message.predecessor,
        "proposal": motion.proposal,
    }
    reply = ProposalReply(proposal=motion.proposal, policy_hash=proposed.hash.hex())
    return Step(reply, Event("proposed", public))


def vote(context: Context, message: Vote) -> Step:
    """Count a vote, and put the policy in force or drop the proposal when it decides.

    Raises:
        StateError: `vote.no_proposal` or `vote.repeated`.
        FreshnessError: `vote.proposal_expired`.
        VerificationError: `vote.other_motion`.
        AuthorizationError: `vote.not_on_board`.
        SecflError: as `tally`.
    """
    history = context.state.history(message.name)
    proposal = history.proposals.get(message.proposal)
    # PB-04, PB-10: a vote fits one proposal by its id, which covers bytes, predecessor, expiry and deployment.
    if proposal is None:
        raise StateError("vote.no_proposal", "there is no such open proposal", hint="it was decided, or replaced")
    if proposal.expires < context.now:
        raise FreshnessError("vote.proposal_expired", "the proposal has lapsed", expired=proposal.expires)
    predecessor = None if message.predecessor is None else from_hex(message.predecessor, size=32)
    named = (from_hex(message.policy_hash, size=32), predecessor, message.name)
    if named != (proposal.motion.policy_hash, proposal.motion.predecessor, proposal.motion.name):
        raise VerificationError("vote.other_motion", "the vote names other bytes or another predecessor")
    signer = _caller(context)
    members = electorate(proposed=proposal.proposed, lineage=history.lineage, founders=context.state.founders)
    party = next((name for name, key in members.items() if key == signer), None)
    if party is None:
        raise AuthorizationError("vote.not_on_board", "the caller is not on the board that decides")
    if any(ballot.signer == signer for ballot in proposal.ballots):
        raise StateError("vote.repeated", "this party has voted", party=party)
    decision = tally(
        proposal.motion,
        [*proposal.ballots, Ballot(proposal.motion, message.approve, signer)],
        proposed=proposal.proposed,
        lineage=history.lineage,
        founders=context.state.founders,
    )
    public = {
        "approve": message.approve,
        "envelope": to_base64url(context.envelope),
        "key": to_base64url(signer.spki),
        "name": message.name,
        "outcome": decision.outcome.value,
        "party": party,
        "proposal": message.proposal,
    }
    if decision.outcome is not Outcome.ACCEPTED:
        return Step(VoteReply(state=decision.outcome.value), Event("voted", public))
    authority, secret = _activation(context, proposal)
    public["authority"] = to_base64url(authority)
    return Step(VoteReply(state=decision.outcome.value), Event("voted", public, secret))


def get_policy(context: Context, message: PolicyAsk) -> Step:
    """Show a policy and its open proposals.

    Raises:
        AuthorizationError: `caller.none`.
    """
    _caller(context)
    history = context.state.history(message.name)
    current = history.current
    live = {name: proposal for name, proposal in history.proposals.items() if proposal.expires >= context.now}
    return Step(
        PolicyReply(
            policy=current.data if current else None,
            policy_hash=current.hash.hex() if current else None,
            version=len(history.versions),
            proposals={name: proposal.envelope for name, proposal in live.items()},
            votes={name: tuple(proposal.votes) for name, proposal in live.items()},
        )
    )


def _activation(context: Context, proposal: OpenProposal) -> tuple[bytes, dict[str, object]]:
    # A new CA with each version: whoever pins it notices, and a peer of the former version is a stranger.
    policy = proposal.proposed.policy
    authority = make_study_ca(
        SigningKey.generate_p256(),
        study=policy.name,
        validity=Validity(context.now - _DAY, context.now + _AUTHORITY_SECONDS),
    )
    study = context.state.studies.get(policy.name)
    secrets = generate(
        policy,
        study.secrets if study else SecretValues({}),
        random=context.random,
        now=context.now,
    )
    known = study.heads if study else {}
    heads = {
        volume.name: to_base64url(context.random(KEY_BYTES))
        for volume in policy.volumes
        if isinstance(volume, WritableVolume) and volume.name not in known
    }
    return authority.certificate, {
        "authority_key": authority.key.to_pem().decode(),
        "heads": heads,
        "secrets": to_base64url(secrets.encode()),
    }


def _caller(context: Context) -> PublicKey:
    if context.caller is None:
        raise AuthorizationError("caller.none", "this operation needs a signed request")
    return context.caller
