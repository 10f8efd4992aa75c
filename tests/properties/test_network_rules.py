"""Properties of path rules and sealed sessions."""

from __future__ import annotations

import hashlib
import posixpath
import urllib.parse

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from secfl.crypto.hpke import SealingKey
from secfl.errors import FreshnessError, SecflError
from secfl.protocol.session import WINDOW, Ends, InitiatorSession, Offer, ResponderSession, respond
from secfl.shield.rules import Rules

RULES = Rules.parse(["POST /v1/fleet/*"])
TRAINER, GATEWAY = SealingKey.generate(), SealingKey.generate()
TARGETS = st.lists(
    st.sampled_from(
        [
            "/",
            "//",
            "v1",
            "fleet",
            "control",
            ".",
            "..",
            "%2e",
            "%2E%2e",
            "%2f",
            "%5c",
            "\\",
            ";",
            "?",
            "#",
            "a",
            "*",
            " ",
        ]
    ),
    max_size=12,
).map("".join)


def agree() -> tuple[InitiatorSession, ResponderSession]:
    ends = Ends(b"\1" * 32, b"\2" * 32)
    trainer_hash, gateway_hash = (hashlib.sha256(key.public).digest() for key in (TRAINER, GATEWAY))
    offer = Offer(TRAINER, ends, responder_key=GATEWAY.public, responder_key_hash=gateway_hash)
    responder, answer = respond(GATEWAY, ends, offer.message, initiator_key_hash=trainer_hash)
    return offer.finish(answer), responder


@given(st.one_of(TARGETS, TARGETS.map(lambda rest: "/v1/fleet/" + rest), st.text(max_size=40)))
@settings(max_examples=400, deadline=None)
def test_whatever_is_permitted_stays_below_the_prefix_for_every_reader(target: str) -> None:
    """A permitted target is its own normal form: decoding and resolving it, even twice, changes nothing."""
    try:
        permitted = RULES.authorize("POST", target).target
    except SecflError:
        return
    read = permitted
    for _ in range(2):
        read = posixpath.normpath(urllib.parse.unquote(urllib.parse.urlsplit(read).path.replace("\\", "/")))
        assert read == permitted.removesuffix("/")
    assert (read + "/").startswith("/v1/fleet/")


@given(st.permutations(range(24)), st.lists(st.integers(0, 23), max_size=24))
@settings(max_examples=50, deadline=None)
def test_in_any_order_each_request_opens_exactly_once(order: list[int], replays: list[int]) -> None:
    """Overtaking inside the window is harmless, a replay never passes."""
    initiator, responder = agree()
    sealed = [initiator.seal_request("POST", "/x", b"%d" % n) for n in range(24)]
    opened = []
    for number in [*order, *replays]:
        try:
            opened.append(responder.open_request(sealed[number][0], "POST", "/x", sealed[number][1]))
        except FreshnessError:
            continue
    assert sorted(opened) == sorted(b"%d" % n for n in range(24))


@given(st.binary(max_size=64), st.integers(0, 2**24), st.integers(1, 3 * WINDOW))
@settings(max_examples=50, deadline=None)
def test_bytes_of_nobody_never_open(noise: bytes, sequence: int, flip: int) -> None:
    """Noise and flipped bits give one error class and leave the session usable."""
    initiator, responder = agree()
    number, sealed = initiator.seal_request("POST", "/x", bytes(range(100)))
    changed = bytearray(sealed)
    changed[flip % len(changed)] ^= 1 + flip % 255
    assume(bytes(changed) != sealed)
    for attempt in (noise, bytes(changed)):
        for at in (number, sequence):
            try:
                responder.open_request(at, "POST", "/x", attempt)
            except SecflError:
                continue
            raise AssertionError("a forged body was opened")
    assert responder.open_request(number, "POST", "/x", sealed) == bytes(range(100))
