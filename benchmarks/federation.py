"""The federations that are measured: confidential, plain in the same warm layout, and Flower's own deployment."""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from secfl.cli.harness import AGGREGATOR, Harness
from secfl.cli.study_plan import StudyPlan
from secfl.errors import EngineError
from secfl.federation.flower.bundle import build
from secfl.federation.flower.launch import Scalar
from secfl.federation.flower.plain import run_plain
from secfl.party.session import ManagerSession
from secfl.protocol.party import StatusAsk, StatusReply

__all__ = ["Study", "compute_study", "confidential", "follow", "heart_study", "plain_rounds"]

_OWNER = "model-owner"
_RECORDS = "records.npz"
_ASK_SECONDS = 0.1
"""Between two questions for the state of the study: the resolution of the confidential times."""
_LIMIT_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Study:
    """What is run the same way in every layout."""

    name: str
    app: Path
    records: Mapping[str, Path]
    run_config: Mapping[str, Scalar]

    @property
    def rounds(self) -> int:
        """How many rounds it has."""
        return int(self.run_config["num-rounds"])

    @property
    def node_data(self) -> dict[str, dict[str, Scalar]]:
        """Node configuration where the records are plain files."""
        return {site: {"data-path": str(folder / _RECORDS)} for site, folder in self.records.items()}


def heart_study(base: Path, rounds: int) -> Study:
    """The example: four hospitals."""
    example = ROOT / "examples" / "heart-disease"
    files = runpy.run_path(str(example / "partition.py"))["partition"](example / "heart4.npz", base)
    records = {site: Path(file).parent for site, file in files.items()}
    return Study("heart", example / "app", records, {"min-nodes": len(records), "num-rounds": rounds, "seed": 7})


def compute_study(base: Path, rounds: int, passes: int) -> Study:
    """Two sites that compute a fixed amount each round."""
    records = {site: base / site for site in ("north", "south")}
    for folder in records.values():
        folder.mkdir(parents=True)
        (folder / _RECORDS).write_bytes(b"none")
    config: dict[str, Scalar] = {"min-nodes": len(records), "num-rounds": rounds, "passes": passes}
    return Study("compute", ROOT / "benchmarks" / "apps" / "compute", records, config)


@contextmanager
def confidential(base: Path, study: Study) -> Iterator[Harness]:
    """A confidential federation whose services are attested; it ends with the block."""
    base.chmod(0o711)
    plan = StudyPlan(
        study=study.name,
        owner=_OWNER,
        sites=tuple(study.records),
        aggregator_site=AGGREGATOR,
        app_hash=build(study.app).sha256,
        rounds=study.rounds,
        run_config=study.run_config,
        node_config={"data-path": f"/data/{_RECORDS}"},
    )
    with Harness(base / "sites", ROOT / "build" / "image", study.app, study.records, plan) as harness:
        harness.start_platforms()
        harness.create_parties()
        harness.start_manager()
        for name in harness.party_names:
            harness.attest_manager(name)
        for name in harness.party_names:
            harness.pack(name)
        harness.agree()
        for _ in harness.start_services():
            pass
        yield harness


def follow(harness: Harness, on_round: Callable[[int], None] = lambda _: None) -> list[float]:
    """When each round had been evaluated, in monotonic seconds.

    Raises:
        EngineError: `benchmark.run_failed`.
    """
    study = harness.plan.study
    home = harness.parties[_OWNER].home

    def ask(emit: Callable[[Any], None]) -> None:
        session, seen = ManagerSession(home), 0
        deadline = time.monotonic() + _LIMIT_SECONDS
        while time.monotonic() < deadline:
            state = session.ask("studies/status", question, StatusReply).status
            emit([line["round"] for line in state["progress"][seen:] if line["phase"] == "evaluate"])
            seen = len(state["progress"])
            if AGGREGATOR in state["exits"]:
                return
            time.sleep(_ASK_SECONDS)

    def question(deployment: str, nonce: bytes) -> StatusAsk:
        return StatusAsk(deployment_id=deployment, nonce=nonce, study=study)

    times: list[float] = []
    for numbers in harness.parties[_OWNER].site.stream(ask):
        for number in numbers:
            times.append(time.monotonic())
            on_round(number)
    if len(times) != harness.plan.rounds:
        raise EngineError("benchmark.run_failed", f"{len(times)} of {harness.plan.rounds} rounds were reported")
    return times


def plain_rounds(study: Study, work: Path) -> list[float]:
    """The same in the warm layout without any protection."""
    result = run_plain(study.app, study.node_data, study.run_config, work)
    return [entry.seconds for entry in result.rounds if entry.phase == "evaluate"]
