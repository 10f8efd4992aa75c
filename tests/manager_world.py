"""The study of the manager's tests: an aggregator with a model, a trainer with an imported cohort."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from secfl.attestation.claims import VerifiedEvidence
from secfl.attestation.evidence import Evidence
from secfl.protocol.service import Progress
from secfl.tee.anchor import TrustAnchor
from secfl.tee.collateral import Collateral
from secfl.tee.verifier import verify
from secfl.testing.deployment import Deployment
from secfl.testing.enclaves import MEASUREMENT, Workload

__all__ = ["COHORT_KEY", "COHORT_ROOT", "Heart", "InLoopVerifier", "owner_policy", "report_rounds", "study_policy"]

COHORT_ROOT = b"\x11" * 32
COHORT_KEY = b"cohort-key-canary-of-32-bytes-xx"
assert len(COHORT_KEY) == 32


class InLoopVerifier:
    """Verifies in the event loop itself, for managers under test that need no process of their own for it."""

    async def verify(
        self, evidence: Evidence, collateral: Collateral, anchor: TrustAnchor, now: int
    ) -> VerifiedEvidence:
        """Verify as the function of `secfl.tee.verifier` does."""
        return verify(evidence, collateral, anchor, now)


def owner_policy(deployment: Deployment, root: bytes = COHORT_ROOT) -> bytes:
    """The data owner's own policy."""
    document = {
        "secfl": "1",
        "name": "cleveland/cohort",
        "parties": [deployment.members["cleveland"].entry()],
        "access_policy": {"update": {"require-all": ["cleveland"]}},
        "volumes": [{"name": "cohort", "root": root.hex(), "deposited": True}],
    }
    return _write(document)


def report_rounds(aggregator: Workload, *, rounds: int = 2) -> None:
    """Report the rounds that the study's policy asks for."""
    for number in range(1, rounds + 1):
        aggregator.call("service/progress", Progress(round=number, phase="train", metrics={}, replies=("cleveland",)))


def study_policy(deployment: Deployment, owner_hash: str, *, rounds: int = 2) -> bytes:
    """The study's policy."""
    attestation = [
        {
            "trust_domain": deployment.domain,
            "tee": "tdx",
            "measurement": [MEASUREMENT.hex()],
            "tcb_status": ["UpToDate"],
            "minimum_tcb_evaluation": 1,
            "smt": "allow",
        }
    ]

    def service(name: str, site: str, network: dict[str, object]) -> dict[str, object]:
        return {
            "name": name,
            "image_name": name,
            "command": ["/opt/python/bin/python3", "-c", "pass"],
            "pwd": "/tmp",
            "attestation": attestation,
            "platforms": [deployment.machines[site].platform_id.hex()],
            "network": network,
            "console": "suppress",
        }

    fleet = {"name": "fleet", "port": 8443, "to": "127.0.0.1:8000", "peers": ["trainer"], "allow": ["POST /v1/*"]}
    egress = {"name": "fleet", "listen": "127.0.0.1:9443", "service": "aggregator", "ingress": "fleet"}
    reference = {"policy": "cleveland/cohort", "policy_hash": owner_hash, "volume": "cohort"}
    document = {
        "secfl": "1",
        "name": "heart",
        "parties": [deployment.members[name].entry() for name in ("cleveland", "model-owner")],
        "access_policy": {"update": {"require-all": ["cleveland", "model-owner"]}},
        "services": [
            {
                **service("aggregator", "hub", {"ingress": [fleet], "egress": []}),
                "environment": {"TOKEN": "$$SECFL::api-token$$"},
            },
            service("trainer", "cleveland", {"ingress": [], "egress": [egress]}),
        ],
        "images": [
            {
                "name": "aggregator",
                "volumes": [{"name": "model", "path": "/model"}],
                "injection_files": [
                    {"path": "/run/secrets/superexec", "content": "$$SECFL::superexec:bin$$", "permission": "0400"}
                ],
            },
            {"name": "trainer", "volumes": [{"name": "cohort", "path": "/data"}]},
        ],
        "volumes": [
            {"name": "model", "writable": True, "release": {"to": "model-owner", "when": "completed"}},
            {"name": "cohort", "import": reference},
        ],
        "secrets": [
            {"name": "superexec", "kind": "binary", "size": 32},
            {"name": "api-token", "kind": "ascii", "size": 20},
        ],
        "federation": {
            "engine": "flower",
            "engine_version": "1.41.0",
            "aggregator": "aggregator",
            "trainers": {"cleveland": "trainer"},
            "rounds": rounds,
            "minimum_clients": 1,
            "app_bundle": "00" * 32,
        },
    }
    return _write(document)


class _Dumper(yaml.SafeDumper):
    """Writes text in quotes, so that no hash looks like a number, and shared objects in full."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def _write(document: Mapping[str, object]) -> bytes:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000).encode()


class Heart:
    """A deployment with the study in force, its volume deposited and granted."""

    def __init__(self, deployment: Deployment | None = None) -> None:
        """Vote everything in."""
        names = ("cleveland", "model-owner", "outsider")
        self.deployment = deployment or Deployment(*names, sites=("cleveland", "hub", "other"))
        self.owner = owner_policy(self.deployment)
        self.owner_hash = self.deployment.activate("cleveland/cohort", self.owner, "cleveland")
        self.policy = study_policy(self.deployment, self.owner_hash)
        self.policy_hash = self.deployment.activate("heart", self.policy, "cleveland", "model-owner")
        self.deployment.deposit("cleveland", "cleveland/cohort", "cohort", COHORT_ROOT, COHORT_KEY)
        self.grant_id = self.grant()

    def grant(self, *, seconds: int = 86_400) -> str:
        """Grant the study version in force the cohort."""
        return self.deployment.grant(
            "cleveland",
            ("cleveland/cohort", "cohort", COHORT_ROOT),
            ("heart", self.policy_hash),
            expires=self.deployment.now + seconds,
        )

    def aggregator(self, *, site: str = "hub") -> Workload:
        """A launched aggregator."""
        return self._workload("aggregator", site, {})

    def trainer(self, *, site: str = "cleveland", root: bytes = COHORT_ROOT) -> Workload:
        """A launched trainer."""
        return self._workload("trainer", site, {"cohort": root})

    def _workload(self, service: str, site: str, roots: dict[str, bytes]) -> Workload:
        workload = Workload(self.deployment, service, site=site, roots=roots)
        workload.policy = self.policy
        return workload
