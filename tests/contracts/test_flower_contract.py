"""What SECFL relies on inside the one Flower release that it is pinned to."""

from __future__ import annotations

import base64
import hashlib
import inspect
import re
import shutil
from importlib import metadata
from pathlib import Path

import flwr
import pytest
from fastapi import APIRouter, FastAPI
from flwr.app import Message
from flwr.app.message import array
from flwr.cli import build as flower_build
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.serverapp import Grid
from flwr.supercore import constant
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, generate_key_pairs, public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.routers.runtime import create_runtime_router
from flwr.supercore.superexec import run_superexec
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.superlink.routers.control import router as control_router
from flwr.superlink.routers.fleet.router import router as fleet_router
from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient

from secfl.errors import EngineError
from secfl.federation.flower import contract, control, executor, runtime, supervisor, wire
from secfl.federation.flower.bundle import build
from secfl.federation.flower.grid import LeasedGrid
from secfl.federation.flower.launch import (
    AggregatorLaunch,
    TrainerLaunch,
    gateway_rules,
    node_key_header,
    superlink_arguments,
)
from secfl.federation.flower.peers import public_key_pem
from secfl.federation.flower.plain_keys import make_keys

APP = Path(__file__).parents[2] / "examples" / "heart-disease" / "app"


def routes(router: APIRouter) -> set[str]:
    """List the paths that a router serves."""
    application = FastAPI()
    application.include_router(router)
    return set(application.openapi()["paths"])


def used_paths(module: object) -> set[str]:
    """List the API paths that one of our modules calls."""
    return set(re.findall(r'"(/v1/[a-z/-]+)"', inspect.getsource(module)))  # type: ignore[arg-type]


def test_the_installed_files_are_the_wheels() -> None:
    """The pinned version is installed and every file of it has the hash of the wheel's RECORD."""
    assert contract.check_version() == contract.FLOWER_VERSION == metadata.version("flwr")
    assert contract.check_files() > 500


@pytest.mark.parametrize("defect", ["version", "changed", "added", "missing", "no-record", "none"])
def test_another_installation_is_refused(tmp_path: Path, defect: str) -> None:
    """Another version, and a changed, added or missing file, each give an error of their own kind."""
    source = Path(flwr.__file__).parent
    package, information = tmp_path / "flwr", tmp_path / "flwr-1.41.0.dist-info"
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(source.parent / information.name, information)
    target = package / "serverapp" / "strategy" / "fedavg.py"
    if defect == "version":
        meta = information / "METADATA"
        meta.write_text(meta.read_text().replace("Version: 1.41.0", "Version: 1.42.0", 1))
    elif defect == "changed":
        target.write_text(target.read_text() + "\n")
    elif defect == "added":
        (package / "serverapp" / "numpy.py").write_text("")
    elif defect == "missing":
        target.unlink()
    elif defect == "no-record":
        (information / "RECORD").unlink()
    else:
        shutil.rmtree(information)
    codes = {"none": "engine.flower_missing", "version": "engine.flower_version", "no-record": "engine.flower_record"}
    with pytest.raises(EngineError) as caught:
        contract.check_files(tmp_path)
    assert caught.value.code == codes.get(defect, "engine.flower_modified")


def test_every_path_that_we_call_is_served() -> None:
    """The Runtime, Control and Fleet routes exist under the names that executor, supervisor and gateway use."""
    assert used_paths(runtime)
    assert used_paths(runtime) <= routes(create_runtime_router("SuperLink"))
    assert used_paths(control)
    assert used_paths(control) <= routes(control_router)
    rules = gateway_rules()
    allowed = {text.removeprefix("POST ") for text in rules.allow}
    client = set(re.findall(r'path="(/v1/fleet/[a-z-]+)"', inspect.getsource(FleetHttpClient)))
    registration = {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert allowed == client - registration == routes(fleet_router) - registration
    assert set(rules.hold_seconds) | set(rules.linger_milliseconds) <= allowed


def test_the_secret_protects_the_method_that_we_sign() -> None:
    """Flower checks the executor's proof on exactly the method name that we sign."""
    assert {runtime._ACQUIRE_METHOD} == run_superexec._SUPEREXEC_AUTH_METHODS
    assert wire._MEDIA_TYPE == PROTOBUF_MEDIA_TYPE


def test_an_empty_pull_has_no_body() -> None:
    """Nothing to deliver is an empty body: what the hold looks at."""
    assert PullMessagesResponse().SerializeToString() == b""


def test_the_node_key_header_is_the_one_that_flower_sends(tmp_path: Path) -> None:
    """Header name and value for a key are Flower's, whether the key comes as OpenSSH text or PEM."""
    assert gateway_rules().key_header == constant.FLEET_HTTP_PUBLIC_KEY_HEADER
    keys = make_keys(tmp_path, ["one"])
    pem = public_key_pem(keys.node_public["one"])
    assert public_key_to_bytes(bytes_to_public_key(pem)) == pem
    assert node_key_header(pem) == base64.b64encode(pem).decode()
    assert public_key_to_bytes(generate_key_pairs()[1]).startswith(b"-----BEGIN PUBLIC KEY-----")


def test_flower_still_waits_where_the_gateway_helps() -> None:
    """The sleeps that hold and linger shorten, and the log line that wakes the executor, are in the SuperNode."""
    source = inspect.getsource(start_client_internal)
    assert "time.sleep(3)" in source
    assert source.count("time.sleep(0.5)") == 2
    assert '"Receiving: %s message (ID: %s)"' in source
    assert supervisor._ARRIVAL.search("INFO :      Receiving: train message (ID: 0a1b)")
    hold = max(gateway_rules().hold_seconds.values())
    assert hold < inspect.signature(FleetHttpClient.__init__).parameters["timeout"].default == 30.0


def test_command_lines_are_accepted_and_safe(tmp_path: Path) -> None:
    """Flower's own parsers take our arguments, and read them as loopback, authenticated, in memory, install-free."""
    launch = AggregatorLaunch(
        app_directory="/app", app_hash="00" * 32, run_config={}, sites=("a",), root_certificate="/r", certificate="/c",
        private_key="/k", work_directory="/w",
    )  # fmt: skip
    secret = str(tmp_path / "secret")
    superlink = _parse_args_run_superlink().parse_args(superlink_arguments(launch, secret))
    assert (superlink.host, superlink.port, superlink.isolation) == ("127.0.0.1", 8000, "process")
    assert superlink.enable_supernode_auth
    assert not superlink.runtime_dependency_install
    assert not superlink.insecure
    assert superlink.database == constant.FLWR_IN_MEMORY_DB_NAME
    assert superlink.superexec_auth_secret_file == secret
    trainer = TrainerLaunch(
        app_directory="/app", app_hash="00" * 32, run_config={}, node_config={"data-path": "/data/a b.npz"},
        root_certificate="/r", node_key="/n", sidecar_port=9001, work_directory="/w",
    )  # fmt: skip
    supernode = _parse_args_run_supernode().parse_args(trainer.supernode_arguments(secret))
    assert (supernode.superlink, supernode.host, supernode.isolation) == ("127.0.0.1:9001", "127.0.0.1", "process")
    assert not supernode.insecure
    assert not supernode.runtime_dependency_install
    assert supernode.auth_supernode_private_key == "/n"


def test_the_bundle_is_flowers_own() -> None:
    """Our bundle of an app is byte for byte what Flower builds, twice."""
    first, second = build(APP), build(APP)
    assert first == second
    assert first.content == flower_build.build_fab_from_disk(APP)
    assert first.sha256 == hashlib.sha256(first.content).hexdigest()


def test_the_grid_has_flowers_interface() -> None:
    """Nothing in Flower's abstract grid is left out."""
    assert issubclass(LeasedGrid, Grid)
    assert not LeasedGrid.__abstractmethods__


def test_heartbeats_are_sooner_than_a_claim_expires() -> None:
    """Several beats fit into the time after which Flower drops a silent claim."""
    assert 3 * executor._HEARTBEAT_SECONDS < HEARTBEAT_DEFAULT_INTERVAL


def test_fl_20_arrays_are_read_without_pickle() -> None:
    """Flower reads the arrays of a reply with pickling off, and inflates no class beyond its own few."""
    assert "allow_pickle=False" in inspect.getsource(array.Array.numpy)
    from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry

    assert set(inflatable_class_registry) == {
        "Array", "ArrayChunk", "ArrayRecord", "ConfigRecord", "Message", "MetricRecord", "RecordDict",
    }  # fmt: skip
    assert inflatable_class_registry["Message"] is Message
