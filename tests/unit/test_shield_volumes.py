"""Volumes of a shield: the host's directories, the manager as keeper, and the release volume."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from secfl.errors import ConfigError, EncodingError, FreshnessError, SecflError, UnavailableError, VerificationError
from secfl.linux.images import open_image_directory, pack_image
from secfl.party.receive import unpack
from secfl.protocol.party import release_context
from secfl.protocol.payload import MountedVolume
from secfl.protocol.service import Exit, Progress, RootUpdate
from secfl.shield.enrolment import Enrolment
from secfl.shield.release import pack_volume, release_volumes
from secfl.shield.volumes import MountedSet, VolumeKeeper, Writable, host_path, image_roots, volume_id
from secfl.testing.volume_world import MemoryKeeper, memory_files
from secfl.volume.image_manifest import Mode
from secfl.volume.journal import NO_TAG
from secfl.volume.records import DIRECTORY, FILE, ROOT_INODE, SYMLINK
from secfl.volume.storage import Root
from secfl.volume.tree import NewNode
from secfl.volume.volume import Volume, create_volume, open_volume
from shield_world import Shields, Transport

KEY = b"k" * 32
IDENTITY = b"i" * 16


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host directory with one packed image."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "records").write_bytes(b"rows")
    folder = tmp_path / "host"
    (folder / "volumes").mkdir(parents=True)
    pack_image(source, folder / "volumes" / "cohort", mode=Mode.ENCRYPTED, key=KEY)
    return folder


class Heads:
    """The manager's side of roots: compare and swap; `refuse` answers in its place."""

    def __init__(self, refuse: SecflError | None = None) -> None:
        self.heads: dict[str, tuple[int, bytes]] = {}
        self.refuse = refuse

    def push(self, volume: str, sequence: int, previous: bytes | None, tag: bytes) -> None:
        """Move a head."""
        if self.refuse is not None:
            raise self.refuse
        last = self.heads.get(volume)
        if (sequence, tag) == last:
            return
        if (sequence, previous) != ((last[0] + 1, last[1]) if last else (1, None)):
            raise FreshnessError("volume.stale_head", "the update does not follow the volume's head")
        self.heads[volume] = (sequence, tag)


def mounted(host: Path, heads: Heads | None = None, **directories: str) -> MountedSet:
    return MountedSet("11" * 16, "heart", directories, (heads or Heads()).push, host=host)


def image(host: Path, **changes: object) -> MountedVolume:
    root = image_roots({"cohort": "volumes/cohort"}, host=host)["cohort"]
    values = {"name": "cohort", "path": "/data", "writable": False, "key": KEY, "root": root.hex(), "sequence": 0}
    return MountedVolume.model_validate(values | {"release": False} | changes)


def model(heads: Heads | None = None, **changes: object) -> MountedVolume:
    sequence, tag = (heads.heads if heads else {}).get("model", (0, None))
    values = {"name": "model", "path": "/model", "writable": True, "key": KEY, "sequence": sequence, "release": True}
    return MountedVolume.model_validate(values | {"root": tag.hex() if tag else None} | changes)


def test_an_image_opens_with_the_root_and_key_of_the_manager(host: Path) -> None:
    """It becomes one read-only mount point with one server."""
    made = mounted(host, cohort="volumes/cohort")
    made.add(image(host))
    assert [(point.path, point.read_only) for point in made.points] == [("/data", True)]
    assert len(made.servers) == 1


def test_fl_02_an_image_that_was_swapped_after_the_evidence_is_refused(host: Path, tmp_path: Path) -> None:
    """The manager answers for the root in the evidence; other files under the same name do not open."""
    attested = image(host)
    (tmp_path / "source" / "records").write_bytes(b"other rows")
    shutil.rmtree(host / "volumes" / "cohort")
    pack_image(tmp_path / "source", host / "volumes" / "cohort", mode=Mode.ENCRYPTED, key=KEY)
    with pytest.raises(VerificationError, match=r"volume\.root_mismatch"):
        mounted(host, cohort="volumes/cohort").add(attested)


def test_a_wrong_key_or_a_missing_root_is_refused(host: Path) -> None:
    """Without exactly what the manager has to give, nothing is mounted."""
    made = mounted(host, cohort="volumes/cohort")
    with pytest.raises(VerificationError):
        made.add(image(host, key=b"x" * 32))
    with pytest.raises(VerificationError, match=r"volume\.no_root"):
        made.add(image(host, root=None))
    with pytest.raises(VerificationError, match=r"volume\.no_key"):
        mounted(host, model="volumes/model").add(model(key=None))
    assert made.points == []


def test_fs_10_an_undeclared_directory_is_not_mounted(host: Path) -> None:
    """What the operator offers beyond the payload stays outside; what is missing stops the start."""
    made = mounted(host, cohort="volumes/cohort", surplus="volumes/cohort")
    made.add(image(host))
    assert len(made.points) == 1
    with pytest.raises(ConfigError, match=r"volume\.missing"):
        made.add(model())


@pytest.mark.parametrize(
    "directory", ["", "/etc", "..", "volumes/../..", "volumes/..", "../host/volumes", "out", "out/x", "a\0b"]
)
def test_fs_08_a_directory_outside_is_refused(host: Path, tmp_path: Path, directory: str) -> None:
    """Absolute paths, steps up and links that lead out are refused, for images and for writable volumes."""
    (host / "out").symlink_to(tmp_path / "source")
    for use in (
        lambda: host_path(directory, host=host),
        lambda: mounted(host, model=directory).add(model()),
    ):
        with pytest.raises(ConfigError, match=r"volume\.(path|unusable|missing)"):
            use()
    assert [path.name for path in (tmp_path / "source").iterdir()] == ["records"]


def test_fs_08_a_link_inside_is_resolved_once(host: Path) -> None:
    """A link that stays below the host directory is allowed; what is returned holds no link any more."""
    (host / "alias").symlink_to("volumes")
    assert host_path("alias/cohort", host=host) == (host / "volumes" / "cohort").resolve()


def test_missing_directories_and_link_loops_are_configuration_errors(host: Path) -> None:
    """Both are named as missing."""
    (host / "loop").symlink_to("loop")
    for directory in ("nothing", "loop", "volumes/cohort/data/x"):
        with pytest.raises(ConfigError, match=r"volume\.missing"):
            host_path(directory, host=host)
    with pytest.raises(UnavailableError, match=r"image\.unreadable"):
        image_roots({"cohort": "volumes"}, host=host)


@pytest.mark.parametrize("name", ["manifest", "data"])
@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_fs_08_only_regular_files_are_read(host: Path, tmp_path: Path, name: str, kind: str) -> None:
    """A link, FIFO or directory in the place of an image's file is refused without waiting."""
    good = image(host)
    path = host / "volumes" / "cohort" / name
    path.rename(tmp_path / name)
    if kind == "link":
        path.symlink_to(tmp_path / name)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(SecflError, match=r"image\.(unreadable|not_a_file)"):
        mounted(host, cohort="volumes/cohort").add(good)


def test_a_huge_manifest_is_refused(host: Path) -> None:
    """Its size is bounded before it is read whole."""
    os.truncate(host / "volumes" / "cohort" / "manifest", 1 << 40)
    with pytest.raises(ConfigError, match=r"volume\.path"):
        image_roots({"cohort": "volumes/cohort"}, host=host)


def test_a_new_volume_is_made_and_its_root_is_kept(host: Path) -> None:
    """The first root is at the manager before the program exists."""
    heads = Heads()
    made = mounted(host, heads, model="volumes/model")
    made.add(model())
    assert heads.heads["model"][0] == 1
    assert [(point.path, point.read_only) for point in made.points] == [("/model", False)]


@pytest.mark.parametrize(
    "refusal", [FreshnessError("volume.stale_head", "no"), UnavailableError("client.unreachable", "no")]
)
def test_a_keeper_that_refuses_stops_the_start(host: Path, refusal: SecflError) -> None:
    """Without the manager's acknowledgement there is no volume."""
    with pytest.raises(type(refusal)):
        mounted(host, Heads(refusal), model="volumes/model").add(model())


def test_fs_04_a_volume_that_was_rolled_back_is_refused(host: Path) -> None:
    """Yesterday's copy of both files does not open under today's root; nor do missing files."""
    heads = Heads()
    mounted(host, heads, model="volumes/model").add(model())
    shutil.copytree(host / "volumes" / "model", host / "volumes" / "yesterday")
    mounted(host, heads, model="volumes/yesterday").add(model(heads))
    shutil.copytree(host / "volumes" / "model", host / "volumes" / "old")
    heads.heads["model"] = (2, b"t" * 32)
    for directory in ("volumes/old", "volumes/nothing"):
        with pytest.raises(FreshnessError, match=r"volume\.rolled_back"):
            mounted(host, heads, model=directory).add(model(heads))


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("cohort"), os.mkfifo])
def test_fs_08_a_writable_directory_that_is_none_is_refused(host: Path, make: Callable[[Path], object]) -> None:
    """A file, a FIFO or a link in its place is a configuration error, and nothing is written through it."""
    make(host / "volumes" / "model")
    with pytest.raises(ConfigError, match=r"volume\.unusable"):
        mounted(host, model="volumes/model").add(model())
    assert {path.name for path in (host / "volumes" / "cohort").iterdir()} == {"data", "manifest"}


def test_the_keeper_moves_by_compare_and_swap() -> None:
    """The first push has no predecessor; a refused one leaves the head."""
    heads = Heads()
    keeper = VolumeKeeper("model", None, heads.push)
    assert keeper.head() is None
    keeper.push(1, NO_TAG, b"a" * 32)
    keeper.push(2, b"a" * 32, b"b" * 32)
    with pytest.raises(FreshnessError):
        keeper.push(3, b"a" * 32, b"c" * 32)
    assert keeper.head() == Root(2, b"b" * 32)


def test_fs_03_volumes_of_other_studies_have_other_identities() -> None:
    """Deployment, study and name each count, and their boundaries too."""
    names = [("d", "s", "v"), ("e", "s", "v"), ("d", "t", "v"), ("d", "s", "w"), ("ds", "", "v"), ("d", "sv", "")]
    assert len({volume_id(*name) for name in names}) == len(names)


def new_volume() -> Volume:
    keeper, files = MemoryKeeper(), memory_files()
    keeper.push(*create_volume(files, key=KEY, volume_id=IDENTITY, mode=0o700, now=1))
    return open_volume(files, key=KEY, volume_id=IDENTITY, keeper=keeper)


def test_a_release_holds_what_the_volume_held(tmp_path: Path) -> None:
    """Files, folders and links arrive, and open only with the root and the key of the release."""
    volume = new_volume()
    tree = volume.tree
    folder = tree.create(ROOT_INODE, b"best", NewNode(DIRECTORY, 0o700), now=1)
    node = tree.create(folder.number, b"model.npz", NewNode(FILE, 0o600), now=1)
    content = os.urandom(2_500_000)
    volume.contents.write(node, 0, content, now=1)
    tree.create(ROOT_INODE, b"best-model", NewNode(SYMLINK, 0o777, b"best/model.npz"), now=1)
    root = pack_volume(volume, tmp_path / "out", key=KEY)
    image_ = open_image_directory(tmp_path / "out", root=root, key=KEY)
    assert unpack(image_, tmp_path / "plain") == [tmp_path / "plain" / "best" / "model.npz"]
    assert (tmp_path / "plain" / "best-model").read_bytes() == content
    with pytest.raises(VerificationError):
        open_image_directory(tmp_path / "out", root=root, key=b"x" * 32)


@pytest.mark.parametrize(
    ("name", "target", "code"),
    [
        (b"\xff", b"x", r"release\.name"),
        (b"link", b"\xff", r"release\.name"),
        (b"link", b"/etc/passwd", r"image\.link"),
        (b"link", b"../x", r"image\.link"),
        (b"li\nnk", b"x", r"image\.path"),
    ],
)
def test_fs_16_names_and_links_that_lead_elsewhere_are_not_released(
    tmp_path: Path, name: bytes, target: bytes, code: str
) -> None:
    """A program cannot hand the receiving party a link out of its folder; nothing stays behind."""
    volume = new_volume()
    volume.tree.create(ROOT_INODE, name, NewNode(SYMLINK, 0o777, target), now=1)
    with pytest.raises(EncodingError, match=code):
        pack_volume(volume, tmp_path / "out", key=KEY)
    assert list(tmp_path.iterdir()) == []


def test_ev_37_a_very_deep_tree_is_refused(tmp_path: Path) -> None:
    """A program's ten thousand directories are an error with a code, not the end of the shield."""
    volume = new_volume()
    parent = ROOT_INODE
    for _ in range(3000):
        parent = volume.tree.create(parent, b"d", NewNode(DIRECTORY, 0o700), now=1).number
    with pytest.raises(EncodingError, match=r"image\.path"):
        pack_volume(volume, tmp_path / "out", key=KEY)


def test_a_release_is_written_once(tmp_path: Path) -> None:
    """A directory that exists is not written into; one that cannot be made is an error with a code."""
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=r"image\.exists"):
        pack_volume(new_volume(), tmp_path / "out", key=KEY)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"release\.unwritable"):
        pack_volume(new_volume(), tmp_path / "file" / "out", key=KEY)


def test_a_release_goes_from_the_enclave_to_the_named_party(host: Path, tmp_path: Path) -> None:
    """The manager's fresh key packs it below the host directory; the party's own key opens it (FL-22)."""
    shields = Shields()
    transport = shields.transport()
    enrolment = shields.enrolment("aggregator", transport=transport)
    admission = enrolment.attest(transport)

    def push(volume: str, sequence: int, previous: bytes | None, tag: bytes) -> None:
        stated = None if previous is None else previous.hex()
        update = RootUpdate(volume=volume, sequence=sequence, previous=stated, tag=tag.hex())
        enrolment.call(transport, "service/roots", update)

    made = MountedSet(shields.deployment.deployment_id, "heart", {"model": "volumes/model"}, push, host=host)
    with pytest.raises(VerificationError, match=r"release\.not_writable"):
        release_volumes(admission.payload, made, enrolment, transport)
    for volume in admission.payload.volumes:
        made.add(volume)
    made.writable["model"] = Writable(None, None, new_volume)  # type: ignore[arg-type]
    (host / "release").symlink_to(tmp_path / "source")
    with pytest.raises(ConfigError, match=r"volume\.path|release\.unwritable"):
        release_volumes(admission.payload, made, enrolment, transport)
    (host / "release").unlink()
    roots = release_volumes(admission.payload, made, enrolment, transport)
    report_rounds_as(enrolment, transport)
    enrolment.call(transport, "service/exit", Exit(status=0))
    reply = shields.deployment.take_release("model-owner", "heart", "model")
    assert bytes.fromhex(reply.root) == roots["model"]
    with pytest.raises(SecflError):
        shields.deployment.take_release("outsider", "heart", "model")
    (folder,) = (host / "release").iterdir()
    context = release_context(shields.deployment.deployment_id, "heart", "model", reply.root)
    key = shields.deployment.members["model-owner"].recipient.open(reply.sealed_key, purpose="release", context=context)
    assert open_image_directory(folder, root=roots["model"], key=key).entries == ()


def report_rounds_as(enrolment: Enrolment, transport: Transport) -> None:
    """Report the rounds that the study asks for."""
    for number in (1, 2):
        entry = Progress(round=number, phase="train", metrics={}, replies=("cleveland",))
        enrolment.call(transport, "service/progress", entry)
