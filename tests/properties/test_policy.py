"""Properties of the policy decoder and of placeholders for any input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.errors import EncodingError
from secfl.policy.decode import decode
from secfl.policy.findings import PolicyError, PolicyFinding
from secfl.policy.grants import Grant
from secfl.policy.placeholders import Context, parse_template, substitute
from secfl.policy.secret_values import SecretValues
from secfl.policy.yaml_tree import PlainData, parse_tree

HEART = (Path(__file__).parents[1] / "vectors" / "policy" / "valid" / "heart.yaml").read_bytes()

plain = st.recursive(
    st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), inner, max_size=4)
    ),
    max_leaves=20,
)


def frozen(value: object) -> PlainData:
    """Lists as tuples, as the tree has them."""
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(frozen(item) for item in value)
    assert isinstance(value, str | int)
    return value


@given(st.binary(max_size=400))
def test_any_bytes_end_in_one_error_class(data: bytes) -> None:
    """Bytes that are no policy raise `PolicyError` and nothing else."""
    with pytest.raises(PolicyError):
        decode(data)


@given(st.text(max_size=400))
def test_any_text_ends_in_one_error_class(text: str) -> None:
    """Text that is no policy raises `PolicyError` and nothing else."""
    with pytest.raises(PolicyError):
        decode(text.encode("utf-8", "surrogatepass"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(HEART) - 1), st.binary(max_size=8), st.integers(0, 8))
def test_a_damaged_policy_decodes_or_is_refused(at: int, inserted: bytes, removed: int) -> None:
    """No damage to a valid file leads to another exception; findings point into the file."""
    data = HEART[:at] + inserted + HEART[at + removed :]
    findings: tuple[PolicyFinding, ...] = ()
    try:
        decode(data)
    except PolicyError as error:
        findings = error.findings
    assert all(1 <= finding.line <= data.count(b"\n") + 2 for finding in findings)


@given(plain)
def test_the_subset_reads_what_a_safe_writer_writes(value: object) -> None:
    """Data written as JSON, which is YAML with quoted text, comes back equal."""
    assert parse_tree(json.dumps(value).encode(), source="x").data == frozen(value)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 3))
def test_decoding_is_a_function_of_the_bytes(count: int) -> None:
    """Equal bytes decode to equal policies, and comments at the end change nothing."""
    assert decode(HEART) == decode(HEART + b"# x\n" * count)


@given(st.text(max_size=60))
def test_text_without_a_placeholder_passes_through(text: str) -> None:
    """What is not the start of a placeholder is copied unchanged."""
    marked = text.replace("$$SECFL", "").replace("::", ":")
    assert substitute(marked, Context.FILE, kinds={}, lookup=lambda name, chosen: b"") == marked.encode()


@given(st.text(max_size=30), st.text(max_size=30))
def test_text_around_a_placeholder_is_a_template_or_an_error(before: str, after: str) -> None:
    """Any surroundings give a template whose literal parts hold no opening, or the one error class."""
    try:
        parts = parse_template(f"{before}$$SECFL::{after}")
    except EncodingError:
        return
    assert all("$$SECFL::" not in part for part in parts if isinstance(part, str))


@given(st.text(st.characters(codec="ascii"), min_size=1, max_size=40))
def test_values_are_never_scanned_again(value: str) -> None:
    """A value is put in literally, whatever it looks like."""
    filled = substitute(
        "a$$SECFL::x$$b", Context.FILE, kinds={"x": "ascii"}, lookup=lambda name, chosen: value.encode()
    )
    assert filled == b"a" + value.encode() + b"b"


@given(st.binary(max_size=200))
def test_any_bytes_are_no_grant_and_no_store_or_come_back(data: bytes) -> None:
    """Grants and stored secrets have one spelling; everything else is an `EncodingError`."""
    for decoder in (Grant.decode, SecretValues.decode):
        try:
            assert decoder(data).encode() == data
        except EncodingError:
            continue
