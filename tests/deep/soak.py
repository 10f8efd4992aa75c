"""A manager under lasting load: services attest, renew, call and are replaced; the manager restarts from its store.

It looks for what only time shows: state that differs after a restart, memory that grows with the load, a lost entry.
"""

from __future__ import annotations

import gc
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from deep.outcome import arguments, report
from manager_world import Heart
from secfl.manager.store import SqliteStore
from secfl.protocol.service import Exit, MailboxAsk
from secfl.testing.deployment import Deployment

__all__ = ["main"]

RESTART_EVERY = 500
MAX_GROWTH_BYTES_A_CYCLE = 16 * 1024
"""The derived state keeps only live leases and the log is on disk; 16 KiB leave room for caches and fragments."""


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def soak(count: int) -> int:
    """Run the cycles; give the growth of memory in KiB."""
    directory = Path(tempfile.mkdtemp(prefix="secfl-deep-"))
    names = ("cleveland", "model-owner", "outsider")
    store = SqliteStore(directory / "manager.sqlite")
    heart = Heart(Deployment(*names, sites=("cleveland", "hub", "other"), store=store))
    deployment = heart.deployment
    start = 0
    try:
        for cycle in range(count):
            deployment.now += 60
            trainer = heart.trainer()
            trainer.attest()
            trainer.renew()
            trainer.call("service/mailbox", MailboxAsk(seen=0, wait=0))
            trainer.call("service/exit", Exit(status=0))
            if cycle % 1000 == 0:
                heart.grant(seconds=86_400 * 2)
            if cycle % RESTART_EVERY == RESTART_EVERY - 1:
                _restart(heart)
            if cycle == min(200, count // 4):
                start = _resident()
        growth = _resident() - start
        if growth > MAX_GROWTH_BYTES_A_CYCLE * count:
            raise AssertionError(f"memory grew by {growth} bytes in {count} cycles")
        return growth // 1024
    finally:
        store.close()
        shutil.rmtree(directory)


def _restart(heart: Heart) -> None:
    deployment = heart.deployment
    before = deployment.manager
    deployment.manager = deployment.reopened()
    if deployment.manager.log.head != before.log.head:
        raise AssertionError("another head after a restart")
    former, present = before.state.studies["heart"], deployment.manager.state.studies["heart"]
    if (present.heads, present.leases, present.secrets) != (former.heads, former.leases, former.secrets):
        raise AssertionError("another state after a restart")


def main() -> int:
    """Run; a broken promise is reported with its traceback."""
    options = arguments(["manager"])
    try:
        growth = soak(options.count)
    except Exception:  # noqa: BLE001 - whatever broke is the result
        options.failures.mkdir(parents=True, exist_ok=True)
        name = f"soak-{options.first}.txt"
        (options.failures / name).write_text(traceback.format_exc())
        return report(0, [name])
    return report(options.count, [], grown_kib=growth)


if __name__ == "__main__":
    sys.exit(main())
