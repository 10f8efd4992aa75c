"""A small federation of the example for tests: real processes, two hospitals, platforms of their own."""

from __future__ import annotations

import os
import runpy
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from process_world import nothing_left
from secfl.cli.harness import AGGREGATOR, Harness, Service
from secfl.cli.study_plan import StudyPlan
from secfl.federation.flower.bundle import build

__all__ = [
    "AGGREGATOR",
    "APP",
    "EXAMPLE",
    "OWNER",
    "ROGUE",
    "SITES",
    "federation",
    "partition",
    "running",
    "small_federation",
    "started",
]

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "heart-disease"
APP = EXAMPLE / "app"
IMAGE = ROOT / "build" / "image"
OWNER = "model-owner"
ROGUE = "rogue"
SITES = ("cleveland", "hungary")


def partition(source: Path, target: Path) -> dict[str, Path]:
    """Split the example's records by its own script."""
    files: dict[str, Path] = runpy.run_path(str(EXAMPLE / "partition.py"))["partition"](source, target)
    return files


def federation(base: Path, *, app: Path = APP, rounds: int = 1, records: dict[str, Path] | None = None) -> Harness:
    """Describe it; nothing is started."""
    if not (IMAGE / "reference.json").exists():
        pytest.skip("the runtime image is not built: make image")
    if os.geteuid() != 0 and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this account cannot open /dev/fuse")
    if records is None:
        files = partition(EXAMPLE / "heart4.npz", base / "records")
        records = {site: files[site].parent for site in SITES}
    plan = StudyPlan(
        study="heart",
        owner=OWNER,
        sites=SITES,
        aggregator_site=AGGREGATOR,
        app_hash=build(app).sha256,
        rounds=rounds,
        run_config={"min-nodes": len(SITES), "num-rounds": rounds},
        node_config={"data-path": "/data/records.npz"},
    )
    return Harness(base / "sites", IMAGE, app, records, plan, (ROGUE,))


def started(harness: Harness) -> None:
    """Run everything up to the agreement of all parties."""
    harness.start_platforms()
    harness.create_parties()
    harness.start_manager()
    for name in harness.party_names:
        harness.attest_manager(name)
        harness.pack(name)
    harness.agree()


@contextmanager
def small_federation() -> Iterator[Harness]:
    """A federation whose parties have agreed; whatever it started is gone afterwards."""
    # Short, since paths of sockets are; open to pass, since the sites' users go through here to their homes.
    base = Path(tempfile.mkdtemp(prefix="secfl-fed-"))
    base.chmod(0o711)
    try:
        with nothing_left(base), federation(base) as harness:
            started(harness)
            yield harness
    finally:
        shutil.rmtree(base)


def running(harness: Harness, service: str, site: str) -> Service:
    """Start a service and wait until its program runs."""
    launched = harness.run_service(service, site)
    launched.wait_phase("running")
    return launched
