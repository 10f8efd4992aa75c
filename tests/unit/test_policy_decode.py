"""The policy decoder: what is accepted, and the exact finding for what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secfl.policy.decode import decode
from secfl.policy.findings import PolicyError
from secfl.policy.model import Decimal, policy_schema
from secfl.policy.storage import DepositedVolume, ImportedVolume, WritableVolume
from secfl.policy.version import PolicyVersion, policy_hash
from secfl.policy.yaml_tree import MAX_BYTES

VECTORS = Path(__file__).parents[1] / "vectors" / "policy"
HEART = (VECTORS / "valid" / "heart.yaml").read_text()
GOLDEN = json.loads((VECTORS / "refused.json").read_text())


def changed(edits: list[list[str]]) -> bytes:
    """Make a case's edits in the example study."""
    text = HEART
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    return text.encode()


def test_the_example_study_decodes_to_typed_values() -> None:
    """Every section of the example reaches the model with its type."""
    policy = decode(HEART.encode())
    assert [party.name for party in policy.board] == ["cleveland", "hungary", "model-owner"]
    assert [type(volume) for volume in policy.volumes] == [
        ImportedVolume,
        ImportedVolume,
        ImportedVolume,
        WritableVolume,
    ]
    assert policy.service("aggregator").network.ingress[0].port == 8443
    assert policy.federation is not None
    assert policy.federation.run_config["learning-rate"] == Decimal(decimal="0.1")
    assert policy.federation.run_config["screen"] is True
    assert policy.secret("sidecar-cert").kind == "x509"


def test_an_owners_policy_lists_a_deposited_volume() -> None:
    """The second example has a namespace and a pinned root."""
    policy = decode((VECTORS / "valid" / "cohort.yaml").read_bytes())
    assert policy.namespace == "cleveland"
    volume = policy.volume("cohort")
    assert isinstance(volume, DepositedVolume)
    assert volume.root == bytes.fromhex("d1" * 32)


def test_there_are_golden_cases() -> None:
    """The file of refused edits is not empty and its ids are distinct."""
    assert len(GOLDEN) > 40
    assert len({case["id"] for case in GOLDEN}) == len(GOLDEN)


@pytest.mark.parametrize("case", GOLDEN, ids=[case["id"] for case in GOLDEN])
def test_each_refused_edit_gives_exactly_its_findings(case: dict[str, Any]) -> None:
    """A wrong value is reported with rule, line, column, key and expectation, as recorded."""
    with pytest.raises(PolicyError) as caught:
        decode(changed(case["edits"]), source="heart.yaml")
    assert [str(finding) for finding in caught.value.findings] == case["findings"]
    assert all(finding.remedy for finding in caught.value.findings)
    assert caught.value.code == caught.value.findings[0].rule


def test_all_findings_come_together() -> None:
    """Two mistakes in two sections are both in one error."""
    text = HEART.replace("rounds: 15\n", "rounds: 0\n").replace("port: 8443", "port: 0")
    with pytest.raises(PolicyError) as caught:
        decode(text.encode())
    assert [finding.path for finding in caught.value.findings] == [
        "services[0].network.ingress[0].port",
        "federation.rounds",
    ]


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "policy.missing_value"),
        (b"\xef\xbb\xbfsecfl: '1'\n", "policy.encoding"),
        (b"secfl: '\xff'\n", "policy.encoding"),
        (b"secfl: '1'\r\n", "policy.character"),
        (b"secfl:\t'1'\n", "policy.character"),
        (b'secfl: "\\u202e1"\n', "policy.character"),
        ("name: he\u200bart\n".encode(), "policy.character"),
        ("name: e\u0301\n".encode(), "policy.character"),
        ("name: he\u00a0art\n".encode(), "policy.character"),
        ("name: heart\ufe0f\n".encode(), "policy.character"),
        ("name: he\u3164art\n".encode(), "policy.character"),
        (b"%YAML 1.1\n---\nsecfl: '1'\n", "policy.directive"),
        (b"secfl: '1'\n---\nsecfl: '1'\n", "policy.several_documents"),
        (b"a: &x [1]\nb: *x\n", "policy.anchor"),
        (b"a: !!python/object:os.system x\n", "policy.tag"),
        (b"<<: {a: 1}\n", "policy.key"),
        (b"1: a\n", "policy.key"),
        (b"? [a]\n: b\n", "policy.key"),
        (b"a: null\n", "policy.missing_value"),
        (b"a:\n", "policy.missing_value"),
        (b"a: 010\n", "policy.number"),
        (b"a: 1_000\n", "policy.number"),
        (b"a: 0x10\n", "policy.number"),
        (b"a: 1.5\n", "policy.number"),
        (b"a: 1e3\n", "policy.number"),
        (b"a: -0\n", "policy.number"),
        (b"a: +1\n", "policy.number"),
        (b"a: 12:30:45\n", "policy.number"),
        (b"a: .inf\n", "policy.number"),
        (b"a: 2026-01-01\n", "policy.number"),
        (b"a: 99999999999999999999\n", "policy.number"),
        (b"a: [b\n", "policy.syntax"),
        (b"[" * 100, "policy.too_deep"),
        (b"[" + b"a," * 30_000 + b"]", "policy.too_many_values"),
        (b"#" * (MAX_BYTES + 1), "policy.too_large"),
        (b"- a\n", "policy.type"),
        (b"just text\n", "policy.type"),
    ],
)
def test_yaml_outside_the_subset_is_refused(data: bytes, rule: str) -> None:
    """Each way to a second reading of a file has its own rule."""
    with pytest.raises(PolicyError) as caught:
        decode(data)
    assert caught.value.code == rule


def test_yaml_1_1_truth_words_are_text() -> None:
    """`on` in a list of text stays the text `on`."""
    text = HEART.replace('"--rounds=15"]', "on]")
    assert decode(text.encode()).service("aggregator").command[-1] == "on"


def test_two_ports_may_lead_to_one_address_of_the_program() -> None:
    """Only listeners need addresses of their own."""
    other = '{name: other, port: 8444, to: "127.0.0.1:8000", peers: [trainer-hungary], allow: ["GET /"]}'
    text = HEART.replace("      egress: []\n    console", f"        - {other}\n      egress: []\n    console", 1)
    assert len(decode(text.encode()).service("aggregator").network.ingress) == 2


def test_the_hash_is_over_the_bytes_as_received() -> None:
    """A comment changes the hash, although the policy means the same."""
    first = PolicyVersion.read(HEART.encode())
    second = PolicyVersion.read(HEART.encode() + b"# later\n")
    assert first.policy == second.policy
    assert first.hash != second.hash
    assert first.hash == policy_hash(first.data)


def test_recorded_hashes_hold() -> None:
    """The documented vectors of the policy hash are reproduced."""
    vectors = json.loads((VECTORS / "hash.json").read_text())
    assert vectors
    for vector in vectors:
        data = (VECTORS / vector["file"]).read_bytes() if "file" in vector else bytes.fromhex(vector["hex"])
        assert policy_hash(data).hex() == vector["policy_hash"], vector["id"]


def test_the_schema_is_closed() -> None:
    """Every object of the JSON schema forbids unknown keys or describes their values."""
    schema = policy_schema()
    objects = [part for part in schema["$defs"].values() if part.get("type") == "object"]
    assert objects
    assert all(part["additionalProperties"] is False for part in objects)
    assert "require-all" in json.dumps(schema)
