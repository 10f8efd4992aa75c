"""The study plan: which app, sites and owner a study has, and the policy draft that follows from it.

`secfl init` writes the draft with markers such as `@party.cleveland.signing_key@` for what only others know. They hand
over public files; `secfl policy assemble` puts the values in. Nothing is guessed: a marker without a file is an error
that says who has to hand over what.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from secfl.crypto import strict_json
from secfl.errors import ConfigError, EncodingError
from secfl.federation.flower.contract import FLOWER_VERSION
from secfl.federation.flower.launch import AggregatorLaunch, Scalar, TrainerLaunch, environment, gateway_rules
from secfl.party.home import PartyIdentity, read_file

__all__ = ["HandedOver", "StudyPlan", "assemble", "draft_policy"]

PYTHON = "/opt/python/bin/python3"
GATEWAY_PORT = 8443
SIDECAR_PORT = 9443
_MAX_ROUNDS = 100_000
_MARKER = re.compile(r"@([A-Za-z0-9._-]+)@")
"""Also what is no marker of ours, so that a misspelt one is an error and not a value."""
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")
_MAX_HANDED_OVER = 64 * 1024
_APP_HOME = "/tmp/engine"  # noqa: S108 - the program's private tmpfs


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """What `secfl init` was told.

    Attributes:
        study: the policy's name.
        owner: the party that owns code and model.
        sites: the data-owning parties; each is a site of the same name.
        aggregator_site: where the aggregator runs.
        app_hash: SHA-256 of the app's bundle.
        rounds: number of rounds.
        run_config: what the study sets over the app's own configuration.
        node_config: what each trainer tells the app of its site.
        tee: kind of evidence.
    """

    study: str
    owner: str
    sites: tuple[str, ...]
    aggregator_site: str
    app_hash: str
    rounds: int
    run_config: Mapping[str, Scalar]
    node_config: Mapping[str, Scalar]
    tee: str = "tdx"

    def __post_init__(self) -> None:
        """Check what file names and the policy are made of.

        Raises:
            ConfigError: `init.name`, `init.sites`, `init.rounds` or `init.tee`.
        """
        for name in (self.study, self.owner, self.aggregator_site, *self.sites):
            if not _NAME.match(name):
                raise ConfigError("init.name", f"not a name: {name!r}", hint="lower-case letters, digits, hyphens")
        if not self.sites or len(set(self.sites)) != len(self.sites) or self.owner in self.sites:
            raise ConfigError(
                "init.sites", "a study has at least one site, each once, and an owner who is none of them"
            )
        if not 1 <= self.rounds <= _MAX_ROUNDS:
            raise ConfigError("init.rounds", f"{self.rounds} rounds", expected=f"1 to {_MAX_ROUNDS}")
        if self.tee not in ("sgx", "tdx"):
            raise ConfigError("init.tee", f"{self.tee!r} is no kind of evidence", expected="tdx or sgx")

    def document(self) -> dict[str, Any]:
        """As the JSON value of `study.json`."""
        return {
            "study": self.study,
            "owner": self.owner,
            "sites": list(self.sites),
            "aggregator_site": self.aggregator_site,
            "app_hash": self.app_hash,
            "rounds": self.rounds,
            "tee": self.tee,
        }


def draft_policy(plan: StudyPlan) -> str:
    """Write the policy with markers for what others hand over.

    Raises:
        ConfigError: `engine.config_value` for a configuration that the engine cannot take.
    """
    parties = [plan.owner, *plan.sites]
    document: dict[str, Any] = {
        "secfl": "1",
        "name": plan.study,
        "parties": [
            {
                "name": name,
                "signing_key": f"@party.{name}.signing_key@",
                "recipient_key": f"@party.{name}.recipient_key@",
            }
            for name in parties
        ],
        "access_policy": {"update": {"require-all": parties}},
        "services": [_aggregator(plan), *(_trainer(plan, site) for site in plan.sites)],
        "images": [_aggregator_image(), *(_trainer_image(site) for site in plan.sites)],
        "volumes": [
            _imported("code", plan.owner),
            *(_imported(f"cohort-{site}", site) for site in plan.sites),
            {"name": "model", "writable": True, "release": {"to": plan.owner, "when": "completed"}},
        ],
        "secrets": _secrets(plan),
        "federation": {
            "engine": "flower",
            "engine_version": FLOWER_VERSION,
            "aggregator": "aggregator",
            "trainers": {site: f"trainer-{site}" for site in plan.sites},
            "rounds": plan.rounds,
            "minimum_clients": len(plan.sites),
            "app_bundle": plan.app_hash,
            "run_config": {key: _run_value(value) for key, value in plan.run_config.items()},
        },
    }
    head = (
        f"# Policy of the study {plan.study}. Values between @ signs come from the parties; see README.md beside it.\n"
    )
    return head + yaml.dump(document, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)


def _attestation(plan: StudyPlan) -> list[dict[str, Any]]:
    return [
        {
            "trust_domain": "@image.trust_domain@",
            "tee": plan.tee,
            "measurement": ["@image.measurement@"],
            "tcb_status": ["UpToDate"],
            "minimum_tcb_evaluation": 1,
            "smt": "allow",
        }
    ]


def _aggregator(plan: StudyPlan) -> dict[str, Any]:
    launch = AggregatorLaunch(
        app_directory="/code",
        app_hash=plan.app_hash,
        run_config=plan.run_config,
        sites=plan.sites,
        root_certificate="/run/secrets/root.pem",
        certificate="/run/secrets/superlink.pem",
        private_key="/run/secrets/superlink.key",
        work_directory="/model",
        minimum_clients=len(plan.sites),
    )
    rules = gateway_rules()
    hold = [{"path": path, "seconds": seconds} for path, seconds in rules.hold_seconds.items()]
    linger = [{"path": path, "milliseconds": delay} for path, delay in rules.linger_milliseconds.items()]
    return {
        "name": "aggregator",
        "image_name": "aggregator",
        "command": launch.command(PYTHON),
        "environment": environment(_APP_HOME),
        "pwd": "/model",
        "attestation": _attestation(plan),
        "platforms": [f"@platform.{plan.aggregator_site}@"],
        "network": {
            "ingress": [
                {
                    "name": "fleet",
                    "port": GATEWAY_PORT,
                    "to": f"127.0.0.1:{launch.port}",
                    "peers": [f"trainer-{site}" for site in plan.sites],
                    "allow": list(rules.allow),
                    "node_key_header": rules.key_header,
                    "hold": hold,
                    "linger": linger,
                    "tls_server_ca": "$$SECFL::superlink-ca:crt$$",
                }
            ],
            "egress": [],
        },
        "console": "suppress",
    }


def _trainer(plan: StudyPlan, site: str) -> dict[str, Any]:
    launch = TrainerLaunch(
        app_directory="/code",
        app_hash=plan.app_hash,
        run_config=plan.run_config,
        node_config=plan.node_config,
        root_certificate="/run/secrets/root.pem",
        node_key="/run/secfl/node_key",
        sidecar_port=SIDECAR_PORT,
        work_directory=_APP_HOME,
    )
    return {
        "name": f"trainer-{site}",
        "image_name": f"trainer-{site}",
        "command": launch.command(PYTHON),
        "environment": environment(_APP_HOME),
        "pwd": "/tmp",  # noqa: S108 - the program's private tmpfs
        "attestation": _attestation(plan),
        "platforms": [f"@platform.{site}@"],
        "network": {
            "ingress": [],
            "egress": [
                {
                    "name": "fleet",
                    "listen": f"127.0.0.1:{SIDECAR_PORT}",
                    "service": "aggregator",
                    "ingress": "fleet",
                    "tls_certificate": f"$$SECFL::sidecar-{site}:crt$$",
                    "tls_key": f"$$SECFL::sidecar-{site}-key:pem$$",
                }
            ],
        },
        "console": "suppress",
    }


def _file(path: str, content: str) -> dict[str, str]:
    return {"path": path, "content": content, "permission": "0400"}


def _aggregator_image() -> dict[str, Any]:
    return {
        "name": "aggregator",
        "volumes": [{"name": "code", "path": "/code"}, {"name": "model", "path": "/model"}],
        "injection_files": [
            _file("/run/secrets/root.pem", "$$SECFL::superlink-ca:crt$$"),
            _file("/run/secrets/superlink.pem", "$$SECFL::superlink:crt$$"),
            _file("/run/secrets/superlink.key", "$$SECFL::superlink-key:pem$$"),
        ],
    }


def _trainer_image(site: str) -> dict[str, Any]:
    return {
        "name": f"trainer-{site}",
        "volumes": [{"name": "code", "path": "/code"}, {"name": f"cohort-{site}", "path": "/data"}],
        "injection_files": [_file("/run/secrets/root.pem", f"$$SECFL::sidecar-{site}-ca:crt$$")],
    }


def _imported(volume: str, party: str) -> dict[str, Any]:
    name = volume.partition("-")[0]
    reference = {"policy": f"{party}/{name}", "policy_hash": f"@volume.{party}.{name}@", "volume": name}
    return {"name": volume, "import": reference}


def _secrets(plan: StudyPlan) -> list[dict[str, Any]]:
    secrets: list[dict[str, Any]] = []
    for name in ("superlink", *(f"sidecar-{site}" for site in plan.sites)):
        secrets += [
            {"name": f"{name}-ca-key", "kind": "private-key", "key_type": "P-256"},
            {"name": f"{name}-ca", "kind": "x509-ca", "private_key": f"{name}-ca-key", "common_name": "loopback"},
            {"name": f"{name}-key", "kind": "private-key", "key_type": "P-256"},
            {
                "name": name,
                "kind": "x509",
                "private_key": f"{name}-key",
                "issuer": f"{name}-ca",
                "common_name": "localhost",
                "san": ["dns:localhost", "ip:127.0.0.1"],
                "endpoint": "server",
                "valid_for": "90d",
            },
        ]
    return secrets


def _run_value(value: Scalar) -> object:
    return {"decimal": repr(value)} if isinstance(value, float) else value


class _Dumper(yaml.SafeDumper):
    """Writes no aliases: the policy language refuses them."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the library's signature
        return True


class HandedOver:
    """The folder with the public files that parties and operators hand over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def party(self, name: str) -> PartyIdentity:
        """Read `parties/NAME.json`.

        Raises:
            ConfigError: `study.not_handed_over` or `study.malformed`, also when it is another party's.
        """
        document = self._read("parties", name)
        try:
            identity = PartyIdentity.from_document(document)
        except EncodingError as error:
            raise ConfigError("study.malformed", f"parties/{name}.json: {error.message}") from error
        if identity.name != name:
            # Keys under another party's name would give its vote and its data's recipient to somebody else.
            raise ConfigError("study.malformed", f"parties/{name}.json is the identity of {identity.name}")
        return identity

    def value(self, marker: str) -> str:
        """Find the value of a marker.

        Raises:
            ConfigError: `study.unknown_marker`, `study.not_handed_over` or `study.malformed`.
        """
        kind, *rest = marker.split(".")
        if kind == "party" and len(rest) == 2 and rest[1] in ("signing_key", "recipient_key"):
            return self.party(rest[0]).document()[rest[1]]
        if kind == "platform" and len(rest) == 1:
            return self._text("platforms", rest[0], "platform_id")
        if kind == "volume" and len(rest) == 2:
            return self._text("volumes", f"{rest[0]}-{rest[1]}", "policy_hash")
        if kind == "image" and rest in (["measurement"], ["trust_domain"]):
            return self._text("", "image", rest[0])
        raise ConfigError("study.unknown_marker", f"no value is known for @{marker}@", hint="correct the draft")

    def _read(self, folder: str, name: str) -> dict[str, Any]:
        if not _NAME.match(name):
            raise ConfigError("study.unknown_marker", f"{name!r} is not a name", hint="correct the draft")
        path = self.path / folder / f"{name}.json"
        if not path.exists():
            raise ConfigError("study.not_handed_over", f"{path} is missing", hint=f"{name} has to hand it over")
        try:
            document = strict_json.decode_any(read_file(path, max_bytes=_MAX_HANDED_OVER))
        except EncodingError as error:
            raise ConfigError("study.malformed", f"{path}: {error.message}") from error
        if not isinstance(document, dict):
            raise ConfigError("study.malformed", f"{path} is not a JSON object")
        return document

    def _text(self, folder: str, name: str, member: str) -> str:
        value = self._read(folder, name).get(member)
        # Plain, so that it stays inside the quotes of the policy that it is put into.
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9:_-]+", value):
            raise ConfigError("study.malformed", f"{self.path / folder / name}.json lacks a plain {member}")
        return value


def assemble(draft: str, handed_over: HandedOver) -> bytes:
    """Put the handed-over values in the place of the markers.

    Raises:
        ConfigError: `study.incomplete` names everything that is missing or malformed at once.
    """
    missing: list[str] = []
    values: dict[str, str] = {}
    for marker in sorted(set(_MARKER.findall(draft))):
        try:
            values[marker] = handed_over.value(marker)
        except ConfigError as error:
            missing.append(error.message)
    if missing:
        raise ConfigError("study.incomplete", "; ".join(missing), hint="collect these files, then assemble again")
    return _MARKER.sub(lambda match: values[match[1]], draft).encode()
