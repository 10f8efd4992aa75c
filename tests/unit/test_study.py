"""From `secfl init` to a launch: plan, draft, assembly, site files, launch configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from party_world import handed_over
from secfl.cli.init import parse_settings, site_file, write_study
from secfl.cli.run import site_config
from secfl.cli.study_plan import HandedOver, StudyPlan, assemble, draft_policy
from secfl.crypto import strict_json
from secfl.errors import ConfigError, SecflError
from secfl.party.home import PartyHome
from secfl.policy.version import PolicyVersion
from secfl.shield.config import LaunchConfig

ADDRESSES = {"manager": "10.0.0.1", "hub": "10.0.0.2", "cleveland": "10.0.0.3", "hungarian": "10.0.0.4"}


def plan(**changes: Any) -> StudyPlan:
    values: dict[str, Any] = {
        "study": "heart",
        "owner": "model-owner",
        "sites": ("cleveland", "hungarian"),
        "aggregator_site": "hub",
        "app_hash": "00" * 32,
        "rounds": 3,
        "run_config": {"learning-rate": 0.1, "seed": 7, "fast": True, "name": "a"},
        "node_config": {"data-path": "/data/records.npz"},
    }
    return StudyPlan(**(values | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Everything that the others hand over."""
    for number, name in enumerate(("model-owner", "cleveland", "hungarian")):
        home = PartyHome.create(tmp_path / f"home-{number}", name)
        handed_over(tmp_path / "in", "parties", name, home.identity().document())
    for site in ("hub", "cleveland", "hungarian"):
        handed_over(tmp_path / "in", "platforms", site, {"platform_id": site.encode().hex().ljust(32, "0")})
    for party, volume in (("model-owner", "code"), ("cleveland", "cohort"), ("hungarian", "cohort")):
        handed_over(tmp_path / "in", "volumes", f"{party}-{volume}", {"policy_hash": "11" * 32})
    image = {"measurement": "22" * 48, "trust_domain": "simulated:" + "33" * 32}
    handed_over(tmp_path / "in", ".", "image", image)
    return tmp_path / "in"


def test_a_draft_becomes_a_valid_policy(folder: Path) -> None:
    """With all files handed over, the assembled bytes are a policy of the language, and say what the plan says."""
    policy = PolicyVersion.read(assemble(draft_policy(plan()), HandedOver(folder))).policy
    assert policy.name == "heart"
    assert [party.name for party in policy.board] == ["model-owner", "cleveland", "hungarian"]
    assert {service.name for service in policy.services} == {"aggregator", "trainer-cleveland", "trainer-hungarian"}


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    """Nothing is guessed: the error lists every file that has to be handed over."""
    with pytest.raises(ConfigError, match=r"study\.incomplete") as caught:
        assemble(draft_policy(plan()), HandedOver(tmp_path))
    for name in ("parties/cleveland.json", "platforms/hub.json", "volumes/hungarian-cohort.json", "image.json"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "marker",
    [
        "@party.cleveland.private_key@",
        "@party.Cleveland.signing_key@",
        "@party.cleveland@",
        "@platform.../../etc/passwd@",
        "@platform.a_b@",
        "@image.other@",
        "@volume.cleveland@",
        "@anything@",
    ],
)
def test_sv_10_a_misspelt_marker_is_an_error(folder: Path, marker: str) -> None:
    """What looks like a marker is never left in the policy as a value, and reads no file outside the folder."""
    with pytest.raises(ConfigError, match=r"study\.(incomplete|unknown_marker)"):
        assemble(f"name: {marker}\n".replace("/", "."), HandedOver(folder))


@pytest.mark.parametrize(
    "value",
    ["x'\nparties: []", "a b", "", "é", "${x}", "'", '"', "a\\b", "{}", 7, None, ["a"], "@image.measurement@"],
)
def test_handed_over_values_cannot_leave_their_place(folder: Path, value: object) -> None:
    """A value with quotes, blanks, line ends or markers is refused: it would write policy of its own."""
    handed_over(folder, "platforms", "hub", {"platform_id": value})
    with pytest.raises(ConfigError, match=r"study\.incomplete"):
        assemble(draft_policy(plan()), HandedOver(folder))


@pytest.mark.parametrize("value", ["1234567890", "0x1F", "null", "true", "1e5", "no", "1_000", "12:30:45"])
def test_handed_over_values_stay_text(folder: Path, value: str) -> None:
    """A value that YAML could take for a number, a truth or a time stays between quotes."""
    handed_over(folder, "platforms", "hub", {"platform_id": value})
    text = assemble(draft_policy(plan()), HandedOver(folder)).decode()
    assert f"'{value}'" in text


def test_pb_14_keys_under_another_partys_name_are_refused(folder: Path) -> None:
    """A file that holds another party's identity would give that party two votes."""
    mallory = strict_json.decode((folder / "parties" / "hungarian.json").read_bytes())
    handed_over(folder, "parties", "cleveland", mallory)
    with pytest.raises(ConfigError, match=r"study\.incomplete.*identity of hungarian"):
        assemble(draft_policy(plan()), HandedOver(folder))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"{" * 1000, b" " * 100_000, b'{"platform_id":"a","platform_id":"b"}']
)
def test_sv_10_a_malformed_handed_over_file_is_named(folder: Path, content: bytes) -> None:
    """The error names the file, whatever is wrong with it."""
    (folder / "platforms" / "hub.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"study\.incomplete.*platforms/hub\.json"):
        assemble(draft_policy(plan()), HandedOver(folder))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"study": "../heart"}, "init.name"),
        ({"study": "heart\nsecfl: 2"}, "init.name"),
        ({"owner": "Owner"}, "init.name"),
        ({"sites": ("a/b",)}, "init.name"),
        ({"aggregator_site": ""}, "init.name"),
        ({"sites": ()}, "init.sites"),
        ({"sites": ("a", "a")}, "init.sites"),
        ({"owner": "cleveland"}, "init.sites"),
        ({"rounds": 0}, "init.rounds"),
        ({"rounds": 10**9}, "init.rounds"),
        ({"tee": "none"}, "init.tee"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(change: dict[str, object], code: str) -> None:
    """Names become file names and policy text, so they are checked before either is written."""
    with pytest.raises(ConfigError) as caught:
        plan(**change)
    assert caught.value.code == code


def test_settings_are_read_as_written() -> None:
    """Whole numbers, numbers with a point, truths and text; nothing that merely parses as a number."""
    texts = [
        "a=1",
        "b=-0.5",
        "c=true",
        "d=1_000",
        "e=nan",
        "f=inf",
        "g= 5",
        "h=1e-3",
        "i=007",
        "j=",
        "k=x=y",
        "l=2.5e3",
    ]
    assert parse_settings(texts) == {
        "a": 1,
        "b": -0.5,
        "c": True,
        "d": "1_000",
        "e": "nan",
        "f": "inf",
        "g": " 5",
        "h": 0.001,
        "i": "007",
        "j": "",
        "k": "x=y",
        "l": 2500.0,
    }
    for bad in (["a"], ["=x"], ["a=1", "a=2"]):
        with pytest.raises(ConfigError, match=r"init\.setting"):
            parse_settings(bad)


def test_a_study_folder_holds_draft_sites_and_next_steps(tmp_path: Path) -> None:
    """Each site has a file of its own; an existing folder is left alone."""
    write_study(tmp_path / "study", plan(), addresses=ADDRESSES)
    assert sorted(path.name for path in (tmp_path / "study" / "sites").iterdir()) == [
        "cleveland.json",
        "hub.json",
        "hungarian.json",
    ]
    assert (tmp_path / "study" / "policy.draft.yaml").read_text() == draft_policy(plan())
    assert "{{" not in (tmp_path / "study" / "README.md").read_text()
    compile((tmp_path / "study" / "partition.py").read_text(), "partition.py", "exec")
    with pytest.raises(ConfigError, match=r"init\.exists"):
        write_study(tmp_path / "study", plan(), addresses=ADDRESSES)


@pytest.mark.parametrize("address", [None, "hub.example", "10.0.0", "10.0.0.1:80", ""])
def test_sv_10_a_missing_or_wrong_address_is_named(tmp_path: Path, address: str | None) -> None:
    """Each site needs an IPv4 address; nothing is written before."""
    addresses = {name: value for name, value in (ADDRESSES | {"hub": address}).items() if value is not None}
    with pytest.raises(ConfigError, match=r"init\.address.*hub"):
        write_study(tmp_path / "study", plan(), addresses=addresses)
    assert not (tmp_path / "study").exists()


def test_a_site_may_run_aggregator_and_trainer(folder: Path, tmp_path: Path) -> None:
    """Its file holds what both need, and each launch takes only what its service mounts (FS-10)."""
    both = plan(aggregator_site="cleveland")
    path = tmp_path / "site.json"
    path.write_bytes(site_file(both, "cleveland", addresses=ADDRESSES))
    policy = assemble(draft_policy(both), HandedOver(folder))
    aggregator = site_config(path, "heart/aggregator", policy)
    trainer = site_config(path, "heart/trainer-cleveland", policy)
    assert (set(aggregator.images), set(aggregator.volumes)) == ({"code"}, {"model"})
    assert (set(trainer.images), set(trainer.volumes)) == ({"code", "cohort-cleveland"}, set())
    assert trainer.peers == {"aggregator": "10.0.0.3:8443"}
    assert LaunchConfig.decode(trainer.encode()) == trainer


def _drop(document: dict[str, Any]) -> None:
    del document["listen"]


@pytest.mark.parametrize(
    "change",
    [
        _drop,
        lambda document: document.update(surplus=1),
        lambda document: document.update(manager=7443),
        lambda document: document.update(manager="manager:7443"),
        lambda document: document.update(images=[]),
        lambda document: document.update(images={"code": 7}),
        lambda document: document.update(site="../hub"),
        lambda document: document.update(peers={"aggregator": None}),
    ],
)
def test_sv_10_a_wrong_site_file_names_file_and_member(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    """A typo, an unknown member or a wrong type stops the launch with a configuration error that names the file."""
    document = strict_json.decode(site_file(plan(), "cleveland", addresses=ADDRESSES))
    change(document)
    path = tmp_path / "site.json"
    path.write_bytes(strict_json.encode(document))
    policy = assemble(draft_policy(plan()), HandedOver(folder))
    with pytest.raises(ConfigError, match=r"run\.site_file.*site\.json"):
        site_config(path, "heart/trainer-cleveland", policy)
    path.write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"run\.site_file"):
        site_config(path, "heart/trainer-cleveland", policy)


def test_a_target_outside_the_policy_is_refused(folder: Path, tmp_path: Path) -> None:
    """Study and service have to be those of the policy."""
    path = tmp_path / "site.json"
    path.write_bytes(site_file(plan(), "hub", addresses=ADDRESSES))
    policy = assemble(draft_policy(plan()), HandedOver(folder))
    for target in ("heart", "other/aggregator", "heart/nobody", "/aggregator"):
        with pytest.raises(SecflError):
            site_config(path, target, policy)
