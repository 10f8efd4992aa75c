"""Benchmarks: how fast, how large and how useful, always beside a baseline that was measured in the same run.

Absolute times depend on the machine; the ratios are what is compared from release to release.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The repository."""
# The small studies and networks that the tests build serve here as well.
sys.path.append(str(ROOT / "tests"))
