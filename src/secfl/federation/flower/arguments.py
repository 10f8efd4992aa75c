"""The command line of the engine's processes, parsed into launch plans; the inverse of `launch`."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Sequence

from secfl.errors import ConfigError
from secfl.federation.flower.launch import SUPERLINK_PORT, SUPERNODE_PORT, AggregatorLaunch, Scalar, TrainerLaunch

__all__ = ["parse_arguments", "parse_assignments"]

_HASH = re.compile(r"[0-9a-f]{64}\Z")


def parse_assignments(texts: Sequence[str]) -> dict[str, Scalar]:
    """Parse `key=value` texts whose values are TOML scalars.

    Raises:
        ConfigError: `engine.config_value`, `engine.config_twice`.
    """
    config: dict[str, Scalar] = {}
    for text in texts:
        key, separator, literal = text.partition("=")
        try:
            value = tomllib.loads(f"value = {literal}")
        except tomllib.TOMLDecodeError as error:
            raise ConfigError("engine.config_value", f"{text!r} is not KEY=VALUE") from error
        if (
            not key
            or not separator
            or set(value) != {"value"}
            or not isinstance(value["value"], bool | int | float | str)
        ):
            raise ConfigError("engine.config_value", f"{text!r} is not KEY=VALUE with a number, text, true or false")
        if key in config:
            raise ConfigError("engine.config_twice", f"{key} is set twice")
        config[key] = value["value"]
    return config


def _hash(text: str) -> str:
    if not _HASH.match(text):
        raise argparse.ArgumentTypeError("an app hash is 64 lower-case hex digits")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="secfl.federation.flower", allow_abbrev=False)
    commands = parser.add_subparsers(dest="party", required=True)
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--app-dir", required=True)
    common.add_argument("--app-hash", required=True, type=_hash)
    common.add_argument("--run-config", action="append", default=[], metavar="KEY=VALUE")
    common.add_argument("--root-certificate", required=True)
    common.add_argument("--work-dir", required=True)
    aggregator = commands.add_parser("aggregator", parents=[common], allow_abbrev=False)
    aggregator.add_argument("--site", action="append", required=True, dest="sites")
    aggregator.add_argument("--minimum-clients", type=int, default=0)
    aggregator.add_argument("--certificate", required=True)
    aggregator.add_argument("--private-key", required=True)
    aggregator.add_argument("--run-dir", default="/run/secfl")
    aggregator.add_argument("--port", type=int, default=SUPERLINK_PORT)
    trainer = commands.add_parser("trainer", parents=[common], allow_abbrev=False)
    trainer.add_argument("--node-config", action="append", default=[], metavar="KEY=VALUE")
    trainer.add_argument("--node-key", required=True)
    trainer.add_argument("--sidecar-port", type=int, required=True)
    trainer.add_argument("--port", type=int, default=SUPERNODE_PORT)
    plain = commands.add_parser("plain", allow_abbrev=False)
    plain.add_argument("--plan", required=True)
    return parser


def parse_arguments(arguments: Sequence[str]) -> AggregatorLaunch | TrainerLaunch | str:
    """Parse a command line; the plain layout's is the path of its plan.

    Raises:
        ConfigError: `engine.config_value`, `engine.config_twice`.
    """
    parsed = _parser().parse_args(arguments)
    if parsed.party == "plain":
        return str(parsed.plan)
    run_config = parse_assignments(parsed.run_config)
    if parsed.party == "aggregator":
        return AggregatorLaunch(
            app_directory=parsed.app_dir,
            app_hash=parsed.app_hash,
            run_config=run_config,
            sites=tuple(sorted(set(parsed.sites))),
            root_certificate=parsed.root_certificate,
            certificate=parsed.certificate,
            private_key=parsed.private_key,
            work_directory=parsed.work_dir,
            run_directory=parsed.run_dir,
            minimum_clients=parsed.minimum_clients,
            port=parsed.port,
        )
    return TrainerLaunch(
        app_directory=parsed.app_dir,
        app_hash=parsed.app_hash,
        run_config=run_config,
        node_config=parse_assignments(parsed.node_config),
        root_certificate=parsed.root_certificate,
        node_key=parsed.node_key,
        sidecar_port=parsed.sidecar_port,
        work_directory=parsed.work_dir,
        port=parsed.port,
    )
