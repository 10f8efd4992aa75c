"""Properties of messages: one spelling each, and one class of error for everything else."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto.signing import SigningKey
from secfl.errors import AppraisalError, EncodingError, Finding, SecflError, StateError
from secfl.manager.audit_chain import AuditError, verify_chain
from secfl.manager.config import LaunchConfig
from secfl.manager.log import Event, Log, Row, parse_public
from secfl.protocol import failure, party, payload, public, service
from secfl.protocol.failure import decode_failure, encode_failure
from secfl.protocol.message import Base64, Digest, Identifier, Message, Name, Nonce, Seconds, UnixTime

MESSAGES = sorted(
    {
        cls
        for module in (failure, party, payload, public, service)
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Message) and cls is not Message
    }
    | {LaunchConfig},
    key=lambda cls: cls.__name__,
)
assert len(MESSAGES) > 30

scalars: dict[Any, st.SearchStrategy[Any]] = {
    Base64: st.binary(max_size=40),
    Digest: st.binary(min_size=32, max_size=32).map(bytes.hex),
    Identifier: st.binary(min_size=16, max_size=16).map(bytes.hex),
    Name: st.from_regex(r"[a-z0-9][a-z0-9._~-]{0,20}(/[a-z0-9]{1,5})?\Z", fullmatch=True),
    Nonce: st.binary(min_size=32, max_size=32),
    Seconds: st.integers(0, 2**40 - 1),
    UnixTime: st.integers(0, 2**40 - 1),
    bool: st.booleans(),
    int: st.integers(-(2**63) + 1, 2**63 - 1),
    str: st.text(st.characters(codec="utf-8"), max_size=10),
    Any: st.integers(0, 9) | st.text(st.characters(codec="utf-8"), max_size=4),
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a member's type."""
    if kind in scalars:
        return scalars[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(values(one) for one in arguments if one is not type(None)))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if inspect.isclass(kind) and issubclass(kind, Message):
        return messages(kind)
    raise AssertionError(f"no values for {kind}")


def messages(cls: type[Message]) -> st.SearchStrategy[Message]:
    """Messages of a class."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return st.builds(cls, **{name: values(hints[name]) for name in cls.model_fields})


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_message_has_one_spelling(cls: type[Message], data: st.DataObject) -> None:
    """What was encoded decodes to an equal message and encodes to the same bytes; a further byte is refused."""
    message = data.draw(messages(cls))
    encoded = message.encode()
    assert cls.decode(encoded) == message
    assert cls.decode(encoded).encode() == encoded
    for other in (encoded + b" ", b" " + encoded, encoded[:-1]):
        with pytest.raises(EncodingError):
            cls.decode(other)


@pytest.mark.parametrize("cls", [public.AttestRequest, party.Proposal, service.ServiceCall, payload.ServicePayload])
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_other_bytes_are_an_encoding_error(cls: type[Message], data: bytes) -> None:
    """No input makes a decoder fail in another way."""
    with pytest.raises(EncodingError):
        cls.decode(data)


def test_an_unknown_missing_or_null_member_is_refused() -> None:
    """A message is closed: nothing may be added, left out or set to null."""
    good = public.NonceReply(nonce=bytes(32), expires=1).encode()
    for other in (
        good[:-1] + b',"more":1}',
        good.replace(b'"expires":1', b'"expires":null'),
        b'{"expires":1}',
        good.replace(b"1,", b"1.0,"),
        good.replace(b'"expires":1', b'"expires":"1"'),
        good.replace(b'"expires":1', b'"expires":true'),
    ):
        with pytest.raises(EncodingError):
            public.NonceReply.decode(other)


def test_a_message_that_is_refused_shows_no_value() -> None:
    """The error names the member, never what was in it."""
    with pytest.raises(EncodingError) as caught:
        payload.InjectedFile.decode(b'{"content":7777,"path":"/a","permission":"0400"}')
    assert "7777" not in str(caught.value)
    assert "content" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        StateError("a.b", "text", hint="next", where="here", count=3),
        AppraisalError([Finding("a.b", "x", "y", "z"), Finding("c.d", "", "", "")]),
    ],
)
def test_an_error_travels(error: SecflError) -> None:
    """Class, code, hint, details and findings arrive as they were sent."""
    status, body = encode_failure(error)
    arrived = decode_failure(body)
    assert status == error.http_status
    assert type(arrived) is type(error)
    assert (arrived.code, arrived.hint) == (error.code, error.hint)
    if isinstance(error, AppraisalError):
        assert isinstance(arrived, AppraisalError)
        assert arrived.findings == error.findings
    else:
        assert dict(arrived.details) == dict(error.details)


def test_an_unexpected_error_tells_nothing() -> None:
    """The text of an error from outside the tree stays inside."""
    status, body = encode_failure(ValueError("a secret value"))
    assert status == 500
    assert b"secret" not in body
    assert decode_failure(body).code == "internal"


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_untrusted_log_bytes_are_an_encoding_error(data: bytes) -> None:
    """Neither the public part of an entry nor a bundle fails in another way, whatever its bytes."""
    key = SigningKey.generate_p256().public
    with pytest.raises(EncodingError):
        parse_public(data)
    with pytest.raises((EncodingError, AuditError)):
        verify_chain(data, key=key)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=6), times=st.data())
def test_a_log_reads_back_as_it_was_written(texts: list[str], times: st.DataObject) -> None:
    """Events, order and head survive; the time never runs back, whatever the host's clock did."""
    log, again = Log(bytes(16), bytes(32)), Log(bytes(16), bytes(32))
    rows: list[Row] = []
    for text in texts:
        now = times.draw(st.integers(0, 2**40))
        rows.append(log.append(Event("kind", {"text": text}, {"secret": text}), now=now, salt=bytes(32)).row)
    entries = list(again.load(rows))
    assert [entry.event.secret["secret"] for entry in entries] == texts
    assert [entry.time for entry in entries] == sorted(entry.time for entry in entries)
    assert (again.head, again.length) == (log.head, log.length)
