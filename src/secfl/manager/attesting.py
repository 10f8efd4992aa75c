"""Attestation of a service: from its request to a lease, a certificate and its sealed configuration.

The evidence is verified between `Attempt.check` and `admit`, outside this process's state machine; what could have
changed meanwhile is checked again. Nothing secret is put together before the evidence is verified, bound and appraised.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from secfl.attestation.appraise import Appraised, appraise
from secfl.attestation.binding import Binding, Purpose
from secfl.attestation.binding import check as check_binding
from secfl.attestation.claims import VerifiedEvidence
from secfl.attestation.ear import result_of
from secfl.attestation.evidence import Evidence
from secfl.attestation.result_certificate import issue_result, service_dns_name
from secfl.attestation.statement import LaunchClaims
from secfl.crypto.encoding import to_base64url
from secfl.crypto.hpke import seal_to
from secfl.crypto.signing import PublicKey
from secfl.errors import AppraisalError, AuthorizationError, Finding, SecflError, StateError
from secfl.manager.log import Event
from secfl.manager.payload import service_payload
from secfl.manager.records import Lease, Study
from secfl.manager.step import Context, Step
from secfl.manager.volumes import expected_roots, plan_mounts
from secfl.policy.model import Policy
from secfl.policy.requirements import reference_values
from secfl.policy.version import PolicyVersion
from secfl.protocol.binding import Subject, read_launch_claims, service_binding
from secfl.protocol.message import JsonObject
from secfl.protocol.public import AttestReply, AttestRequest, RenewReply, RenewRequest, payload_context

__all__ = ["Attempt", "admit", "prepare", "refusal_of"]

_ID_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attestation request on its way.

    Attributes:
        purpose: first attestation or renewal.
        policy_hash: the policy that the evidence was made for.
        lease_id: the lease to renew.
        evidence: the CMW record as text.
        binding: what the evidence must be bound to; None until `check`.
        domains: trust domains that the policy accepts for this service.
        collateral: digest of the collateral that it was verified with.
    """

    purpose: Purpose
    nonce: bytes = field(repr=False)
    study: str
    service: str
    site: str
    policy_hash: str
    tls_key: bytes = field(repr=False)
    sealing_key: bytes = field(repr=False)
    launch_claims: bytes = field(repr=False)
    evidence: str = field(repr=False)
    lease_id: str = ""
    binding: Binding | None = None
    domains: tuple[str, ...] = ()
    collateral: str = ""

    def check(self, context: Context) -> Attempt:
        """Check all that needs no verified evidence; returns the attempt with its binding.

        Raises:
            AppraisalError: `appraisal.policy_not_in_force` or `appraisal.site`.
            StateError: `policy.not_in_force`, `policy.unknown_service` or `lease.lapsed`.
            EncodingError: a field is malformed.
        """
        version = _version(context, self)
        service = version.policy.service(self.service)
        _require_site(version.policy, self)
        if self.purpose is Purpose.RENEW:
            _lease(context, self)
        identity = context.state.identity
        subject = Subject(
            study=self.study,
            service=self.service,
            site=self.site,
            tls_key=self.tls_key,
            sealing_key=self.sealing_key,
            deployment_id=identity.deployment_id,
            manager_certificate=identity.public.certificate,
        )
        binding = service_binding(
            self.purpose, subject, nonce=self.nonce, policy_hash=self.policy_hash, claims=self.launch_claims
        )
        domains = tuple(dict.fromkeys(variant.trust_domain for variant in service.attestation))
        return replace(self, binding=binding, domains=domains)

    def parsed_evidence(self) -> Evidence:
        """The evidence, unverified.

        Raises:
            EncodingError: `evidence.malformed`, `evidence.kind` or `evidence.size`.
        """
        return Evidence.decode(self.evidence.encode())


def prepare(context: Context, operation: str, body: bytes) -> Attempt:
    """Read a request.

    Raises:
        EncodingError: it is malformed.
        StateError: `lease.unknown`.
    """
    if operation == "renew":
        renewal = RenewRequest.decode(body)
        lease = next((one for one in context.state.leases_by_key.values() if one.lease_id == renewal.lease_id), None)
        if lease is None:
            raise StateError("lease.unknown", "there is no such lease", hint="attest again")
        return Attempt(
            purpose=Purpose.RENEW,
            nonce=renewal.nonce,
            study=lease.study,
            service=lease.service,
            site=lease.site,
            policy_hash=renewal.policy_hash,
            tls_key=lease.tls_key.spki,
            sealing_key=lease.sealing_key,
            launch_claims=renewal.launch_claims,
            evidence=renewal.evidence,
            lease_id=lease.lease_id,
        )
    request = AttestRequest.decode(body)
    return Attempt(
        purpose=Purpose.ATTEST,
        nonce=request.nonce,
        study=request.study,
        service=request.service,
        site=request.site,
        policy_hash=request.policy_hash,
        tls_key=request.tls_key,
        sealing_key=request.sealing_key,
        launch_claims=request.launch_claims,
        evidence=request.evidence,
    )


def admit(context: Context, attempt: Attempt, verified: VerifiedEvidence) -> Step:
    """Appraise verified evidence and give the service what is its own.

    Raises:
        VerificationError: `binding.mismatch`.
        AppraisalError: `appraisal.policy_not_in_force`, `appraisal.platform_changed`, `appraisal.service_running`,
            `appraisal.launch_changed`, or as `appraise`.
        AuthorizationError: `lease.key_in_use` or `grant.missing`.
        StateError: `lease.lapsed`, `volume.no_key` or another code of what the policy refers to.
    """
    if attempt.binding is None:
        raise StateError("attestation.unchecked", "the attempt was not checked")
    # 1. The evidence is about this exchange (EV-08, EV-12, EV-14 to EV-16).
    binding = check_binding(attempt.binding, verified)
    # 2. The policy is still in force: a vote may have been counted while the evidence was verified.
    version = _version(context, attempt)
    # 3. The evidence is acceptable, with the content that this policy names.
    roots = expected_roots(context.state, version, attempt.service)
    reference = reference_values(version.policy, attempt.service, roots=roots)
    appraised = appraise(verified, reference, context.now, statement=binding.claims)
    # 4. One service has one live instance, and a site keeps its hardware (EV-34).
    _require_place(context, attempt, verified)
    if attempt.purpose is Purpose.RENEW:
        return _renewed(context, attempt, appraised, binding)
    return _attested(context, attempt, appraised, binding)


def refusal_of(attempt: Attempt, error: SecflError, verified: VerifiedEvidence | None) -> Event:
    """The event of a refused attestation; with its evidence, if authentic, so that the verdict can be checked later."""
    findings = error.findings if isinstance(error, AppraisalError) else ()
    digest = hashlib.sha256(attempt.evidence.encode()).digest() if verified is None else verified.evidence_digest
    public: JsonObject = {
        **_exchange(attempt),
        # What nobody verified may be anything: the log keeps its hash, not its bytes.
        "evidence": attempt.evidence if verified else "",
        "code": error.code,
        "evidence_digest": digest.hex(),
        "findings": [
            {"actual": f.actual, "expected": f.expected, "remedy": f.remedy, "rule": f.rule} for f in findings
        ],
        "message": error.message,
        "verified": verified is not None,
    }
    return Event("attestation-refused", public)


def _attested(context: Context, attempt: Attempt, appraised: Appraised, binding: Binding) -> Step:
    version = context.state.version(attempt.study)
    plan = plan_mounts(context.state, version, attempt.service, context.now)
    study = context.state.study(attempt.study)
    until = context.now + context.settings.lease
    lease_id = context.random(_ID_BYTES).hex()
    leaf = _leaf(context, attempt, appraised, binding)
    content = service_payload(context, version, attempt.service, attempt.site, plan)
    reply = AttestReply(
        lease_id=lease_id,
        lease_until=until,
        certificates=(leaf, study.authority.certificate),
        sealed=seal_to(
            attempt.sealing_key,
            content.payload.encode(),
            purpose="service-payload",
            context=payload_context(attempt.nonce, attempt.policy_hash),
        ),
    )
    public = {
        **_exchange(attempt),
        **_verdict(appraised, leaf, until),
        "grants": list(plan.grants),
        "lease_id": lease_id,
        "node_key": _claims(binding).node_key,
        "secrets": sorted(content.released),
    }
    return Step(reply, Event("attested", public, content.secret))


def _renewed(context: Context, attempt: Attempt, appraised: Appraised, binding: Binding) -> Step:
    lease = _lease(context, attempt)
    former, present = read_launch_claims(lease.claims), _claims(binding)
    if (former.instance, former.node_key) != (present.instance, present.node_key):
        raise AppraisalError(
            [Finding("appraisal.launch_changed", former.instance, present.instance, "attest anew, do not renew")]
        )
    version = context.state.version(attempt.study)
    plan = plan_mounts(context.state, version, attempt.service, context.now)
    until = context.now + context.settings.lease
    leaf = _leaf(context, attempt, appraised, binding)
    reply = RenewReply(lease_until=until, certificates=(leaf, context.state.study(attempt.study).authority.certificate))
    public = {
        **_exchange(attempt),
        **_verdict(appraised, leaf, until),
        "grants": list(plan.grants),
        "lease_id": lease.lease_id,
    }
    return Step(reply, Event("renewed", public))


def _leaf(context: Context, attempt: Attempt, appraised: Appraised, binding: Binding) -> bytes:
    until = context.now + context.settings.lease
    result = result_of(appraised, binding, issued_at=context.now, expires_at=until)
    authority = context.state.study(attempt.study).authority
    names = (service_dns_name(attempt.service, attempt.study),)
    return issue_result(authority, PublicKey(attempt.tls_key), result, dns=names)


def _require_place(context: Context, attempt: Attempt, verified: VerifiedEvidence) -> None:
    study: Study = context.state.study(attempt.study)
    platform = verified.platform_id.hex()
    known = study.platforms.get(attempt.site)
    if known is not None and known != platform:
        remedy = "run on the site's own machine, or vote a policy for the new one"
        raise AppraisalError([Finding("appraisal.platform_changed", known, platform, remedy)])
    lease = study.leases.get(attempt.service)
    if lease is not None and lease.until >= context.now and lease.platform_id != platform:
        remedy = "end the running instance, or wait until its lease lapses"
        raise AppraisalError([Finding("appraisal.service_running", lease.platform_id, platform, remedy)])
    holder = context.state.leases_by_key.get(PublicKey(attempt.tls_key).key_id)
    if holder is not None and (holder.study, holder.service) != (attempt.study, attempt.service):
        raise AuthorizationError("lease.key_in_use", "another service holds a lease with this key")


def _require_site(policy: Policy, attempt: Attempt) -> None:
    # EV-15: a trainer's site is the name under which its owner and the round records know it.
    trainers = policy.federation.trainers if policy.federation else {}
    sites = sorted(site for site, service in trainers.items() if service == attempt.service)
    if sites and attempt.site not in sites:
        remedy = "launch the service at the site that the policy names for it"
        raise AppraisalError([Finding("appraisal.site", ", ".join(sites), attempt.site, remedy)])


def _version(context: Context, attempt: Attempt) -> PolicyVersion:
    version = context.state.version(attempt.study)
    if version.hash.hex() != attempt.policy_hash:
        remedy = "attest for the policy in force, after looking at what changed"
        raise AppraisalError(
            [Finding("appraisal.policy_not_in_force", version.hash.hex(), attempt.policy_hash, remedy)]
        )
    return version


def _lease(context: Context, attempt: Attempt) -> Lease:
    lease = context.state.study(attempt.study).leases.get(attempt.service)
    if lease is None or lease.lease_id != attempt.lease_id or lease.until < context.now:
        raise StateError("lease.lapsed", "the lease has lapsed or was taken over", hint="attest again")
    return lease


def _claims(binding: Binding) -> LaunchClaims:
    if not isinstance(binding.claims, LaunchClaims):
        raise StateError("attestation.unchecked", "not the statement of a shield")
    return binding.claims


def _exchange(attempt: Attempt) -> JsonObject:
    return {
        "collateral": attempt.collateral,
        "evidence": attempt.evidence,
        "launch_claims": to_base64url(attempt.launch_claims),
        "nonce": to_base64url(attempt.nonce),
        "policy_hash": attempt.policy_hash,
        "purpose": attempt.purpose.value,
        "sealing_key": to_base64url(attempt.sealing_key),
        "service": attempt.service,
        "site": attempt.site,
        "study": attempt.study,
        "tls_key": to_base64url(attempt.tls_key),
    }


def _verdict(appraised: Appraised, leaf: bytes, until: int) -> JsonObject:
    verified = appraised.verified
    return {
        "certificate": to_base64url(leaf),
        "evidence_digest": verified.evidence_digest.hex(),
        "lease_until": until,
        "measurement": verified.measurement.hex(),
        "platform_id": verified.platform_id.hex(),
        "tcb_status": verified.tcb_status,
        "tolerated": list(appraised.tolerated),
        "trust_domain": verified.trust_domain,
    }
