"""Values of secrets: made, kept, stored, written in formats and put into one service's configuration."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from secfl.crypto.x509 import Usage, check_leaf, from_pem
from secfl.errors import EncodingError, StateError
from secfl.policy.decode import decode
from secfl.policy.model import Policy
from secfl.policy.placeholders import FORMATS, Context, Placeholder, check_format, parse_template, substitute
from secfl.policy.resolve import resolve_service
from secfl.policy.secret_formats import format_secret
from secfl.policy.secret_values import SecretValues, generate

HEART = (Path(__file__).parents[1] / "vectors" / "policy" / "valid" / "heart.yaml").read_text()
NOW = 1_800_000_000
DAY = 86400


def stream(seed: str) -> Callable[[int], bytes]:
    """A deterministic random source."""
    state = hashlib.sha256(seed.encode()).digest()

    def draw(size: int) -> bytes:
        nonlocal state
        state = hashlib.sha256(state).digest()
        return hashlib.shake_256(state).digest(size)

    return draw


def study(*edits: tuple[str, str]) -> Policy:
    """The example study with edits."""
    text = HEART
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return decode(text.encode())


def test_all_kinds_get_a_value_of_their_form() -> None:
    """Sizes, alphabets, keys and certificates are as the entries ask."""
    policy = study()
    values = generate(policy, SecretValues(), random=stream("a"), now=NOW)
    assert len(values["superexec"].value) == 32
    assert len(values["api-token"].value) == 20
    assert values["api-token"].value.isalnum()
    leaf = check_leaf(
        values["superlink-cert"].value,
        authority=values["superlink-ca"].value,
        now=NOW,
        usage=Usage.SERVER,
        name="127.0.0.1",
    )
    assert leaf.common_name == "localhost"
    assert leaf.validity.not_after == NOW + 90 * DAY


@pytest.mark.parametrize("key_type", ["P-256", "P-384", "Ed25519"])
def test_private_keys_are_written_in_every_format(key_type: str) -> None:
    """PEM, DER and OpenSSH name the same key, for each type."""
    policy = study(
        ("api-token, kind: ascii, size: 20", f"api-token, kind: private-key, key_type: {key_type}"),
        ("$$SECFL::api-token$$", "$$SECFL::api-token:public-openssh$$"),
    )
    values = generate(policy, SecretValues(), random=stream(key_type), now=NOW)
    pem = load_pem_private_key(format_secret(policy, values, "api-token", "pem"), None)
    ssh = load_ssh_private_key(format_secret(policy, values, "api-token", "openssh"), None)
    assert type(pem) is type(ssh)
    assert format_secret(policy, values, "api-token", "public-openssh").startswith((b"ecdsa-", b"ssh-ed25519 "))
    assert b"PUBLIC KEY" in format_secret(policy, values, "api-token", "public-pem")


def test_every_listed_format_can_be_written() -> None:
    """The table of formats and the functions that write them agree."""
    policy = study()
    values = generate(policy, SecretValues(), random=stream("a"), now=NOW)
    for secret in policy.secrets:
        for chosen in FORMATS[secret.kind]:
            assert format_secret(policy, values, secret.name, chosen)
        with pytest.raises(StateError) as caught:
            format_secret(policy, values, secret.name, "rot13")
        assert caught.value.code == "secret.no_format"


def test_binary_formats_are_the_usual_encodings() -> None:
    """Hex, base64 and base64url decode to the raw value."""
    policy = study()
    values = generate(policy, SecretValues(), random=stream("a"), now=NOW)
    raw = values["superexec"].value
    assert bytes.fromhex(format_secret(policy, values, "superexec", "hex").decode()) == raw
    assert base64.b64decode(format_secret(policy, values, "superexec", "base64"), validate=True) == raw
    assert base64.urlsafe_b64decode(format_secret(policy, values, "superexec", "base64url") + b"=") == raw


def test_a_chain_is_the_leaf_and_its_issuer() -> None:
    """The format `chain` starts with the leaf."""
    policy = study()
    values = generate(policy, SecretValues(), random=stream("a"), now=NOW)
    chain = format_secret(policy, values, "sidecar-cert", "chain")
    first, second = (part + b"-----END CERTIFICATE-----\n" for part in chain.split(b"-----END CERTIFICATE-----\n")[:2])
    assert from_pem(first) == values["sidecar-cert"].value
    assert from_pem(second) == values["superlink-ca"].value


def test_values_are_kept_when_their_entries_stay() -> None:
    """An update elsewhere in the policy changes no value."""
    first = generate(study(), SecretValues(), random=stream("a"), now=NOW)
    second = generate(study(("rounds: 15", "rounds: 16")), first, random=stream("b"), now=NOW + DAY)
    assert second == first


@pytest.mark.parametrize(
    ("edit", "renewed"),
    [
        (("superexec, kind: binary, size: 32", "superexec, kind: binary, size: 48"), {"superexec"}),
        (
            (
                "superlink-key, kind: private-key, key_type: P-256",
                "superlink-key, kind: private-key, key_type: Ed25519",
            ),
            {"superlink-key", "superlink-cert"},
        ),
        (("heart loopback", "heart loop"), {"superlink-ca", "superlink-cert", "sidecar-cert"}),
    ],
)
def test_a_changed_entry_renews_itself_and_what_rests_on_it(edit: tuple[str, str], renewed: set[str]) -> None:
    """A certificate follows its key and its issuer; nothing else changes."""
    first = generate(study(), SecretValues(), random=stream("a"), now=NOW)
    second = generate(study(edit), first, random=stream("b"), now=NOW)
    assert {name for name, value in second.values.items() if first.values[name] != value} == renewed


def test_certificates_are_renewed_after_two_thirds_of_their_time() -> None:
    """The key of a renewed certificate stays."""
    policy = study()
    first = generate(policy, SecretValues(), random=stream("a"), now=NOW)
    assert generate(policy, first, random=stream("b"), now=NOW + 60 * DAY - 1) == first
    later = generate(policy, first, random=stream("b"), now=NOW + 60 * DAY)
    assert {name for name, value in later.values.items() if first.values[name] != value} == {
        "superlink-cert",
        "sidecar-cert",
    }


def test_stored_values_come_back() -> None:
    """The canonical JSON for the manager's store decodes to equal values."""
    values = generate(study(), SecretValues(), random=stream("a"), now=NOW)
    assert SecretValues.decode(values.encode()) == values


@pytest.mark.parametrize("data", [b"", b"[]", b'{"a":1}', b'{"a":{"entry":"","kind":"x","renew_at":null,"value":""}}'])
def test_a_damaged_store_is_refused_without_detail(data: bytes) -> None:
    """One error class and code, and nothing of the content."""
    with pytest.raises(EncodingError) as caught:
        SecretValues.decode(data)
    assert caught.value.code == "secret.store_malformed"


@pytest.mark.parametrize("source", [lambda size: b"", lambda size: b"\xff" * size, lambda size: b"\0" * (size + 1)])
def test_a_broken_random_source_is_noticed(source: Callable[[int], bytes]) -> None:
    """Too few bytes, or bytes that never give a usable value, end in an error instead of a weak key."""
    with pytest.raises(StateError) as caught:
        generate(study(), SecretValues(), random=source, now=NOW)
    assert caught.value.code == "secret.random_source"


def test_letters_are_drawn_without_bias() -> None:
    """Bytes beyond the last full round of the alphabet are drawn again."""
    numbers = itertools.cycle((255, 0))
    policy = study()

    def source(size: int) -> bytes:
        return bytes([next(numbers)]) if size == 1 else stream("a")(size)

    values = generate(policy, SecretValues(), random=source, now=NOW)
    assert values["api-token"].value == b"A" * 20


def test_a_stored_value_is_never_read_as_another_kind() -> None:
    """Values of another version of the policy are refused, not reinterpreted."""
    values = generate(study(), SecretValues(), random=stream("a"), now=NOW)
    other = study(
        ("api-token, kind: ascii, size: 20", "api-token, kind: binary, size: 20"), ("api-token$$", "api-token:hex$$")
    )
    with pytest.raises(StateError) as caught:
        resolve_service(other, "aggregator", values)
    assert caught.value.code == "secret.kind_changed"
    with pytest.raises(StateError) as caught:
        resolve_service(study(), "aggregator", SecretValues())
    assert caught.value.code == "secret.no_value"


def test_values_do_not_show_in_their_representation() -> None:
    """Neither stored nor resolved secrets appear in `repr`."""
    policy = study()
    values = generate(policy, SecretValues(), random=stream("a"), now=NOW)
    token = values["api-token"].value.decode()
    key = format_secret(policy, values, "sidecar-key", "pem").decode().splitlines()[1]
    assert token not in repr(values)
    assert token not in repr(resolve_service(policy, "aggregator", values))
    assert key not in repr(resolve_service(policy, "trainer-cleveland", values))


def test_a_resolved_service_is_complete() -> None:
    """Files, variables, mounts and TLS parts hold the values in their formats."""
    policy = study()
    values = generate(policy, SecretValues(), random=stream("a"), now=NOW)
    service = resolve_service(policy, "aggregator", values)
    assert service.environment["TOKEN"] == values["api-token"].value.decode()
    assert service.files[0].content == values["superexec"].value
    assert service.files[0].mode == 0o400
    assert [(mount.volume, mount.writable) for mount in service.mounts] == [("code", False), ("model", True)]
    assert service.ingress[0].tls_server_ca == format_secret(policy, values, "superlink-ca", "crt").decode()
    assert service.console == "suppress"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ()),
        ("costs $$5", ("costs $$5",)),
        ("a$$SECFL::x$$b", ("a", Placeholder("x", None, escape_json=False), "b")),
        ("$$SECFL::x:hex|escape(json)$$", (Placeholder("x", "hex", escape_json=True),)),
        (
            "$$SECFL::x$$$$SECFL::y:b$$",
            (Placeholder("x", None, escape_json=False), Placeholder("y", "b", escape_json=False)),
        ),
    ],
)
def test_templates_split_into_parts(text: str, parts: tuple[str | Placeholder, ...]) -> None:
    """Literal text and placeholders keep their order; other dollar signs are text."""
    assert parse_template(text) == parts


def test_json_escaping_makes_several_lines_one() -> None:
    """A PEM value, escaped, stands in a JSON string of a variable."""
    filled = substitute(
        '{"key":"$$SECFL::k:pem|escape(json)$$"}',
        Context.ENVIRONMENT,
        kinds={"k": "private-key"},
        lookup=lambda name, chosen: b'a "b"\nc\n',
    )
    assert json.loads(filled) == {"key": 'a "b"\nc\n'}


def test_raw_bytes_cannot_be_escaped() -> None:
    """The escape is for text."""
    with pytest.raises(EncodingError) as caught:
        check_format(Placeholder("x", "bin", escape_json=True), "binary", Context.FILE)
    assert caught.value.code == "policy.placeholder_format"
