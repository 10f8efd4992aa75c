"""How Flower's programs are launched and what the network shield lets through, as plain data.

Nothing here imports Flower: policy generation and the shield use these functions where no engine is installed. The
contract tests compare every route with the one that Flower really serves.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secfl.errors import ConfigError

__all__ = [
    "FORBIDDEN_ENVIRONMENT",
    "HOST",
    "MODULE",
    "NODE_KEY_HEADER",
    "REQUIRED_ENVIRONMENT",
    "SUPERLINK_PORT",
    "SUPERNODE_PORT",
    "AggregatorLaunch",
    "GatewayRules",
    "Scalar",
    "TrainerLaunch",
    "assignments",
    "check_environment",
    "environment",
    "gateway_rules",
    "node_key_header",
    "superlink_arguments",
]

MODULE = "secfl.federation.flower"
HOST = "127.0.0.1"
SUPERLINK_PORT = 8000
SUPERNODE_PORT = 9094
NODE_KEY_HEADER = "flwr-public-key"

REQUIRED_ENVIRONMENT: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Without these Flower talks to the outside or installs packages while it runs."""
FORBIDDEN_ENVIRONMENT = (
    "http_proxy", "https_proxy", "all_proxy", "FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API",
    "FLWR_DATABASE", "FLWR_ENABLE_EVENT_LOG",
)  # fmt: skip
"""These would send requests elsewhere, open further ports or write state to disk; either letter case counts."""

Scalar = bool | int | float | str
"""What a run configuration or node configuration may hold."""
_KEY = re.compile(r"(?=.{1,128}\Z)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\Z")


def environment(home: str) -> dict[str, str]:
    """Return the variables that every Flower process needs; `home` is a private, writable directory."""
    return {**REQUIRED_ENVIRONMENT, "FLWR_HOME": home, "HOME": home, "NO_PROXY": "*"}


def check_environment(variables: Mapping[str, str]) -> None:
    """Check that Flower would stay within the enclave.

    Raises:
        ConfigError: `engine.environment`.
    """
    for name, value in REQUIRED_ENVIRONMENT.items():
        if variables.get(name) != value:
            raise ConfigError("engine.environment", f"{name} must be {value}", hint="use launch.environment")
    if not variables.get("FLWR_HOME"):
        raise ConfigError("engine.environment", "FLWR_HOME must name a private directory")
    forbidden = {name.lower() for name in FORBIDDEN_ENVIRONMENT}
    for name in variables:
        if name.lower() in forbidden:
            raise ConfigError("engine.environment", f"{name} must not be set")


def assignments(config: Mapping[str, Scalar]) -> list[str]:
    """Write a configuration as `key=value` texts, in the order of keys, as Flower reads them.

    Raises:
        ConfigError: `engine.config_value`.
    """
    return [f"{key}={_literal(key, config[key])}" for key in sorted(config)]


def _literal(key: str, value: Scalar) -> str:
    if not _KEY.match(key):
        raise ConfigError("engine.config_value", f"{key!r} is not a configuration key")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        text = repr(value)
        if not re.match(r"-?[0-9]", text):
            raise ConfigError("engine.config_value", f"{key} is not a finite number")
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    # Flower splits the text at quotes and blanks without unescaping.
    if any(c in "\"'\\" or not c.isprintable() for c in value):
        raise ConfigError("engine.config_value", f"{key} holds a quote, a backslash or a control character")
    return f'"{value}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorLaunch:
    """Arguments of the aggregator's program.

    Attributes:
        app_directory: the app's code, read-only.
        app_hash: SHA-256 of its bundle, from the policy.
        run_config: what the policy sets over the app's own run configuration.
        sites: the sites that must be online before the run starts.
        root_certificate: PEM file of the loopback root.
        certificate: PEM chain of the SuperLink; valid for 127.0.0.1.
        private_key: its PEM key.
        work_directory: the ServerApp's current directory, where it leaves the model.
        run_directory: where `peers.json`, `admitted/`, `progress` and `pending` are.
        minimum_clients: sites that must train in every round; with fewer there is no aggregate.
    """

    app_directory: str
    app_hash: str
    run_config: Mapping[str, Scalar]
    sites: Sequence[str]
    root_certificate: str
    certificate: str
    private_key: str
    work_directory: str
    run_directory: str = "/run/secfl"
    minimum_clients: int = 0
    port: int = SUPERLINK_PORT

    def command(self, python: str) -> list[str]:
        """Return the whole argument list.

        Raises:
            ConfigError: `engine.config_value`.
        """
        return [
            *(python, "-I", "-B", "-m", MODULE, "aggregator"),
            *("--app-dir", self.app_directory, "--app-hash", self.app_hash),
            *(item for text in assignments(self.run_config) for item in ("--run-config", text)),
            *(item for site in sorted(self.sites) for item in ("--site", site)),
            *("--minimum-clients", str(self.minimum_clients)),
            *("--root-certificate", self.root_certificate, "--certificate", self.certificate),
            *("--private-key", self.private_key, "--work-dir", self.work_directory),
            *("--run-dir", self.run_directory, "--port", str(self.port)),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerLaunch:
    """Arguments of a trainer's program.

    Attributes:
        app_directory: the app's code, read-only.
        app_hash: SHA-256 of its bundle, from the policy.
        run_config: what the policy sets over the app's own run configuration.
        node_config: what the app reads about this site, such as where its data is mounted.
        root_certificate: PEM file of the root that certified the sidecar's loopback certificate.
        node_key: OpenSSH private key file of this SuperNode.
        sidecar_port: where the sidecar listens on 127.0.0.1.
        work_directory: private and writable.
        port: the SuperNode's own Runtime API on 127.0.0.1.
    """

    app_directory: str
    app_hash: str
    run_config: Mapping[str, Scalar]
    node_config: Mapping[str, Scalar]
    root_certificate: str
    node_key: str
    sidecar_port: int
    work_directory: str
    port: int = SUPERNODE_PORT

    def command(self, python: str) -> list[str]:
        """Return the whole argument list.

        Raises:
            ConfigError: `engine.config_value`.
        """
        return [
            *(python, "-I", "-B", "-m", MODULE, "trainer"),
            *("--app-dir", self.app_directory, "--app-hash", self.app_hash),
            *(item for text in assignments(self.run_config) for item in ("--run-config", text)),
            *(item for text in assignments(self.node_config) for item in ("--node-config", text)),
            *("--root-certificate", self.root_certificate, "--node-key", self.node_key),
            *("--sidecar-port", str(self.sidecar_port), "--work-dir", self.work_directory),
            *("--port", str(self.port)),
        ]

    def supernode_arguments(self, secret_file: str) -> list[str]:
        """Return the arguments of Flower's own `flower-supernode`.

        Raises:
            ConfigError: `engine.config_value`.
        """
        return [
            *("--superlink", f"{HOST}:{self.sidecar_port}", "--root-certificates", self.root_certificate),
            *("--auth-supernode-private-key", self.node_key, "--isolation", "process"),
            *("--host", HOST, "--port", str(self.port), "--superexec-auth-secret-file", secret_file),
            *(("--node-config", " ".join(assignments(self.node_config))) if self.node_config else ()),
        ]


def superlink_arguments(launch: AggregatorLaunch, secret_file: str) -> list[str]:
    """Return the arguments of Flower's own `flower-superlink`: loopback only, state in memory, nothing installed."""
    return [
        *("--ssl-ca-certfile", launch.root_certificate, "--ssl-certfile", launch.certificate),
        *("--ssl-keyfile", launch.private_key, "--host", HOST, "--port", str(launch.port)),
        *("--isolation", "process", "--superexec-auth-secret-file", secret_file),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
    ]


@dataclass(frozen=True, slots=True)
class GatewayRules:
    """Everything that the gateway must know about this engine, in the terms of a policy's ingress.

    Attributes:
        key_header: request header that carries the node key; each request must carry the caller's own.
        allow: all that a trainer may send, as `METHOD /path`; anything else is refused.
        hold_seconds: path to the time for which an empty answer is held: Flower sleeps 3 s after an empty pull, and
            gives a request up after 30 s.
        linger_milliseconds: path to the delay of every answer: Flower then sleeps 0.5 s unless the reply is ready.
        pending_file: below the run directory; it changes when messages for the nodes are complete. A held pull must be
            repeated then, and only rarely otherwise: a message that is fetched before its objects were stored makes
            Flower back off for a second.
        repeat_seconds: repeat a held pull this often without a change of that file.
    """

    key_header: str
    allow: tuple[str, ...]
    hold_seconds: Mapping[str, int]
    linger_milliseconds: Mapping[str, int]
    pending_file: str
    repeat_seconds: int


def gateway_rules() -> GatewayRules:
    """Return the rules for trainers: the Fleet API without registration, which only the supervisor may do."""
    names = (
        "activate-node", "confirm-message-received", "deactivate-node", "get-fab", "get-run", "pull-messages",
        "pull-object", "push-messages", "push-object", "send-node-heartbeat",
    )  # fmt: skip
    return GatewayRules(
        key_header=NODE_KEY_HEADER,
        allow=tuple(f"POST /v1/fleet/{name}" for name in names),
        hold_seconds={"/v1/fleet/pull-messages": 20},
        linger_milliseconds={"/v1/fleet/confirm-message-received": 120},
        pending_file="pending",
        repeat_seconds=2,
    )


def node_key_header(public_key_pem: bytes) -> str:
    """Return the only value of the key header that the holder of this key may send."""
    return base64.b64encode(public_key_pem).decode("ascii")
