"""Parts of a running federation are killed or stopped: nothing stays behind, and the others notice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from federation_world import AGGREGATOR, OWNER, SITES, running, small_federation
from process_world import processes_below
from secfl.cli.harness import MANAGER, Harness, Service
from secfl.errors import UnavailableError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
WAITING, OTHER = SITES


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    """A federation in which the aggregator and one of two trainers run; it waits for the other."""
    with small_federation() as federation:
        running(federation, AGGREGATOR, AGGREGATOR)
        running(federation, f"trainer-{WAITING}", WAITING)
        yield federation


def enclave_processes(harness: Harness, site: str) -> set[int]:
    """All processes of the site's enclaves: what runs below its platform."""
    (platform,) = harness.sites[site].children
    return processes_below(platform, "")


def soon(condition: Callable[[], bool], *, seconds: float = 15.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def live(harness: Harness) -> set[str]:
    """Services with a live lease, as the manager tells a party."""
    services = harness.parties[OWNER].status("heart")["services"]
    return {entry["service"] for entry in services if entry["live"]}


def again(harness: Harness, service: str, site: str) -> Service:
    """Start a service in the host directory that it had."""
    harness.services[service] = harness.start(service, site, harness.sites[site].home / "host")
    harness.services[service].wait_phase("running")
    return harness.services[service]


def test_kill_9_of_a_shield_leaves_nothing_and_the_site_starts_again(harness: Harness) -> None:
    """Every process of the enclave ends with its shield; a new start on the same platform takes the lease over."""
    (platform,) = harness.sites[WAITING].children
    (shield, *_) = sorted(processes_below(platform, "secfl.shield"))
    os.kill(shield, signal.SIGKILL)
    assert harness.services[f"trainer-{WAITING}"].wait(timeout=15) != 0
    soon(lambda: not enclave_processes(harness, WAITING))
    assert harness.services[AGGREGATOR].failure() is None
    again(harness, f"trainer-{WAITING}", WAITING)
    assert live(harness) == {AGGREGATOR, f"trainer-{WAITING}"}


def test_sigterm_stops_a_trainer_in_order_and_the_manager_knows(harness: Harness) -> None:
    """The shield stops its program, reports the exit, and the lease ends at once."""
    service = harness.services[f"trainer-{WAITING}"]
    status = service.client.stop(service.handle, grace=20)
    assert service.phases()[-1]["event"] == "ended"
    assert service.phases()[-1]["status"] == status
    assert live(harness) == {AGGREGATOR}
    soon(lambda: not enclave_processes(harness, WAITING))


def test_sigterm_commits_the_last_state_of_the_aggregator(harness: Harness) -> None:
    """After an orderly stop the writable volume opens again with its last state, and is not released."""
    service = harness.services[AGGREGATOR]
    status = service.client.stop(service.handle, grace=20)
    assert status not in (0, 121, 124)
    assert "released" not in {phase["event"] for phase in service.phases()}
    assert live(harness) == set()
    again(harness, AGGREGATOR, AGGREGATOR)
    assert live(harness) == {AGGREGATOR}


def test_kill_9_of_the_aggregator_in_training_leaves_nothing(harness: Harness) -> None:
    """The trainers' enclaves stay up and refuse nothing; the volume opens again after the crash."""
    for site in SITES:
        if site == WAITING:
            again(harness, f"trainer-{site}", site)
    (platform,) = harness.sites[AGGREGATOR].children
    (shield, *_) = sorted(processes_below(platform, "secfl.shield"))
    os.kill(shield, signal.SIGKILL)
    assert harness.services[AGGREGATOR].wait(timeout=15) != 0
    soon(lambda: not enclave_processes(harness, AGGREGATOR))
    assert enclave_processes(harness, WAITING)
    again(harness, AGGREGATOR, AGGREGATOR)


def test_kill_9_of_a_platform_ends_all_that_runs_on_it(harness: Harness) -> None:
    """Its enclaves end with it; a platform started at the same place takes over the socket and serves again."""
    (platform,) = harness.sites[WAITING].children
    below = enclave_processes(harness, WAITING)
    assert below
    os.kill(platform, signal.SIGKILL)
    os.waitpid(platform, 0)
    harness.sites[WAITING].children.clear()
    soon(lambda: not {pid for pid in below if _alive(pid)})
    assert harness.services[AGGREGATOR].failure() is None
    harness._spawn_platform(harness.sites[WAITING])
    client = harness.services[f"trainer-{WAITING}"].client
    soon(lambda: _answers(client.list))
    again(harness, f"trainer-{WAITING}", WAITING)


def test_kill_9_of_the_manager_loses_nothing_that_was_agreed(harness: Harness) -> None:
    """Started again on its platform it is the manager that the parties pinned, and running services go on with it."""
    assert harness.manager is not None
    (platform,) = harness.sites[MANAGER].children
    before = live(harness)
    for process in processes_below(platform, "secfl.manager"):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    assert harness.manager.wait(timeout=15) != 0
    soon(lambda: not enclave_processes(harness, MANAGER))
    harness.start_manager()
    for name in harness.party_names:
        harness.attest_manager(name)
    assert live(harness) == before
    (row,) = harness.parties[OTHER].attest(harness.policy, [f"trainer-{WAITING}"])
    assert "refused" not in row, row


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _answers(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except UnavailableError:
        return False
    return True


def test_the_federation_still_trains_to_its_end(harness: Harness) -> None:
    """After all these ends and starts both hospitals train, and the study completes."""
    harness.run_service(f"trainer-{OTHER}", OTHER)
    lines = list(harness.parties[OWNER].watch("heart", seconds=60))
    assert [line["phase"] for line in lines[-3:-1]] == ["train", "evaluate"]
    assert lines[-1] == {"exit": 0}
