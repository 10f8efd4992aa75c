"""The documented way by hand: exactly the commands of the page, in a directory of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from process_world import nothing_left
from secfl.cli.init import parse_settings
from secfl.cli.study_plan import StudyPlan, draft_policy
from secfl.federation.flower.bundle import build

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "README.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLE = ROOT / "examples" / "heart-disease"
SITES = ("cleveland", "hungary", "switzerland", "long-beach")


def blocks() -> list[str]:
    """All commands of the section; building the image is the first, and has been done where tests run."""
    _, title, section = PAGE.read_text().partition("\n## By hand\n")
    assert title
    found = [match[1] for match in BLOCK.finditer(section.partition("\n## ")[0])]
    assert len(found) > 10
    assert found[0] == "make image\n"
    return found[1:]


def checkout(target: Path) -> Path:
    """What a reader has after cloning and building, with a `run` directory of its own."""
    for name in (".venv", "build", "examples"):
        (target / name).symlink_to(ROOT / name)
    return target


@pytest.mark.slow
@pytest.mark.timeout(320)
def test_the_page_by_hand_does_what_it_says(tmp_path: Path) -> None:
    """Every command of the page ends as written, in order, and its last one leaves no process, mount or socket."""
    if not (ROOT / "build/image/reference.json").exists():
        pytest.skip("the runtime image is not built: make image")
    place = checkout(tmp_path)
    script = "set -eu\n" + "".join(f"echo == block {n} $(date +%T)\n{text}" for n, text in enumerate(blocks()))
    log = place / "output.txt"
    with nothing_left(place), log.open("wb") as output:
        status = subprocess.run(
            ["sh", "-c", script],
            cwd=place,
            env={"PATH": os.environ["PATH"], "HOME": str(place), "LANG": "C.UTF-8", "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=280,
            check=False,
        ).returncode
        text = log.read_text()
        assert status == 0, text[-4000:]
    _expect(
        text,
        r"SIMULATED",
        r"manager at 127\.83\.0\.1:7443: accepted and pinned",
        r"proposal accepted",
        r"heart/aggregator at aggregator: accepted",
        r"heart/trainer-hungary at hungary: accepted",
        r"trainer-long-beach\W+missing\W+secfl run",
        r"appraisal\.roots",
        r"the rogue ended with 125",
        r"round +15 +evaluate +accuracy 0\.\d+ +auc 0\.\d+",
        r"the aggregator ended with 0",
        r"run/hand/model-owner/released/final_model\.npz",
        r"hungary ended with 14",
        r"run/hand/bundle\.json: \d+ entries, all in order",
        r"the changed bundle ended with [12]\d",
        r"manager/platform\.sock: stopped",
    )
    assert not (place / "run/hand/hungary/released").exists()
    for site in SITES:
        assert "attested" in (place / f"run/hand/{site}/run.log").read_text()


def _expect(text: str, *patterns: str) -> None:
    position = 0
    for pattern in patterns:
        found = re.search(pattern, text[position:])
        assert found is not None, f"{pattern} is not in the rest of the output:\n{text[position:][-3000:]}"
        position += found.end()


def test_the_committed_draft_is_what_init_writes() -> None:
    """The example's draft is up to date with the app and with `secfl init`."""
    words = next(line for text in blocks() for line in text.splitlines() if line.startswith("secfl init")).split()
    options: dict[str, list[str]] = {}
    for name, value in zip(words[2::2], words[3::2], strict=True):
        options.setdefault(name, []).append(value)
    plan = StudyPlan(
        study=options["--study"][0],
        owner=options["--owner"][0],
        sites=tuple(options["--site"]),
        aggregator_site="aggregator",
        app_hash=build(EXAMPLE / "app").sha256,
        rounds=int(options["--rounds"][0]),
        run_config=parse_settings(options["--run-config"]),
        node_config=parse_settings(options["--node-config"]),
    )
    assert (EXAMPLE / "heart.policy.draft.yaml").read_text() == draft_policy(plan)


def test_the_app_imports_nothing_of_secfl() -> None:
    """The example's app, its partition and its score never import the package, and the app does not depend on it."""
    sources = [*EXAMPLE.rglob("*.py")]
    assert len(sources) > 4
    assert not [path for path in sources if re.search(r"\bsecfl\b", path.read_text())]
    dependencies = tomllib.loads((EXAMPLE / "app" / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[\[<>=]", name)[0] for name in dependencies} == {"flwr", "numpy"}
    program = (
        f"import sys; sys.path.insert(0, {str(EXAMPLE / 'app')!r}); import heart.client, heart.server;"
        " print([name for name in sys.modules if name.partition('.')[0] == 'secfl'])"
    )
    answer = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
