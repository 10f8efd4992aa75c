"""The shield's entry: first program of an enclave.

Attest, receive, mount, inject, connect, launch, watch. Everything that can fail without the program fails before it
starts. Standard output carries one JSON line for each phase, for the operator; it never holds a secret.
"""

from __future__ import annotations

import os
import signal
import sys

from secfl.errors import SecflError, StateError
from secfl.linux.syscalls import set_dumpable
from secfl.shield.config import MAX_CONFIG, LaunchConfig
from secfl.shield.service import Phases, refuse_start, run_service
from secfl.tee.platform_socket import PlatformSocketAttester

__all__ = ["main"]

_PLATFORM_FD = 3
_CONFIG_FD = 4
NOT_STARTED = 125
"""Exit status when the program was not started."""


def main() -> int:
    """Run one service and return its exit status; 125 when it was not started."""
    set_dumpable(allowed=False)
    phases = Phases(sys.stdout)
    try:
        signal.signal(signal.SIGTERM, refuse_start)
        with os.fdopen(_CONFIG_FD, "rb") as file:
            config = LaunchConfig.decode(file.read(MAX_CONFIG + 1), max_bytes=MAX_CONFIG)
        return run_service(config, PlatformSocketAttester(_PLATFORM_FD), phases)
    except SecflError as error:
        phases.write_error("failed", error)
    except Exception as error:  # noqa: BLE001 - a defect must not end with a status that a program could have
        phases.write_error("failed", StateError("shield.internal", f"the start failed with {type(error).__name__}"))
    return NOT_STARTED


if __name__ == "__main__":
    status = main()
    # Daemon threads may still wait for the manager; nothing is left to be done in them.
    os._exit(status)
