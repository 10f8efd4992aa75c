"""The runtime image's parts: lock, ELF files, bytecode, measurement, the whole build."""

from __future__ import annotations

import json
import marshal
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime_world import environment
from secfl.attestation.measurement import sgx_measurement, tdx_measurement
from secfl.crypto.transcript import digest256
from secfl.errors import ConfigError
from secfl.linux.images import open_image_directory
from secfl.linux.runtime.build import ENTRYPOINTS, ENTRYPOINTS_PATH
from secfl.linux.runtime.bytecode import compile_source
from secfl.linux.runtime.elf import read_elf
from secfl.linux.runtime.markers import marker_applies


def test_two_builds_are_identical(tmp_path: Path) -> None:
    """Same inputs, same bytes, same reference values."""
    env = environment(tmp_path)
    assert env.build("one") == env.build("two")
    for name in ("data", "manifest", "reference.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_reference_states_root_measurements_and_packages(tmp_path: Path) -> None:
    """`reference.json` holds what a policy needs, computed from what the image says it starts."""
    reference = environment(tmp_path).build()
    stated = json.loads((tmp_path / "image" / "reference.json").read_bytes())
    image = open_image_directory(tmp_path / "image", root=bytes.fromhex(stated["image_root"]))
    entry = image.lookup(ENTRYPOINTS_PATH)
    inside = json.loads(image.read(entry, 0, entry.size))
    assert inside.keys() == stated["entrypoints"].keys() == {"manager", "shield"}
    for name, start in inside.items():
        measured = tdx_measurement(reference.image_root, start["argv"], start["env"], start["cwd"])
        assert stated["entrypoints"][name]["measurements"]["tdx"] == measured.hex()
    assert stated["packages"] == {"alpha": "1.0", "beta-lib": "2.0"}


def test_the_measurement_covers_each_of_its_fields() -> None:
    """Another root, argument, variable or directory is another measurement, and fields do not run into each other."""
    start = ENTRYPOINTS["shield"]
    root, env = digest256("x"), {"A": "1"}
    base = sgx_measurement(root, start.argv, env, "/")
    others = [
        sgx_measurement(digest256("y"), start.argv, env, "/"),
        sgx_measurement(root, [*start.argv, ""], env, "/"),
        sgx_measurement(root, start.argv, {"A": "2"}, "/"),
        sgx_measurement(root, start.argv, env, "/tmp"),
        sgx_measurement(root, ["a b"], env, "/"),
        sgx_measurement(root, ["a", "b"], env, "/"),
    ]
    assert len({base, *others}) == 7
    assert (len(base), len(tdx_measurement(root, start.argv, env, "/"))) == (32, 48)


def test_bytecode_does_not_depend_on_what_ran_before() -> None:
    """Another process with another hash seed compiles to the same bytes, and they load as the same code."""
    source = b"import os\nX = {'a', 'b', 'c'}\ndef f(x):\n    return x in {'one', 'two', 'three', 4}\n"
    ours = compile_source(source, "/opt/x.py")
    script = (
        "import sys; from secfl.linux.runtime.bytecode import compile_source;"
        f"sys.stdout.write(compile_source({source!r}, '/opt/x.py').hex())"
    )
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        output = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, check=True).stdout
        assert bytes.fromhex(output.decode()) == ours
    assert int.from_bytes(ours[4:8], "little") == 1, "unchecked, by hash"
    assert marshal.loads(ours[16:]) == compile(source, "/opt/x.py", "exec", dont_inherit=True)


def test_a_file_for_another_python_is_not_compiled() -> None:
    """Templates and old sources are copied as data."""
    assert compile_source(b"print 'x'", "/x.py") == b""


def test_the_elf_reader_reads_the_running_program() -> None:
    """The interpreter names its loader and the C library or its own one."""
    elf = read_elf(Path(sys.executable).resolve())
    assert elf.interpreter is not None
    assert elf.interpreter.startswith("/lib")
    assert any(name.startswith(("libc.so", "libpython")) for name in elf.needed)


def test_a_cut_elf_file_is_refused(tmp_path: Path) -> None:
    """Cut anywhere in its tables, an ELF file is an error and never a file without needs."""
    whole = Path(sys.executable).resolve().read_bytes()
    path = tmp_path / "cut"
    for size in (0, 7, 63, 64, 100, 700):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"runtime\.elf_malformed"):
            read_elf(path)


@pytest.mark.parametrize(
    ("marker", "applies"),
    [
        ("python_full_version >= '3.11'", True),
        ("python_full_version < '3.12' and sys_platform == 'win32'", False),
        ("sys_platform != 'win32' and implementation_name != 'PyPy'", True),
        ("python_version == '3.1'", False),
    ],
)
def test_markers_are_evaluated(marker: str, *, applies: bool) -> None:
    """Versions compare as numbers, the rest as text."""
    assert marker_applies(marker) is applies


@pytest.mark.parametrize(
    "marker", ["", "os_name == 'posix'", "sys_platform in 'linux'", "a or b", "python_version > 'x'"]
)
def test_unknown_markers_are_refused(marker: str) -> None:
    """What is not understood is an error."""
    with pytest.raises(ConfigError, match=r"runtime\.lock_marker"):
        marker_applies(marker)
