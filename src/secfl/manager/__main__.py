"""The manager as the first program of its enclave: platform at descriptor 3, launch configuration at descriptor 4.

It starts no process but its verifiers, which it reaps itself.
"""

from __future__ import annotations

import logging
import sys

from secfl.crypto import strict_json
from secfl.errors import SecflError
from secfl.manager.config import read_config
from secfl.manager.run import serve
from secfl.tee.platform_socket import PlatformSocketAttester

__all__ = ["main"]

_PLATFORM = 3
_CONFIG = 4


def main() -> int:
    """Serve; give the exit code.

    The console belongs to the operator: one line when ready, one when it ends with an error, no secret in either.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        serve(read_config(_CONFIG), PlatformSocketAttester(_PLATFORM), ready=_ready)
    except SecflError as error:
        _say({"error": error.code, "message": error.message})
        return error.exit_code
    return 0


def _ready(address: str) -> None:
    _say({"ready": address})


def _say(line: dict[str, str]) -> None:
    sys.stdout.write(strict_json.encode(line).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
