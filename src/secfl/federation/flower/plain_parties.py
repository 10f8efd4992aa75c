"""The processes of the plain layout, all under one supervisor: SuperLink, SuperNodes, executors, relay."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfl.crypto import strict_json
from secfl.errors import ConfigError, EngineError
from secfl.federation.flower.arguments import parse_assignments
from secfl.federation.flower.bundle import build, require
from secfl.federation.flower.launch import HOST, AggregatorLaunch, TrainerLaunch, gateway_rules
from secfl.federation.flower.plain_keys import make_keys
from secfl.federation.flower.process import Family
from secfl.federation.flower.relay import Relay, RelayFiles
from secfl.federation.flower.supervisor import Aggregator, Trainer, run_family

__all__ = ["run_plan"]

_LEASE_SECONDS = 7 * 24 * 3600
"""There is no manager that would renew a lease in the plain layout."""


@dataclass(frozen=True, slots=True)
class _Plan:
    app_directory: str
    app_hash: str
    run_config: dict[str, bool | int | float | str]
    nodes: dict[str, dict[str, bool | int | float | str]]
    work: Path
    relay: bool


def _read(path: Path) -> _Plan:
    document: Any = strict_json.decode(path.read_bytes())
    if not isinstance(document, dict) or set(document) != {"app_dir", "app_hash", "run_config", "nodes", "relay"}:
        raise ConfigError("engine.plan_malformed", "the plain layout's plan has other fields than it should")
    return _Plan(
        app_directory=document["app_dir"],
        app_hash=document["app_hash"],
        run_config=parse_assignments(document["run_config"]),
        nodes={site: parse_assignments(document["nodes"][site]) for site in sorted(document["nodes"])},
        work=path.parent,
        relay=document["relay"],
    )


def run_plan(path: Path) -> None:
    """Run the plain federation that the plan describes, to its end.

    Raises:
        ConfigError: `engine.plan_malformed`, `engine.app_directory`, `engine.app_invalid`, `engine.run_config_key`.
        EngineError: `engine.app_not_pinned`, `engine.child_ended`, `engine.run_failed`, `engine.stopped`.
        UnavailableError: `engine.api_unreachable`, `engine.fork`.
    """
    _preload()
    plan = _read(path)
    bundle = require(build(Path(plan.app_directory)), plan.app_hash)
    bundle.run_config(plan.run_config)
    run_directory, model_directory = plan.work / "run", plan.work / "server"
    for directory in (run_directory, model_directory):
        directory.mkdir(parents=True, exist_ok=True)
    keys = make_keys(plan.work / "keys", list(plan.nodes))
    superlink_port, relay_port, *node_ports = _free_ports(2 + len(plan.nodes))
    until = int(time.time()) + _LEASE_SECONDS
    (run_directory / "peers.json").write_bytes(
        strict_json.encode(
            {"peers": [{"site": s, "node_key": keys.node_public[s], "lease_until": until} for s in plan.nodes]}
        )
    )
    aggregator = Aggregator(
        AggregatorLaunch(
            app_directory=plan.app_directory,
            app_hash=plan.app_hash,
            run_config=plan.run_config,
            sites=tuple(plan.nodes),
            root_certificate=str(keys.root),
            certificate=str(keys.certificate),
            private_key=str(keys.private_key),
            work_directory=str(model_directory),
            run_directory=str(run_directory),
            port=superlink_port,
        ),
        bundle,
    )
    trainers = {
        site: Trainer(
            TrainerLaunch(
                app_directory=plan.app_directory,
                app_hash=plan.app_hash,
                run_config=plan.run_config,
                node_config=config,
                root_certificate=str(keys.root),
                node_key=str(keys.node_private[site]),
                sidecar_port=relay_port if plan.relay else superlink_port,
                work_directory=str(plan.work / site),
                port=port,
            ),
            bundle,
            name=site,
        )
        for (site, config), port in zip(plan.nodes.items(), node_ports, strict=True)
    }
    _supervise(
        plan,
        aggregator,
        trainers,
        RelayFiles(
            certificate=keys.certificate,
            private_key=keys.private_key,
            root_certificate=keys.root,
            pending=run_directory / "pending",
            admitted=run_directory / "admitted" / max(plan.nodes),
        ),
        ports=(relay_port, superlink_port),
    )


def _supervise(
    plan: _Plan, aggregator: Aggregator, trainers: dict[str, Trainer], files: RelayFiles, *, ports: tuple[int, int]
) -> None:
    family = Family()
    started = time.monotonic()
    relay_port, superlink_port = ports
    waiting = list(trainers.values())

    def step() -> bool:
        aggregator.step()
        # Without the relay a SuperNode that is not registered yet would be turned away and end.
        if waiting and (plan.relay or files.admitted.exists()):
            for trainer in waiting:
                trainer.start(family)
            waiting.clear()
        return aggregator.finished

    aggregator.start(family)
    if plan.relay:
        family.spawn("relay", lambda: asyncio.run(Relay(gateway_rules(), files, superlink_port).serve(relay_port)))
    run_family(family, {"superlink": aggregator, "serverapp": aggregator, **trainers}, step)
    usage = {"seconds": time.monotonic() - started, "processor_seconds": family.processor_seconds()}
    (plan.work / "usage.json").write_text(json.dumps(usage))
    if not aggregator.finished:
        raise EngineError("engine.stopped", "the plain federation was stopped before the run ended")


def _preload() -> None:
    """Import Flower once, before the processes that need it are forked."""
    import flwr.superlink.cli.flower_superlink
    import flwr.superlink.main
    import flwr.supernode.cli.flower_supernode
    import flwr.supernode.main  # noqa: F401


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
