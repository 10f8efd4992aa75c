"""Attacks on the simulated platform: other code under the same name, other questioners, other enclaves' answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secfl.attestation.evidence import Evidence
from secfl.attestation.measurement import sgx_measurement, tdx_measurement
from secfl.crypto.encoding import from_base64url
from secfl.errors import AuthorizationError, ConfigError, SecflError, StateError, UnavailableError
from secfl.linux import packets
from secfl.linux.images import pack_image
from secfl.tee.simulated.client import PlatformClient
from secfl.tee.simulated.process import MACHINE_FILE, PlatformProcess, load_machine
from secfl.tee.simulated.requests import EnclaveCommand
from secfl.tee.verifier import verify
from secfl.testing.enclave_world import (
    ENV,
    EnclaveWorld,
    acting_as,
    build_python_tree,
    pack_python_image,
    python_command,
)
from secfl.volume.image import image_root
from secfl.volume.image_manifest import Mode

ASK = r"""
import json, socket
channel = socket.socket(fileno=3)
def ask(**message):
    channel.send(json.dumps(message, sort_keys=True, separators=(",", ":")).encode())
    return json.loads(channel.recv(1 << 17))
"""


@pytest.fixture(scope="module", params=["root", "user"])
def world(request: pytest.FixtureRequest) -> Iterator[EnclaveWorld]:
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("needs root")
    if request.param == "user" and os.geteuid() != 0 and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this account cannot open /dev/fuse")
    base = Path(tempfile.mkdtemp(prefix="secfl-image-"))
    # What the operator's shell holds must not reach an enclave (EV-31).
    planted = {"LD_PRELOAD": "/host/evil.so", "PYTHONPATH": "/host", "PYTHONSTARTUP": "/host/x.py"}
    os.environ.update(planted)
    try:
        enclaves = EnclaveWorld(pack_python_image(base), as_root=request.param == "root")
    finally:
        for name in planted:
            del os.environ[name]
    yield enclaves
    enclaves.close()
    shutil.rmtree(base)


def _copy_image(world: EnclaveWorld) -> Path:
    copy = Path(tempfile.mkdtemp(dir=world.base, prefix="image-"))
    copy.chmod(0o755)
    for name in ("data", "manifest"):
        shutil.copy(world.image / name, copy / name)
        (copy / name).chmod(0o644)
    return copy


def test_the_measurement_is_of_image_arguments_environment_and_directory(world: EnclaveWorld) -> None:
    """What the platform reports is what anyone computes from the image's root and the command."""
    command = python_command("print('hello')")
    finished = world.run(command)
    root = image_root((world.image / "manifest").read_bytes())
    assert (finished.code, finished.output) == (0, "hello\n")
    assert finished.measurement == tdx_measurement(root, command.argv, command.env, command.cwd)


@pytest.mark.parametrize(
    "changed",
    [
        python_command("print(1) "),
        python_command("print(1)", env=ENV | {"LD_PRELOAD": "/host/evil.so"}),
        python_command("print(1)", env=ENV | {"PYTHONPATH": "/host"}),
        python_command("print(1)", env={}),
        python_command("print(1)", cwd="/host"),
        EnclaveCommand((python_command("").argv[0], "-c", "print(1)"), ENV, "/"),
    ],
    ids=["code", "ld-preload", "pythonpath", "no-environment", "directory", "not-isolated"],
)
def test_ev_31_another_start_gives_another_measurement(world: EnclaveWorld, changed: EnclaveCommand) -> None:
    """A preload, a module path, another directory or argument: the launch works and nobody's policy names it."""
    assert world.run(changed).measurement != world.run(python_command("print(1)")).measurement


def test_ev_31_nothing_of_the_operators_environment_is_inherited(world: EnclaveWorld) -> None:
    """The enclave's environment and descriptors are exactly the measured ones."""
    script = "import os; print(sorted(os.environ)); print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"
    assert world.run(python_command(script)).output.splitlines() == [str(sorted(ENV)), "[0, 1, 2, 3, 4]"]


def test_ev_31_all_code_comes_from_the_image(world: EnclaveWorld) -> None:
    """Every file mapped into the interpreter lies on the image; the host's own libraries do not exist inside."""
    script = (
        "import os, ctypes, ssl\n"
        "image = os.stat('/opt/python/bin/python3').st_dev\n"
        "paths = {line.split()[5] for line in open('/proc/self/maps') if len(line.split()) > 5}\n"
        "print([path for path in paths if path.startswith('/') and os.stat(path).st_dev != image])\n"
        "print(any('libpython' in path or 'python3' in path for path in paths), os.path.exists('/usr'))"
    )
    assert world.run(python_command(script)).output.splitlines() == ["[]", "True False"]


def test_fs_07_files_in_the_hosts_directory_are_not_loaded(world: EnclaveWorld) -> None:
    """A `.pth`, `sitecustomize` or module in /host never runs, and nothing there can be executed."""
    for name in ("evil.pth", "sitecustomize.py", "usercustomize.py", "json.py"):
        (world.host / name).write_text("import os; os.write(1, b'PLANTED')")
    (world.host / "program").write_text("#!/opt/python/bin/python3\nprint('PLANTED')\n")
    (world.host / "program").chmod(0o777)
    script = (
        "import json, os, sys\n"
        "print(json.__file__.startswith('/opt/python/'), any(path.startswith('/host') for path in sys.path))\n"
        "try:\n    os.execv('/host/program', ['x'])\nexcept PermissionError:\n    print('refused')"
    )
    assert world.run(python_command(script)).output.splitlines() == ["True False", "refused"]


def test_fs_07_a_pth_in_the_image_is_another_image(world: EnclaveWorld) -> None:
    """Code planted in the tree before packing runs, but under another measurement."""
    tree = Path(tempfile.mkdtemp(dir=world.base))
    build_python_tree(tree)
    site = next(tree.glob("opt/python/lib/python3*/site-packages"))
    (site / "evil.pth").write_text("import os; os.write(1, b'PLANTED')")
    planted = Path(tempfile.mkdtemp(dir=world.base)) / "image"
    pack_image(tree, planted, mode=Mode.AUTHENTICATED)
    for path in (planted.parent, planted):
        path.chmod(0o755)
    for path in planted.iterdir():
        path.chmod(0o644)
    command = python_command("print(1)")
    evil = world.run(command, image=planted)
    assert "PLANTED" in evil.output
    assert evil.measurement != world.run(command).measurement


def test_sc_01_a_changed_data_byte_never_runs(world: EnclaveWorld) -> None:
    """With the manifest unchanged, every changed chunk is an I/O error: the launch fails or the program does."""
    image = _copy_image(world)
    data = bytearray((image / "data").read_bytes())
    for position in range(0, len(data), 4096):
        data[position] ^= 1
    (image / "data").write_bytes(data)
    with pytest.raises(StateError, match=r"platform\.(exec|launch)_failed"):
        world.run(python_command("print(1)"), image=image)


def test_sc_01_a_truncated_data_file_never_runs(world: EnclaveWorld) -> None:
    """What is missing is an error, never zeros."""
    image = _copy_image(world)
    os.truncate(image / "data", 4096)
    with pytest.raises(StateError, match=r"platform\.(exec|launch)_failed"):
        world.run(python_command("print(1)"), image=image)


def test_sc_01_a_changed_manifest_byte_never_runs_under_the_old_name(world: EnclaveWorld) -> None:
    """A manifest with one byte changed is refused, or launches under another measurement."""
    good = world.run(python_command("print(1)")).measurement
    image = _copy_image(world)
    manifest = (image / "manifest").read_bytes()
    for position in (0, 9, 40, len(manifest) // 2, len(manifest) - 1):
        (image / "manifest").write_bytes(
            manifest[:position] + bytes([manifest[position] ^ 1]) + manifest[position + 1 :]
        )
        try:
            measurement = world.run(python_command("print(1)"), image=image).measurement
        except SecflError:
            continue
        assert measurement != good


def test_ev_35_files_swapped_after_measuring_are_not_used(world: EnclaveWorld) -> None:
    """The enclave keeps running from the files that were opened, whatever their names lead to later."""
    image = _copy_image(world)
    script = (
        "import os, sys; os.write(1, b'u'); sys.stdin; open('/host/go').read(); import sqlite3.dbapi2; print('same')"
    )
    fifo = world.host / "go"
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo, 0o600)
    os.chown(fifo, world.user, world.user)
    _, console = world.start(python_command(script), image=image)
    assert os.read(console, 1) == b"u"
    for name in ("data", "manifest"):
        (image / name).unlink()
        (image / name).write_bytes(b"evil")
    fifo.write_text("go")
    with os.fdopen(console, "rb") as stream:
        assert stream.read() == b"same\n"


def test_ev_35_data_changed_in_place_after_measuring_is_an_error(world: EnclaveWorld) -> None:
    """Bytes changed under a running enclave give EIO when they are read, never other code."""
    image = _copy_image(world)
    script = (
        "import os; os.write(1, b'u'); open('/host/wait').read()\n"
        "try:\n    open('/opt/python/lib/python%d.%d/turtle.py' % __import__('sys').version_info[:2]).read()\n"
        "except OSError as error:\n    print(error.errno)"
    )
    fifo = world.host / "wait"
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo, 0o600)
    os.chown(fifo, world.user, world.user)
    _, console = world.start(python_command(script), image=image)
    assert os.read(console, 1) == b"u"
    # Only a file that is not in use yet: without its libraries the interpreter could not report anything.
    position = (image / "data").read_bytes().index(b"Turtle graphics is a popular way")
    with (image / "data").open("r+b") as stream:
        stream.seek(position)
        stream.write(b"evil")
    fifo.write_text("go")
    with os.fdopen(console, "rb") as output:
        assert output.read() == b"5\n"


def test_quotes_carry_the_measurement_of_the_enclave_that_asks(world: EnclaveWorld) -> None:
    """The verifier accepts the quote under the machine's root, with the report data asked for and the measurement."""
    finished = world.run(python_command(ASK + "print(ask(op='quote', report_data='ab' * 64)['quote'])"))
    evidence = Evidence("tdx", from_base64url(finished.output.strip()))
    now = int(time.time())
    verified = verify(evidence, world.vendor.collateral("tdx", now), world.vendor.anchor(), now)
    assert verified.measurement == finished.measurement
    assert verified.report_data == bytes.fromhex("ab" * 64)


def test_an_enclave_cannot_choose_its_measurement(world: EnclaveWorld) -> None:
    """A question with more members, another operation, a wrong size or no object gets an error and no quote."""
    script = (
        ASK + "bad = [dict(op='quote', report_data='ab' * 64, measurement='00' * 48),"
        " dict(op='quote', report_data='ab' * 63), dict(op='quote', report_data=7), dict(op='sign'),"
        " dict(op='seal_key', label=''),"
        " dict(op='seal_key', label='x' * 300), dict(op='launch', argv=['/a'], env={}, cwd='/')]\n"
        "print([sorted(ask(**question)) for question in bad])"
    )
    answers = world.run(python_command(script)).output
    assert answers == str([["error"]] * 7) + "\n"


def test_the_sgx_flavour_measures_and_quotes_as_well(world: EnclaveWorld) -> None:
    """A platform of the other kind gives a quote of that kind over its 32-byte measurement."""
    machine = EnclaveWorld(world.image, as_root=world.keys.stat().st_uid == 0, kind="sgx")
    try:
        command = python_command(ASK + "print(ask(op='quote', report_data='cd' * 64)['quote'], ask(op='info')['kind'])")
        finished = machine.run(command)
        quote, kind = finished.output.split()
        root, now = image_root((world.image / "manifest").read_bytes()), int(time.time())
        evidence = Evidence(kind, from_base64url(quote))
        verified = verify(evidence, machine.vendor.collateral("sgx", now), machine.vendor.anchor(), now)
        assert verified.measurement == sgx_measurement(root, command.argv, command.env, command.cwd)
        assert verified.report_data == bytes.fromhex("cd" * 64)
    finally:
        machine.close()


def test_sealing_keys_belong_to_one_measurement(world: EnclaveWorld) -> None:
    """The same launch gets the same key again, another label or other code another key."""
    script = ASK + "print(ask(op='seal_key', label='a')['key'], ask(op='seal_key', label='b')['key'])"
    first, again = (world.run(python_command(script)).output.split() for _ in range(2))
    other = world.run(python_command(script + "#")).output.split()
    assert first == again
    assert len({*first, *other}) == 4


def test_sc_17_an_enclave_cannot_reach_the_platform(world: EnclaveWorld) -> None:
    """It sees one process, no key directory, no platform socket, and not the host's files."""
    script = (
        "import os; print([name for name in os.listdir('/proc') if name.isdigit()], os.getpid(), os.getuid(),"
        f" os.path.exists({str(world.base)!r}), os.path.exists('/proc/1/root/tmp/secfl'), sorted(os.listdir('/tmp')))"
    )
    assert world.run(python_command(script)).output == "['1'] 1 0 False False []\n"


def test_config_is_delivered_and_cannot_be_changed(world: EnclaveWorld) -> None:
    """Descriptor 4 holds the given bytes, sealed."""
    script = (
        "import os; data = os.read(4, 100); print(data)\n"
        "try:\n    os.pwrite(4, b'x', 0)\nexcept PermissionError:\n    print('sealed')"
    )
    assert world.run(python_command(script), config=b'{"a":1}').output == "b'{\"a\":1}'\nsealed\n"


def test_strangers_cannot_ask(world: EnclaveWorld) -> None:
    """A third user is told that it may not ask, even when the socket's mode were wrong."""
    if os.geteuid() != 0:
        pytest.skip("needs root to act as another user")
    world.socket_path.chmod(0o666)
    try:
        with acting_as(61_998), pytest.raises(AuthorizationError, match=r"platform\.not_allowed"):
            world.client.list()
    finally:
        world.socket_path.chmod(0o600)


def test_a_host_directory_of_somebody_else_is_refused(world: EnclaveWorld) -> None:
    """The requester cannot have the platform bind what does not belong to the site, nor the platform's own keys."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make another user's directory")
    foreign = Path(tempfile.mkdtemp(dir=world.base))
    foreign.chmod(0o755)
    for refused in (foreign, world.base, Path("/etc")):
        with acting_as(world.user), pytest.raises(ConfigError, match=r"platform\.host_dir_refused"):
            world.client.launch(world.image, python_command(""), config=b"{}", host_dir=refused, stdout=1, stderr=2)


def test_the_platforms_own_directory_is_never_bound(world: EnclaveWorld) -> None:
    """Also where one user owns both, the keys do not become visible inside."""
    if world.keys.stat().st_uid != world.user:
        pytest.skip("another user owns the keys")
    with acting_as(world.user), pytest.raises(ConfigError, match=r"platform\.host_dir_refused"):
        world.client.launch(world.image, python_command(""), config=b"{}", host_dir=world.keys, stdout=1, stderr=2)


def test_pipes_and_oversized_configurations_are_refused(world: EnclaveWorld) -> None:
    """An image that is no regular file would stop the platform; a configuration has a limit."""
    image = _copy_image(world)
    (image / "manifest").unlink()
    os.mkfifo(image / "manifest", 0o644)
    with pytest.raises(ConfigError, match=r"platform\.image_refused"):
        world.start(python_command(""), image=image)
    with pytest.raises(ConfigError, match=r"platform\.config_refused"):
        world.start(python_command(""), config=b"x" * ((1 << 20) + 1))


def test_malformed_requests_do_not_stop_the_platform(world: EnclaveWorld) -> None:
    """Nonsense, half requests and vanishing requesters leave it serving."""
    for data in (b"", b"x", b"[]", b'{"op":"launch"}', b'{"op":"wait","id":"00"}', b"{" * 1000, b"\xff" * 60_000):
        with acting_as(world.user), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(world.socket_path))
            connection.send(data)
    with acting_as(world.user):
        assert isinstance(world.client.list(), list)
    assert world.run(python_command("print(1)")).code == 0


def test_unknown_enclaves_are_named(world: EnclaveWorld) -> None:
    """Waiting for or stopping what does not exist is an error, not silence."""
    with acting_as(world.user), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(world.socket_path))
        for operation in ({"op": "wait", "id": "0" * 32}, {"op": "stop", "id": "0" * 32, "kill": True}):
            packets.send(connection, operation)
            answer = packets.receive(connection)
            assert answer is not None
            assert answer.message["error"] == "platform.unknown_enclave"


@pytest.mark.parametrize(("script", "code"), [("raise SystemExit(9)", 9), ("import os; os.kill(1, 9)", 0)])
def test_exit_codes_pass_through(world: EnclaveWorld, script: str, code: int) -> None:
    """An enclave's code is the handle's; it cannot kill its own first process."""
    assert world.run(python_command(script)).code == code


def test_an_enclave_is_asked_then_ended(world: EnclaveWorld) -> None:
    """Stop sends SIGTERM, which a handler turns into a code; without one, SIGKILL follows."""
    ready = "import os, signal, sys, time\n{}\nos.write(1, b'u'); time.sleep(60)"
    for setup, code in (("signal.signal(15, lambda *_: sys.exit(3))", 3), ("", 137)):
        handle, console = world.start(python_command(ready.format(setup)))
        assert os.read(console, 1) == b"u"
        with acting_as(world.user):
            assert world.client.stop(handle, grace=5 if setup else 0.1) == code
        os.close(console)


def test_a_missing_entry_program_is_an_error(world: EnclaveWorld) -> None:
    """A launch that cannot execute raises instead of returning a handle."""
    with pytest.raises(StateError, match=r"platform\.exec_failed"):
        world.run(EnclaveCommand(("/absent",), {}, "/"))


def test_kill_9_of_the_platform_leaves_nothing(world: EnclaveWorld) -> None:
    """Every enclave ends with the platform, and the host sees no mount."""
    other = EnclaveWorld(world.image, as_root=world.keys.stat().st_uid == 0)
    try:
        script = "import os, time; os.fork(); os.write(1, b'u'); time.sleep(60)"
        _, console = other.start(python_command(script))
        assert os.read(console, 1) + os.read(console, 1) == b"uu"
        started = time.monotonic()
        os.kill(other.platform, signal.SIGKILL)
        with os.fdopen(console, "rb") as stream:
            # The pipe ends when the last process that holds it is gone.
            assert stream.read() == b""
        assert time.monotonic() - started < 0.5, "100 ms on a quiet machine"
        assert "secfl-image" not in Path("/proc/self/mountinfo").read_text()
    finally:
        other.close()


def test_sc_10_an_open_key_directory_is_refused(tmp_path: Path, world: EnclaveWorld) -> None:
    """Keys that others could read are not used."""
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o750)
    (directory / MACHINE_FILE).write_bytes(world.machine.encode())
    with pytest.raises(ConfigError, match=r"platform\.directory_open"):
        load_machine(directory)
    directory.chmod(0o700)
    assert load_machine(directory).platform_id == world.machine.platform_id
    (directory / MACHINE_FILE).write_bytes(b"{}")
    with pytest.raises(SecflError, match=r"simulated\.machine_state"):
        load_machine(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_platform_of_root_needs_the_sites_user(tmp_path: Path) -> None:
    """The machine's root never becomes an enclave's user."""
    for user in (None, 0):
        with pytest.raises(ConfigError, match=r"platform\.site_user"):
            PlatformProcess(tmp_path, kind="tdx", socket_path=tmp_path / "s", site_user=user)


def test_an_absent_platform_is_unavailable(tmp_path: Path) -> None:
    """The client says that nobody answers, which is worth a retry."""
    with pytest.raises(UnavailableError, match=r"platform\.unavailable"):
        PlatformClient(tmp_path / "absent").list()


def test_the_platform_announces_that_it_is_simulated(world: EnclaveWorld) -> None:
    """Its one line says SIMULATED and names the machine."""
    text = (world.socket_path.parent / "ready").read_text()
    assert text.startswith("SIMULATED")
    assert world.machine.platform_id.hex() in text
    assert json.dumps(text).count("\\n") == 0
