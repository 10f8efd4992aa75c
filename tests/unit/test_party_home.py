"""A party's home, what it packs, and what it unpacks."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from secfl.crypto import strict_json
from secfl.errors import ConfigError, EncodingError, SecflError, StateError, VerificationError
from secfl.linux.images import open_image_directory, pack_image
from secfl.party.home import PartyHome, PartyIdentity, read_file, write_file
from secfl.party.packing import OwnedVolume, owner_policy, pack_volume
from secfl.party.receive import unpack
from secfl.policy.version import PolicyVersion, policy_hash
from secfl.tee.bundle import TrustBundle
from secfl.tee.simulated.vendor import Vendor
from secfl.testing.enclaves import KIND
from secfl.testing.forge import NOW
from secfl.volume.image_manifest import Mode


@pytest.fixture
def home(tmp_path: Path) -> PartyHome:
    """A party."""
    return PartyHome.create(tmp_path / "home", "cleveland")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder to pack."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "records").write_bytes(b"rows")
    return folder


def test_private_files_are_for_the_owner_alone(home: PartyHome) -> None:
    """Keys have mode 0600 in folders of mode 0700; the identity is public and holds no private part."""
    home.volume_key("cleveland/cohort", "cohort", create=True)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (home.path, *home.private.rglob("*"), home.private)}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert len([path for path in modes if path.is_file()]) == 3
    assert set(strict_json.decode(home.identity_path.read_bytes())) == {"name", "signing_key", "recipient_key"}


def test_the_identity_is_that_of_the_keys(home: PartyHome) -> None:
    """What is handed over verifies and seals for exactly the private keys."""
    identity = home.identity()
    assert identity.signing_key == home.signing_key().public
    assert identity.recipient_key == home.recipient_key().public
    assert PartyIdentity.from_document(identity.document()) == identity


def test_a_second_create_keeps_the_first_keys(home: PartyHome) -> None:
    """Keys are never overwritten."""
    before = home.signing_key().to_pem()
    with pytest.raises(StateError, match=r"party\.exists"):
        PartyHome.create(home.path, "cleveland")
    assert home.signing_key().to_pem() == before


@pytest.mark.parametrize("name", ["", "Cleveland", "../x", "a/b", "a_b", "-a", "a-", "a\n", "é", "a" * 70])
def test_pb_14_names_like_ids_or_paths_are_refused(tmp_path: Path, name: str) -> None:
    """No name is made, and no file."""
    with pytest.raises(ConfigError, match=r"party\.name"):
        PartyHome.create(tmp_path / "home", name)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    "change", [{"name": "X"}, {"name": 7}, {"signing_key": "AA"}, {"recipient_key": "AA"}, {"more": "x"}]
)
def test_a_malformed_identity_is_refused(home: PartyHome, change: dict[str, object]) -> None:
    """Each member is required, closed and of its form."""
    with pytest.raises(EncodingError):
        PartyIdentity.from_document(home.identity().document() | change)
    with pytest.raises(EncodingError, match=r"party\.identity_malformed"):
        PartyIdentity.from_document([])


def test_missing_and_damaged_files_are_named(home: PartyHome, tmp_path: Path) -> None:
    """Each missing or damaged file is an error with a code of its own."""
    with pytest.raises(ConfigError, match=r"party\.missing"):
        PartyHome(tmp_path / "nobody").identity()
    with pytest.raises(ConfigError, match=r"volume\.key_missing"):
        home.volume_key("cleveland/cohort", "cohort")
    (home.private / "signing.pem").write_bytes(b"x")
    (home.private / "recipient.seed").write_bytes(b"x")
    for read in (home.signing_key, home.recipient_key):
        with pytest.raises(EncodingError):
            read()


def test_a_volume_key_is_drawn_once(home: PartyHome) -> None:
    """It is the same at each reading, never replaced, and a damaged one is no key."""
    key = home.volume_key("cleveland/cohort", "cohort", create=True)
    assert home.volume_key("cleveland/cohort", "cohort") == key
    with pytest.raises(StateError, match=r"volume\.key_exists"):
        home.volume_key("cleveland/cohort", "cohort", create=True)
    (path,) = (home.private / "volumes").iterdir()
    path.write_bytes(key[:-1])
    with pytest.raises(ConfigError, match=r"volume\.key_missing"):
        home.volume_key("cleveland/cohort", "cohort")


@pytest.mark.parametrize(("policy", "volume"), [("../x", "v"), ("a/b", "../v"), ("a/../b", "v"), ("a_b", "v")])
def test_volume_names_with_paths_are_refused(home: PartyHome, policy: str, volume: str) -> None:
    """No key is read or written outside the folder of keys."""
    for create in (False, True):
        with pytest.raises(ConfigError, match=r"volume\.name"):
            home.volume_key(policy, volume, create=create)


def test_files_are_read_with_a_bound_and_written_whole(tmp_path: Path) -> None:
    """A file over the bound is refused; a failed write leaves the old one and no rest."""
    path = tmp_path / "file"
    write_file(path, b"12345", mode=0o600)
    assert read_file(path, max_bytes=5) == b"12345"
    with pytest.raises(ConfigError, match=r"file\.too_large"):
        read_file(path, max_bytes=4)
    with pytest.raises(ConfigError, match=r"file\.unreadable"):
        read_file(tmp_path)
    with pytest.raises(ConfigError, match=r"file\.unwritable"):
        write_file(path / "below", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"file\.unwritable"):
        write_file(tmp_path / "folder", b"x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_fs_08_a_planted_link_is_replaced_not_followed(tmp_path: Path) -> None:
    """Writing over a link leaves its target alone."""
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "file").symlink_to("target")
    write_file(tmp_path / "file", b"new")
    assert (tmp_path / "target").read_bytes() == b"old"
    assert not (tmp_path / "file").is_symlink()


def test_a_packed_volume_opens_with_the_partys_key(home: PartyHome, source: Path, tmp_path: Path) -> None:
    """The policy beside it names the same root, under the owner's sole control."""
    owned, packed = pack_volume(home, source, tmp_path / "out", volume="cohort")
    policy = (tmp_path / "out" / "policy.yaml").read_bytes()
    assert policy == owner_policy(home.identity(), "cohort", packed.root)
    assert policy_hash(policy).hex() == owned.policy_hash
    assert [party.name for party in PolicyVersion.read(policy).policy.board] == ["cleveland"]
    key = home.volume_key(owned.policy, "cohort")
    image = open_image_directory(tmp_path / "out", root=bytes.fromhex(owned.root), key=key)
    assert [entry.path for entry in image.entries] == ["records"]
    stored = strict_json.decode((tmp_path / "out" / "volume.json").read_bytes())
    assert OwnedVolume.from_document(stored) == owned


def test_a_folder_that_cannot_be_packed_can_be_packed_after_correction(
    home: PartyHome, source: Path, tmp_path: Path
) -> None:
    """A failed attempt leaves no key and no directory that would forbid the next one."""
    os.mkfifo(source / "pipe")
    with pytest.raises(ConfigError, match=r"image\.file_kind"):
        pack_volume(home, source, tmp_path / "out", volume="cohort")
    assert list((home.private / "volumes").iterdir()) == []
    (source / "pipe").unlink()
    pack_volume(home, source, tmp_path / "out", volume="cohort")
    with pytest.raises(ConfigError, match=r"image\.exists"):
        pack_volume(home, source, tmp_path / "out", volume="cohort")


@pytest.mark.parametrize(
    "document", [[], {}, {"policy": "x"}, {"policy": 1, "policy_hash": "", "volume": "", "root": ""}]
)
def test_a_malformed_volume_file_is_refused(document: object) -> None:
    """Neither members nor types are guessed."""
    with pytest.raises(EncodingError, match=r"volume\.malformed"):
        OwnedVolume.from_document(document)


def test_fs_01_a_damaged_release_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """One flipped bit stops the unpacking, and nothing stands under the final name or beside it."""
    (source / "large").write_bytes(os.urandom(400_000))
    packed = pack_image(source, tmp_path / "out", mode=Mode.ENCRYPTED, key=b"k" * 32)
    data = bytearray((tmp_path / "out" / "data").read_bytes())
    data[-1] ^= 1
    (tmp_path / "out" / "data").write_bytes(data)
    image = open_image_directory(tmp_path / "out", root=packed.root, key=b"k" * 32)
    (tmp_path / "to").mkdir()
    with pytest.raises(VerificationError):
        unpack(image, tmp_path / "to" / "plain")
    assert list((tmp_path / "to").iterdir()) == []


def test_a_release_is_unpacked_into_a_new_directory_only(source: Path, tmp_path: Path) -> None:
    """What exists is not written into, not even through a link; what cannot be written is a coded error."""
    packed = pack_image(source, tmp_path / "out", mode=Mode.ENCRYPTED, key=b"k" * 32)
    image = open_image_directory(tmp_path / "out", root=packed.root, key=b"k" * 32)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("source", "dangling"):
        with pytest.raises(ConfigError, match=r"release\.exists"):
            unpack(image, tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"release\.unwritable"):
        unpack(image, tmp_path / "file" / "plain")
    assert unpack(image, tmp_path / "new" / "plain") == [tmp_path / "new" / "plain" / "records"]


def bundle() -> TrustBundle:
    vendor = Vendor.create(NOW)
    return TrustBundle(vendor.anchor(), {KIND: vendor.collateral(KIND, NOW)})


def test_a_trust_bundle_reads_what_it_wrote() -> None:
    """Decoding and encoding give the same bytes; a kind without collateral is an error."""
    made = bundle()
    again = TrustBundle.decode(made.encode())
    assert again.encode() == made.encode()
    assert again.anchor == made.anchor
    with pytest.raises(VerificationError, match=r"collateral\.missing"):
        again.collateral("sgx")


@pytest.mark.parametrize(
    "change",
    [
        {"collateral": {}},
        {"collateral": {"other": "AA"}},
        {"collateral": {"tdx": 7}},
        {"collateral": []},
        {"collateral": {"tdx": "AA"}},
        {"domain": 7},
        {"domain": "hardware:intel"},
        {"domain": "simulated:" + "00" * 32},
        {"root": "AA"},
        {"root": "!"},
        {"more": "x"},
    ],
)
def test_sc_05_a_planted_bundle_is_refused_when_it_is_read(change: dict[str, object]) -> None:
    """A bundle with another root than its domain names, or with members changed, does not load."""
    document = strict_json.decode(bundle().encode()) | change
    with pytest.raises(SecflError):
        TrustBundle.decode(strict_json.encode(document))
    with pytest.raises(EncodingError):
        TrustBundle.decode(b"[]")
