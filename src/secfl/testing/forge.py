"""The evidence forge: complete, consistent evidence of a simulated machine with exactly one defect.

It owns a vendor and a machine like any operator of simulated platforms, and in addition every knob that hardware does
not have. Nothing outside of tests imports it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from secfl.attestation.claims import VerifiedEvidence
from secfl.attestation.evidence import Evidence
from secfl.tee.anchor import TrustAnchor, intel_anchor
from secfl.tee.collateral import Collateral
from secfl.tee.simulated.machine import MEASUREMENT_BYTES, MachineProfile, SimulatedMachine
from secfl.tee.simulated.quotes import EnclaveReport, QeProfile, QuotingEnclave, TdReport, header
from secfl.tee.simulated.tcb import CPU_SVN, QE_SVN, Statements, TcbLevel, VersionLevel
from secfl.tee.simulated.vendor import COLLATERAL_SECONDS, Revocations, Vendor, sign_text
from secfl.tee.tdx import SEPT_VE_DISABLE
from secfl.tee.verifier import verify

__all__ = ["DEFECTS", "NOW", "Case", "Defect", "Forge"]

NOW = 1_790_000_000
"""The moment of all forged evidence."""
_BOTH = ("sgx", "tdx")
_TEE_TYPE = {"sgx": 0x00, "tdx": 0x81}
_VERSION = {"sgx": 3, "tdx": 4}


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that a verifier is given."""

    evidence: Evidence
    collateral: Collateral
    anchor: TrustAnchor
    now: int

    def verify(self) -> VerifiedEvidence:
        """Verify in this process.

        Raises:
            SecflError: as `verifier.verify`.
        """
        return verify(self.evidence, self.collateral, self.anchor, self.now)


class Forge:
    """A vendor, a machine of that vendor, and evidence of one kind made on it."""

    def __init__(self, kind: str, *, profile: MachineProfile | None = None) -> None:
        """Make vendor and machine.

        Raises:
            KeyError: an unknown kind.
        """
        self.kind = kind
        self.measurement = bytes([0x4D]) * MEASUREMENT_BYTES[kind]
        self.vendor = Vendor.create(NOW)
        self.machine = SimulatedMachine.enroll(self.vendor, now=NOW, profile=profile)

    def case(self, report_data: bytes = bytes(64), **changes: Any) -> Case:
        """Good evidence and all that belongs to it, with members replaced as given."""
        good = Case(
            self.machine.quote(self.kind, self.measurement, report_data),
            self.vendor.collateral(self.kind, NOW),
            self.vendor.anchor(),
            NOW,
        )
        return replace(good, **changes)

    def report(self, **changes: Any) -> EnclaveReport | TdReport:
        """A report of the workload, with members changed as given."""
        good = {"measurement": self.measurement, "report_data": bytes(64)}
        return EnclaveReport(**good | changes) if self.kind == "sgx" else TdReport(**good | changes)

    def quoted(
        self,
        report: EnclaveReport | TdReport | None = None,
        *,
        profile: QeProfile | None = None,
        version: int | None = None,
    ) -> Evidence:
        """Evidence over any report, by a quoting enclave with any profile."""
        enclave = QuotingEnclave(self.kind, self.machine.pck, self.machine.chain, profile=profile)
        return Evidence(self.kind, enclave.quote(report if report is not None else self.report(), version=version))

    def headed(self, head: bytes) -> Evidence:
        """Evidence with any header, properly signed."""
        enclave = QuotingEnclave(self.kind, self.machine.pck, self.machine.chain)
        return Evidence(self.kind, enclave.sign(head, self.report().encode(), nested=self.kind == "tdx"))

    def endorsed(self, revocations: Revocations | None = None, **changes: Any) -> Collateral:
        """Collateral with statements changed as given, properly signed."""
        good = Statements(issued=NOW - 300, expires=NOW + COLLATERAL_SECONDS)
        return self.vendor.endorse(self.kind, replace(good, **changes), revocations)

    def tcb_status(self, status: str, advisories: tuple[str, ...] = ()) -> Case:
        """Evidence of a platform whose level has this status: authentic, but maybe not acceptable."""
        return self.case(collateral=self.endorsed(levels=(TcbLevel(status=status, advisories=advisories),)))

    def good_header(self, **changes: int) -> bytes:
        """The header of this kind with version, TEE type or key type changed."""
        version = changes.get("version", _VERSION[self.kind])
        tee_type = changes.get("tee_type", _TEE_TYPE[self.kind])
        return header(version, tee_type, key_type=changes.get("key_type", 2))


@dataclass(frozen=True, slots=True)
class Defect:
    """One defect.

    Attributes:
        name: says the defect.
        row: the attack catalogue's row.
        code: with this code the verifier must refuse.
        build: makes the case; the forge is good before.
        kinds: the kinds of evidence that can have it.
    """

    name: str
    row: str
    code: str
    build: Callable[[Forge], Case]
    kinds: tuple[str, ...] = _BOTH


def _under_own_root(forge: Forge) -> Case:
    return Forge(forge.kind).case(anchor=forge.vendor.anchor())


def _own_chain_with_true_collateral(forge: Forge) -> Case:
    return forge.case(evidence=Forge(forge.kind).case().evidence)


def _own_chain_ending_in_the_true_root(forge: Forge) -> Case:
    other = Forge(forge.kind).machine
    pem = b"-----END CERTIFICATE-----\n"
    own = other.chain.split(pem)[:2]
    chain = pem.join([*own, forge.machine.chain.split(pem)[2], b""])
    enclave = QuotingEnclave(forge.kind, other.pck, chain)
    return forge.case(evidence=Evidence(forge.kind, enclave.quote(forge.report())))


def _own_key_under_the_true_chain(forge: Forge) -> Case:
    enclave = QuotingEnclave(forge.kind, Forge(forge.kind).machine.pck, forge.machine.chain)
    return forge.case(evidence=Evidence(forge.kind, enclave.quote(forge.report())))


def _collateral(forge: Forge, **members: Any) -> Case:
    return forge.case(collateral=replace(forge.vendor.collateral(forge.kind, NOW), **members))


def _qe_identity_of_another_vendor(forge: Forge) -> Case:
    other = Forge(forge.kind).vendor.collateral(forge.kind, NOW)
    return _collateral(forge, qe_identity=other.qe_identity, qe_identity_signature=other.qe_identity_signature)


def _qe_identity_edited(forge: Forge) -> Case:
    text = forge.vendor.collateral(forge.kind, NOW).qe_identity
    return _collateral(forge, qe_identity=text.replace('"isvprodid":', '"isvprodid":1'))


def _tcb_info_signed_by_a_machine(forge: Forge) -> Case:
    text = forge.vendor.collateral(forge.kind, NOW).tcb_info
    pem = b"-----END CERTIFICATE-----\n"
    leaf, _, root, _ = forge.machine.chain.split(pem)
    chain = pem.join([leaf, root, b""]).decode()
    return _collateral(forge, tcb_info_signature=sign_text(forge.machine.pck, text), tcb_info_issuer_chain=chain)


def _tcb_info_signed_by_the_platform_ca(forge: Forge) -> Case:
    text = forge.vendor.collateral(forge.kind, NOW).tcb_info
    chain = forge.vendor.collateral(forge.kind, NOW).pck_crl_issuer_chain
    signature = sign_text(forge.vendor.pck_ca.key, text)
    return _collateral(forge, tcb_info_signature=signature, tcb_info_issuer_chain=chain)


def _machine_certified_by_the_root(forge: Forge) -> Case:
    direct = Vendor(forge.vendor.root, forge.vendor.root, forge.vendor.tcb_signer)
    machine = SimulatedMachine.enroll(direct, now=NOW)
    return forge.case(evidence=machine.quote(forge.kind, forge.measurement, bytes(64)))


def _machine_certificate_of_another_role(forge: Forge) -> Case:
    pck = forge.machine.pck
    own = x509.load_pem_x509_certificates(forge.machine.chain)[0]
    extensions = [item.value for item in own.extensions if isinstance(item.value, x509.UnrecognizedExtension)]
    chain = forge.vendor.certify(pck, now=NOW, extensions=extensions, role="TCB Signing")
    return forge.case(evidence=Evidence(forge.kind, QuotingEnclave(forge.kind, pck, chain).quote(forge.report())))


def _lists_swapped(forge: Forge) -> Case:
    good = forge.vendor.collateral(forge.kind, NOW)
    return _collateral(forge, pck_crl=good.root_ca_crl, root_ca_crl=good.pck_crl)


def _list_of_another_vendor(forge: Forge) -> Case:
    return _collateral(forge, pck_crl=Forge(forge.kind).vendor.collateral(forge.kind, NOW).pck_crl)


def _revoked(forge: Forge, who: str) -> Case:
    if who == "pck":
        serial = x509.load_pem_x509_certificates(forge.machine.chain)[0].serial_number
        return forge.case(collateral=forge.endorsed(Revocations(by_pck_ca=frozenset({serial}))))
    issuer = forge.vendor.pck_ca if who == "pck_ca" else forge.vendor.tcb_signer
    serials = frozenset({issuer.certificate.serial_number})
    return forge.case(collateral=forge.endorsed(Revocations(by_root=serials)))


def _levels(forge: Forge, *levels: TcbLevel) -> Case:
    return forge.case(collateral=forge.endorsed(levels=levels))


def _other_kind_of_collateral(forge: Forge) -> Case:
    other = "sgx" if forge.kind == "tdx" else "tdx"
    return forge.case(collateral=forge.vendor.collateral(other, NOW))


def _mixed_collateral(forge: Forge) -> Case:
    other = forge.vendor.collateral("sgx" if forge.kind == "tdx" else "tdx", NOW)
    return _collateral(forge, qe_identity=other.qe_identity, qe_identity_signature=other.qe_identity_signature)


def _another_pck_ca(forge: Forge) -> Case:
    # The platform CA's chain and list of another vendor, whose root is replaced by the true one.
    other = Forge(forge.kind).vendor
    chain = other.pck_ca.certificate.public_bytes(Encoding.PEM) + forge.vendor.root.certificate.public_bytes(
        Encoding.PEM
    )
    crl = other.collateral(forge.kind, NOW).pck_crl
    return _collateral(forge, pck_crl_issuer_chain=chain.decode(), pck_crl=crl)


def _lower(index: int) -> bytes:
    return CPU_SVN[:index] + bytes([CPU_SVN[index] - 1]) + CPU_SVN[index + 1 :]


def _weaker_machine(forge: Forge) -> Case:
    weaker = SimulatedMachine.enroll(forge.vendor, now=NOW, profile=MachineProfile(cpu_svn=_lower(3)))
    return forge.case(evidence=weaker.quote(forge.kind, forge.measurement, bytes(64)))


def _unknown_body_type(forge: Forge) -> Case:
    head = forge.good_header(version=5) + struct.pack("<HI", 9, len(forge.report().encode()))
    return forge.case(evidence=forge.headed(head))


def _quoted(forge: Forge, **profile: Any) -> Case:
    return forge.case(evidence=forge.quoted(profile=QeProfile(**profile)))


def _reported(forge: Forge, version: int | None = None, **changes: Any) -> Case:
    return forge.case(evidence=forge.quoted(forge.report(**changes), version=version))


_SGX, _TDX = ("sgx",), ("tdx",)
_AUTHENTIC = "evidence.not_authentic"
_QE = "evidence.quoting_enclave"
_LEVELS = "collateral.tcb_levels"

DEFECTS: tuple[Defect, ...] = (
    Defect("unknown version", "EV-03", "quote.version", lambda f: f.case(evidence=f.headed(f.good_header(version=6)))),
    Defect(
        "unknown key type", "EV-03", "quote.key_type", lambda f: f.case(evidence=f.headed(f.good_header(key_type=3)))
    ),
    Defect(
        "unknown TEE type",
        "EV-03",
        "quote.tee_type",
        lambda f: f.case(evidence=f.headed(f.good_header(tee_type=0x82))),
    ),
    Defect("unknown report type", "EV-03", "quote.body_type", _unknown_body_type, _TDX),
    Defect(
        "unknown TDX module",
        "EV-03",
        "evidence.tdx_module",
        lambda f: _reported(f, tee_tcb_svn=bytes([5, 9, 2]) + bytes(13)),
        _TDX,
    ),
    Defect("whole chain under an own root", "EV-04", "collateral.root", _under_own_root),
    Defect("own chain, true collateral", "EV-04", "evidence.root", _own_chain_with_true_collateral),
    Defect("own chain, true root appended", "EV-04", "evidence.role", _own_chain_ending_in_the_true_root),
    Defect("own key, true chain", "EV-04", _AUTHENTIC, _own_key_under_the_true_chain),
    Defect("QE identity of another vendor", "EV-05", "collateral.signature", _qe_identity_of_another_vendor),
    Defect("QE identity edited", "EV-05", "collateral.signature", _qe_identity_edited),
    Defect("QE signer", "EV-05", _QE, lambda f: _quoted(f, signer=bytes(32))),
    Defect("QE product", "EV-05", _QE, lambda f: _quoted(f, product=9)),
    Defect("QE SVN below every level", "EV-05", _QE, lambda f: _quoted(f, svn=QE_SVN - 1)),
    Defect("QE attributes", "EV-05", _QE, lambda f: _quoted(f, flags=0x31)),
    Defect("QE misc select", "EV-05", _QE, lambda f: _quoted(f, misc_select=1)),
    Defect("QE debug", "EV-06", _QE, lambda f: _quoted(f, flags=0x13)),
    Defect("debug enclave", "EV-07", "evidence.debug", lambda f: _reported(f, flags=0x07), _SGX),
    Defect("debug TD", "EV-07", "evidence.debug", lambda f: _reported(f, attributes=SEPT_VE_DISABLE | 1), _TDX),
    Defect(
        "enclave with provisioning key",
        "EV-07",
        "evidence.enclave_attributes",
        lambda f: _reported(f, flags=0x15),
        _SGX,
    ),
    Defect("TD without SEPT_VE_DISABLE", "EV-07", "evidence.td_attributes", lambda f: _reported(f, attributes=0), _TDX),
    Defect(
        "migratable TD",
        "EV-07",
        "evidence.td_attributes",
        lambda f: _reported(f, attributes=SEPT_VE_DISABLE | 1 << 29),
        _TDX,
    ),
    Defect(
        "TD with performance counters",
        "EV-07",
        "evidence.td_attributes",
        lambda f: _reported(f, attributes=SEPT_VE_DISABLE | 1 << 63),
        _TDX,
    ),
    Defect(
        "service TD bound",
        "EV-07",
        "evidence.service_td",
        lambda f: _reported(f, version=5, service_td=b"\1" * 48),
        _TDX,
    ),
    Defect("collateral expired", "EV-17", "collateral.expired", lambda f: f.case(now=NOW + COLLATERAL_SECONDS + 1)),
    Defect(
        "collateral of the future",
        "EV-17",
        "collateral.not_yet_valid",
        lambda f: f.case(collateral=f.endorsed(issued=NOW + 60)),
    ),
    Defect("clock before the certificates", "EV-17", "collateral.not_yet_valid", lambda f: f.case(now=NOW - 86400)),
    Defect(
        "another family's collateral",
        "EV-19",
        "evidence.fmspc_mismatch",
        lambda f: f.case(collateral=f.endorsed(fmspc=b"OTHER1")),
    ),
    Defect("another kind's collateral", "EV-19", "evidence.kind_mismatch", _other_kind_of_collateral),
    Defect("two kinds of collateral mixed", "EV-19", "collateral.kind", _mixed_collateral),
    Defect("collateral of another PCK CA", "EV-19", "collateral.signature", _another_pck_ca),
    Defect(
        "TCB information signed by a machine",
        "EV-20",
        "collateral.signature",
        _tcb_info_signed_by_a_machine,
    ),
    Defect(
        "TCB information signed by the platform CA", "EV-20", "collateral.role", _tcb_info_signed_by_the_platform_ca
    ),
    Defect("machine certificate of another role", "EV-20", "evidence.role", _machine_certificate_of_another_role),
    Defect("machine certified by the root", "EV-20", "evidence.role", _machine_certified_by_the_root),
    Defect("PCK revoked", "EV-21", "evidence.pck_revoked", lambda f: _revoked(f, "pck")),
    Defect("PCK CA revoked", "EV-21", "collateral.revoked", lambda f: _revoked(f, "pck_ca")),
    Defect("TCB signer revoked", "EV-21", "collateral.revoked", lambda f: _revoked(f, "tcb_signer")),
    Defect("revocation lists swapped", "EV-21", "collateral.crl", _lists_swapped),
    Defect("revocation list of another vendor", "EV-21", "collateral.crl", _list_of_another_vendor),
    Defect("TCB level revoked", "EV-23", "evidence.tcb_revoked", lambda f: f.tcb_status("Revoked")),
    Defect("unknown TCB status", "EV-23", _AUTHENTIC, lambda f: f.tcb_status("Fine")),
    Defect("15 TCB components", "EV-24", _LEVELS, lambda f: _levels(f, TcbLevel(components=CPU_SVN[:15]))),
    Defect("17 TCB components", "EV-24", _LEVELS, lambda f: _levels(f, TcbLevel(components=CPU_SVN + b"\0"))),
    Defect("15 TDX components", "EV-24", _LEVELS, lambda f: _levels(f, TcbLevel(tdx_components=bytes(15))), _TDX),
    Defect("no TCB level", "EV-24", _LEVELS, _levels),
    Defect("unsorted TCB levels", "EV-24", _LEVELS, lambda f: _levels(f, TcbLevel(components=_lower(0)), TcbLevel())),
    Defect("no QE level", "EV-24", _LEVELS, lambda f: f.case(collateral=f.endorsed(qe_levels=()))),
    Defect(
        "unsorted QE levels",
        "EV-24",
        _LEVELS,
        lambda f: f.case(collateral=f.endorsed(qe_levels=(VersionLevel(1), VersionLevel(8)))),
    ),
    Defect("one TCB component lower", "EV-24", "evidence.tcb_unknown", _weaker_machine),
    Defect("simulated evidence for hardware", "EV-28", "collateral.root", lambda f: f.case(anchor=intel_anchor())),
)
"""Every defect that the verifier must refuse; statuses that a policy may tolerate are not here."""
