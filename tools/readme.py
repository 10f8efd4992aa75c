"""Executes the commands of README.md, so that what a reader copies works.

Each fenced `sh` block runs in a shell of its own, in order, in this checkout, as a reader would, with a directory of
its own for temporary files. It is not run in a copy: set-up in a copy would bind the virtual environment to it. A block
after `<!-- not run: reason -->` is left out and its reason printed; directly below a section's title the mark holds for
the whole section. A first failing command fails its block. Whatever a block leaves running is ended with it: everything
runs in a process namespace where there is one, and in a session that is killed as a whole anyway.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
"""A process namespace whose first process takes all others with it; needs root."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its line, its commands, and why it is not run."""

    line: int
    script: str
    reason: str


def blocks(text: str) -> list[Block]:
    """Every `sh` block of a page."""
    found: list[Block] = []
    lines = text.splitlines()
    start, section = -1, ""
    for number, line in enumerate(lines):
        if start < 0 and line.startswith("## "):
            section = _mark(next((after for after in lines[number + 1 :] if after.strip()), ""))
        if start < 0 and line.strip() == "```sh":
            start = number
        elif start >= 0 and line.strip() == "```":
            above = next((before for before in reversed(lines[:start]) if before.strip()), "")
            found.append(Block(start + 1, "\n".join(lines[start + 1 : number]) + "\n", section or _mark(above)))
            start = -1
    if start >= 0:
        raise SystemExit(f"README.md:{start + 1}: the block has no end")
    return found


def _mark(line: str) -> str:
    match = NOT_RUN.fullmatch(line.strip())
    return match[1] if match else ""


def _namespace() -> list[str]:
    if os.geteuid() == 0 and shutil.which("unshare"):
        probe = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
        return NAMESPACE if probe.returncode == 0 else []
    return []


def _run(block: Block, temporary: Path) -> bool:
    environment = os.environ | {"TMPDIR": str(temporary), "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}
    command = [*_namespace(), "sh", "-eu", "-c", block.script]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        status = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        status = -1
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing was left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    took = time.monotonic() - started
    said = {0: "ok", -1: f"no end within {SECONDS} s"}.get(status, f"exit status {status}")
    print(f"README.md:{block.line}: {said} in {took:.1f} s", flush=True)
    return status == 0


def main() -> int:
    """Run all blocks; stop at the first that fails, since later ones build on it."""
    found = blocks((ROOT / "README.md").read_text())
    if not any(not block.reason for block in found):
        print("error: README.md has no command that can be run")
        return 1
    with tempfile.TemporaryDirectory(prefix="secfl-readme-") as name:
        temporary = Path(name)
        temporary.chmod(0o711)  # the users of the demo's sites pass through
        for block in found:
            if block.reason:
                print(f"README.md:{block.line}: not run: {block.reason}")
            elif not _run(block, temporary):
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
