"""The demonstration, as `make demo` runs it, with fewer rounds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from process_world import nothing_left

ROOT = Path(__file__).parents[2]
STEPS = 11
REFUSED = (
    "rogue site, one line changed: appraisal.roots",
    "stale policy: appraisal.policy_not_in_force",
    "recorded quote: binding.mismatch",
    "swapped trainer: ",
    "relayed answer: ",
    "lying manager, other TLS key: ",
    "lying manager, other sealing key: ",
    "operator: ",
    "administrator: ",
    "bundle with one byte changed: ",
)


def secfl(*arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run the command line in the checkout."""
    command = [sys.executable, "-m", "secfl", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("tee", "rounds"), [("tdx", 2), ("sgx", 1)])
def test_the_demonstration_tells_the_whole_story(tmp_path: Path, tee: str, rounds: int) -> None:
    """All steps come in order, every rogue is refused, both runs are equal, report and bundle are whole."""
    if not (ROOT / "build/image/reference.json").exists():
        pytest.skip("the runtime image is not built: make image")
    out = tmp_path / "out"
    with nothing_left(tmp_path):
        done = secfl("demo", "--rounds", str(rounds), "--tee", tee, "--out", str(out), seconds=200)
    text = done.stdout
    assert done.returncode == 0, text[-3000:] + done.stderr[-3000:]
    steps = [int(number) for number in re.findall(r"^ ?(\d+) [a-z]", text, re.MULTILINE)]
    assert steps == list(range(1, STEPS + 1))
    assert text.index("SIMULATED") < text.index("\n 2 ")
    for line in REFUSED:
        assert f"refused {line}" in text
    assert "equal bit for bit" in text
    assert (out / "final_model.npz").stat().st_size > 0
    _report(out / "report.html")
    _audit(out, tmp_path)


def _report(path: Path) -> None:
    page = path.read_text()
    for part in ("SIMULATED", "appraisal.roots", "appraisal.policy_not_in_force", "trainer-cleveland", "<svg"):
        assert part in page, part
    for outside in ('src="http', 'href="http', "@import", "url(http"):
        assert outside not in page


def _audit(out: Path, scratch: Path) -> None:
    pin = ["--pin", str(out / "manager-pin.json")]
    good = secfl("audit", "verify", str(out / "bundle.json"), *pin, "--json", seconds=60)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["entries"] > 10
    bundle = (out / "bundle.json").read_bytes()
    codes = set()
    for part in (4, 2, 1.2):
        changed = bytearray(bundle)
        changed[int(len(bundle) / part)] ^= 1
        (scratch / "changed.json").write_bytes(changed)
        codes.add(secfl("audit", "verify", str(scratch / "changed.json"), *pin, seconds=60).returncode)
    # 10 and 11 when the bundle cannot even be read, else a code of the audit.
    assert codes <= {10, 11, *range(20, 29)}, codes
