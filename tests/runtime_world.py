"""A small Python environment to build runtime images from, for tests."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from secfl.linux.runtime.build import Reference, build_runtime_image
from secfl.linux.runtime.interpreter import own_interpreter

_HASH = "--hash=sha256:" + "0" * 64
LOCK = f"""alpha==1.0 \\
    {_HASH}
beta-lib==2.0 ; python_version >= '3.8' \\
    {_HASH} \\
    {_HASH}
    # via alpha
"""


@dataclass(frozen=True)
class Environment:
    """Two installed packages, a lock that fits, and a standard library of two modules."""

    base: Path

    @property
    def packages(self) -> Path:
        return self.base / "site-packages"

    @property
    def lock(self) -> Path:
        return self.base / "lock"

    def build(self, name: str = "image") -> Reference:
        interpreter = replace(own_interpreter(), library=self.base / "lib")
        return build_runtime_image(
            self.base / name, site_packages=self.packages, lock_file=self.lock, interpreter=interpreter
        )


def record(packages: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Install a package with a correct RECORD."""
    directory = f"{name}-{version}.dist-info"
    content = files | {f"{directory}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
    lines = []
    for path, text in content.items():
        target = packages / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text)}")
    lines += [f"{directory}/RECORD,,", "../../bin/tool,sha256=x,1"]
    (packages / directory / "RECORD").write_text("\n".join(lines) + "\n")


def environment(base: Path) -> Environment:
    """Make the environment."""
    result = Environment(base)
    (base / "lib" / "test").mkdir(parents=True)
    (base / "lib" / "os.py").write_text("name = 'posix'\n")
    (base / "lib" / "test" / "support.py").write_text("x = 1\n")
    record(
        result.packages, "alpha", "1.0", {"alpha/__init__.py": "VALUE = {'x', 'y'}\n", "alpha.pth": "import alpha\n"}
    )
    record(result.packages, "Beta_Lib", "2.0", {"beta.py": "def f(a, b=(1, 2)):\n    return a\n"})
    result.lock.write_text(LOCK)
    return result
