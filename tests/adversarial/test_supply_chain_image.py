"""Attacks on the supply chain of the runtime image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runtime_world import LOCK, Environment, environment, record
from secfl.errors import ConfigError
from secfl.linux.images import open_image_directory


def _lock(text: str) -> Callable[[Environment], None]:
    def attack(env: Environment) -> None:
        env.lock.write_text(text)

    return attack


def _change_file(env: Environment) -> None:
    (env.packages / "alpha" / "__init__.py").write_text("VALUE = {'x', 'z'}\n")


def _change_data_file(env: Environment) -> None:
    record(env.packages, "alpha", "1.0", {"alpha/table.csv": "1\n"})
    (env.packages / "alpha" / "table.csv").write_text("2\n")


def _link_file(env: Environment) -> None:
    target = env.packages / "beta.py"
    target.rename(env.packages / "elsewhere.py")
    target.symlink_to("elsewhere.py")


def _remove_file(env: Environment) -> None:
    (env.packages / "beta.py").unlink()


def _remove_digest(env: Environment) -> None:
    path = env.packages / "Beta_Lib-2.0.dist-info" / "RECORD"
    path.write_text("beta.py,,\n")


def _install_again(env: Environment) -> None:
    record(env.packages, "beta-lib", "2.0.1", {"beta2.py": ""})


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (_lock(LOCK.replace("==1.0", ">=1.0")), "runtime.lock_unpinned"),
        (_lock("alpha==1.0\n"), "runtime.lock_unpinned"),
        (_lock(LOCK.replace("--hash=sha256:", "--hash=md5:")), "runtime.lock_unpinned"),
        (_lock("--index-url http://evil\n" + LOCK), "runtime.lock_unpinned"),
        (_lock("alpha @ http://evil/alpha.whl\n"), "runtime.lock_unpinned"),
        (_lock(LOCK + LOCK), "runtime.lock_unpinned"),
        (_lock(""), "runtime.lock_unpinned"),
        (_lock(LOCK.replace("python_version", "os_name")), "runtime.lock_marker"),
        (_lock(LOCK.replace("alpha", "alhpa")), "runtime.package_missing"),
        (_lock(LOCK.replace("==1.0", "==1.0.1")), "runtime.package_version"),
        (_install_again, "runtime.package_version"),
        (_change_file, "runtime.package_changed"),
        (_change_data_file, "runtime.package_changed"),
        (_link_file, "runtime.package_changed"),
        (_remove_file, "runtime.package_changed"),
        (_remove_digest, "runtime.package_changed"),
    ],
    ids=[
        "range", "no hash", "weak hash", "other index", "url", "twice", "empty", "unknown marker", "misspelt",
        "other version", "second copy", "changed code", "changed data", "link", "missing file", "no digest",
    ],
)  # fmt: skip
def test_sc_02_what_does_not_fit_the_lock_is_not_built(
    attack: Callable[[Environment], None], code: str, tmp_path: Path
) -> None:
    """Each way to get other code in than the lock names stops the build, and no image is left."""
    env = environment(tmp_path)
    attack(env)
    with pytest.raises(ConfigError) as refusal:
        env.build()
    assert refusal.value.code == code
    assert not (tmp_path / "image").exists()


def test_sc_01_one_changed_byte_of_code_is_another_measurement(tmp_path: Path) -> None:
    """A package that is honestly installed with other content gives other measurements."""
    env = environment(tmp_path)
    first = env.build("first").encode()
    record(env.packages, "Beta_Lib", "2.0", {"beta.py": "def f(a, b=(1, 3)):\n    return a\n"})
    assert env.build("second").encode() != first


def test_fs_07_planted_files_do_not_enter_the_image(tmp_path: Path) -> None:
    """What no RECORD lists, and what would run by lying there, is left out: the image is the same as without."""
    env = environment(tmp_path)
    clean = env.build("clean")
    for path in (
        "sitecustomize.py",
        "evil.pth",
        "alpha/json.py",
        "alpha/__pycache__/__init__.cpython-311.pyc",
        "ssl.py",
    ):
        target = env.packages / path
        target.parent.mkdir(exist_ok=True)
        target.write_text("raise SystemExit('planted')")
    (tmp_path / "lib" / "sitecustomize.py").write_text("raise SystemExit('planted')")
    assert env.build("planted") == clean


def test_sc_07_the_image_holds_no_simulated_platform_no_tests_and_no_scripts(tmp_path: Path) -> None:
    """Nothing in an enclave can sign for itself, and there is nothing else to run than what is started."""
    reference = environment(tmp_path).build()
    image = open_image_directory(tmp_path / "image", root=reference.image_root)
    paths = [entry.path for entry in image.entries]
    assert any(path.endswith("secfl/shield/__init__.py") for path in paths)
    for part in ("secfl/tee/simulated", "secfl/testing", "secfl/cli", ".pth", "lib/python3.11/test"):
        assert not [path for path in paths if part in path]
    assert [path for path in paths if path.startswith("opt/python/bin/")] == ["opt/python/bin/python3"]
