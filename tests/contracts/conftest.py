"""What the contract tests of the launcher share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secfl.linux.namespaces import NetworkNamespace, create_network
from secfl.testing.enclave_world import build_python_tree


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """A root file system with an interpreter, on a path that an ordinary user can reach."""
    base = Path(tempfile.mkdtemp(prefix="secfl-tree-"))
    base.chmod(0o755)
    build_python_tree(base)
    yield base
    shutil.rmtree(base)


@pytest.fixture(scope="module")
def network() -> Iterator[NetworkNamespace]:
    """A private network."""
    with create_network() as made:
        yield made
