"""One simulated machine: its platform id, its certified PCK key, and the secret that sealing keys come from.

The platform process holds it; no workload sees it. The state is bytes in and bytes out, and secret.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cryptography import x509

from secfl.attestation.evidence import Evidence
from secfl.crypto import strict_json
from secfl.crypto.aead import derive_key, random_key
from secfl.crypto.encoding import from_base64url, from_hex, to_base64url
from secfl.crypto.signing import SigningKey
from secfl.errors import EncodingError
from secfl.tee.simulated.der import boolean, enumerated, integer, object_id, octets, sequence
from secfl.tee.simulated.quotes import EnclaveReport, QuotingEnclave, TdReport
from secfl.tee.simulated.tcb import CPU_SVN, FMSPC, PCE_SVN
from secfl.tee.simulated.vendor import Vendor

__all__ = ["MEASUREMENT_BYTES", "PLATFORM_ID_BYTES", "MachineProfile", "SimulatedMachine"]

PLATFORM_ID_BYTES = 16
MEASUREMENT_BYTES = {"sgx": 32, "tdx": 48}
_SGX_EXTENSION = "1.2.840.113741.1.13.1"
_MAX_STATE = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineProfile:
    """What the PCK certificate says of the machine.

    Attributes:
        cpu_svn: the 16 TCB component SVNs.
        pce_svn: SVN of the provisioning enclave.
        fmspc: the platform family.
        smt: whether hyper-threading is on.
    """

    cpu_svn: bytes = CPU_SVN
    pce_svn: int = PCE_SVN
    fmspc: bytes = FMSPC
    smt: bool = False


class SimulatedMachine:
    """A machine that a simulated vendor has certified."""

    def __init__(self, platform_id: bytes, pck: SigningKey, chain: bytes, secret: bytes) -> None:
        """Take the parts; use `enroll` for a new machine.

        Raises:
            EncodingError: `simulated.machine_state` for a platform id of another size.
        """
        if len(platform_id) != PLATFORM_ID_BYTES:
            raise EncodingError("simulated.machine_state", "a platform id has 16 bytes")
        self.platform_id = platform_id
        self.pck = pck
        self.chain = chain
        self._secret = secret
        self._enclaves: dict[str, QuotingEnclave] = {}

    @classmethod
    def enroll(cls, vendor: Vendor, *, now: int, profile: MachineProfile | None = None) -> SimulatedMachine:
        """Make a new machine with an id of its own and have the vendor certify it."""
        platform_id, pck = os.urandom(PLATFORM_ID_BYTES), SigningKey.generate_p256()
        extension = _sgx_extension(platform_id, profile if profile is not None else MachineProfile())
        chain = vendor.certify(pck, now=now, extensions=[extension])
        return cls(platform_id, pck, chain, random_key())

    def quote(self, kind: str, measurement: bytes, report_data: bytes) -> Evidence:
        """Sign that code of this measurement asked for this report data.

        Args:
            kind: `sgx` or `tdx`.
            measurement: what the platform process measured; 32 or 48 bytes.
            report_data: 64 bytes of the workload.

        Raises:
            EncodingError: `simulated.report` for a wrong kind or size.
        """
        if len(measurement) != MEASUREMENT_BYTES.get(kind) or len(report_data) != 64:
            raise EncodingError("simulated.report", "an unknown kind, or a measurement or report data of wrong size")
        if kind not in self._enclaves:
            self._enclaves[kind] = QuotingEnclave(kind, self.pck, self.chain)
        report: EnclaveReport | TdReport
        if kind == "sgx":
            report = EnclaveReport(measurement=measurement, report_data=report_data)
        else:
            report = TdReport(measurement=measurement, report_data=report_data)
        return Evidence(kind, self._enclaves[kind].quote(report))

    def sealing_key(self, measurement: bytes, label: str) -> bytes:
        """Derive a key that only this measurement on this machine gets."""
        return derive_key(self._secret, "simulated-sealing", measurement, label.encode())

    def encode(self) -> bytes:
        """Write the whole state, private key and secret included."""
        return strict_json.encode(
            {
                "chain": self.chain.decode(),
                "key": self.pck.to_pem().decode(),
                "platform_id": self.platform_id.hex(),
                "secret": to_base64url(self._secret),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> SimulatedMachine:
        """Read what `encode` wrote.

        Raises:
            EncodingError: `simulated.machine_state`, or a JSON, base64, hex or key code.
        """
        document = strict_json.decode(data, max_bytes=_MAX_STATE)
        try:
            return cls(
                from_hex(document["platform_id"], size=PLATFORM_ID_BYTES),
                SigningKey.from_pem(document["key"].encode()),
                document["chain"].encode(),
                from_base64url(document["secret"], size=32),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise EncodingError("simulated.machine_state", "not the state of a simulated machine") from error


def _sgx_extension(platform_id: bytes, profile: MachineProfile) -> x509.UnrecognizedExtension:
    def entry(suffix: str, value: bytes) -> bytes:
        return sequence(object_id(f"{_SGX_EXTENSION}.{suffix}"), value)

    components = [entry(f"2.{index}", integer(svn)) for index, svn in enumerate(profile.cpu_svn, start=1)]
    tcb = sequence(*components, entry("2.17", integer(profile.pce_svn)), entry("2.18", octets(profile.cpu_svn)))
    configuration = sequence(
        entry("7.1", boolean(value=False)),
        entry("7.2", boolean(value=False)),
        entry("7.3", boolean(value=profile.smt)),
    )
    value = sequence(
        entry("1", octets(platform_id)),
        entry("2", tcb),
        entry("3", octets(bytes(2))),
        entry("4", octets(profile.fmspc)),
        entry("5", enumerated(0)),
        entry("6", octets(platform_id)),
        entry("7", configuration),
    )
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX_EXTENSION), value)
