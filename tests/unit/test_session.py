"""The sealed session: agreement, binding of every body, window."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secfl.crypto import strict_json
from secfl.crypto.aead import derive_key
from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.crypto.hpke import SealingKey, seal_to
from secfl.crypto.transcript import digest256, transcript
from secfl.errors import EncodingError, FreshnessError, SecflError, StateError, VerificationError
from secfl.protocol.session import OVERHEAD_BYTES, WINDOW, Ends, InitiatorSession, Offer, ResponderSession, respond

TRAINER, GATEWAY = SealingKey.generate(), SealingKey.generate()
ENDS = Ends(b"\1" * 32, b"\2" * 32)


def digest(key: SealingKey) -> bytes:
    return hashlib.sha256(key.public).digest()


def offer(ends: Ends = ENDS) -> Offer:
    return Offer(TRAINER, ends, responder_key=GATEWAY.public, responder_key_hash=digest(GATEWAY))


def agree() -> tuple[InitiatorSession, ResponderSession]:
    made = offer()
    responder, answer = respond(GATEWAY, ENDS, made.message, initiator_key_hash=digest(TRAINER))
    return made.finish(answer), responder


def test_both_ends_derive_the_same_session() -> None:
    """A request opens at the responder and its response at the initiator."""
    initiator, responder = agree()
    assert initiator.session_id == responder.session_id
    sequence, sealed = initiator.seal_request("POST", "/x", b"model")
    assert sequence == 0
    assert b"model" not in sealed
    assert len(sealed) == len(b"model") + OVERHEAD_BYTES
    assert responder.open_request(sequence, "POST", "/x", sealed) == b"model"
    answer = responder.seal_response(sequence, 200, b"reply")
    assert initiator.open_response(sequence, 200, answer) == b"reply"


def test_a_session_follows_from_its_two_messages() -> None:
    """Whoever holds both private keys derives the session and opens its bodies, by these labels and lengths."""
    made = offer()
    responder, answer = respond(GATEWAY, ENDS, made.message, initiator_key_hash=digest(TRAINER))
    initiator = made.finish(answer)
    offered, answered = (from_base64url(strict_json.decode(message)["sealed"]) for message in (made.message, answer))
    ends = transcript("session-ends", ENDS.initiator, ENDS.responder)
    about = transcript("session-answer-context", ends, made.message)
    secret = GATEWAY.open(offered, purpose="session-offer", context=ends)
    secret += TRAINER.open(answered, purpose="session-answer", context=about)
    agreement = digest256("session-agreement", ends, made.message, answer)
    assert initiator.session_id == agreement[:16].hex()

    def opened(label: str, sealed: bytes, head: bytes) -> bytes:
        aad = transcript("session-body", agreement[:16], bytes(8), head)
        return AESGCM(derive_key(secret, label, agreement)).decrypt(bytes(12), sealed, aad)

    head = transcript("session-request-head", b"POST", b"/x")
    sequence, sealed = initiator.seal_request("POST", "/x", b"model")
    assert opened("session-request", sealed, head) == b"model"
    responder.open_request(sequence, "POST", "/x", sealed)
    head = transcript("session-response-head", head, b"\x00\xc8")
    assert opened("session-response", responder.seal_response(sequence, 200, b"reply"), head) == b"reply"


def test_two_agreements_give_two_sessions() -> None:
    """No session is ever repeated."""
    assert agree()[0].session_id != agree()[0].session_id


def test_a_sealing_key_that_the_evidence_does_not_name_is_refused() -> None:
    """Neither end seals to a key that is not the attested one."""
    other = SealingKey.generate()
    with pytest.raises(VerificationError) as caught:
        Offer(TRAINER, ENDS, responder_key=other.public, responder_key_hash=digest(GATEWAY))
    assert caught.value.code == "session.sealing_key"
    with pytest.raises(VerificationError) as caught:
        respond(GATEWAY, ENDS, offer().message, initiator_key_hash=digest(other))
    assert caught.value.code == "session.sealing_key"


@pytest.mark.parametrize("ends", [Ends(b"\1" * 32, b"\3" * 32), Ends(b"\3" * 32, b"\2" * 32)])
def test_an_offer_for_other_certificates_does_not_open(ends: Ends) -> None:
    """An offer relayed to another pair of certificates is worthless."""
    with pytest.raises(VerificationError) as caught:
        respond(GATEWAY, ends, offer().message, initiator_key_hash=digest(TRAINER))
    assert caught.value.code == "crypto.open_failed"


def test_an_answer_to_another_offer_does_not_open() -> None:
    """The responder's secret belongs to one offer."""
    _, answer = respond(GATEWAY, ENDS, offer().message, initiator_key_hash=digest(TRAINER))
    with pytest.raises(VerificationError):
        offer().finish(answer)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"1",
        b"[]",
        b'["key","sealed"]',
        b'{"key":1,"sealed":"AA"}',
        b'{"sealed":"AA"}',
        b'{"key":"AA","more":"","sealed":"AA"}',
        b'{"key":"A=","sealed":"AA"}',
        b"x" * 9000,
    ],
)
def test_a_malformed_offer_is_an_encoding_error(message: bytes) -> None:
    """Anything but the one form is refused with one code."""
    with pytest.raises(EncodingError) as caught:
        respond(GATEWAY, ENDS, message, initiator_key_hash=digest(TRAINER))
    assert caught.value.code == "session.malformed"


@pytest.mark.parametrize(("sealed", "code"), [("AA", "session.sealing_key"), ("AAA", "session.malformed")])
def test_a_message_has_a_longest_size(sealed: str, code: str) -> None:
    """8 KiB are read, and then refused for what they say; a byte more is not."""
    message = strict_json.encode({"key": "A" * 8168, "sealed": sealed})
    assert len(message) == 8190 + len(sealed)
    with pytest.raises(SecflError) as caught:
        respond(GATEWAY, ENDS, message, initiator_key_hash=digest(TRAINER))
    assert caught.value.code == code


@pytest.mark.parametrize("size", [5, 31, 33])
def test_a_secret_of_another_size_is_refused(size: int) -> None:
    """A peer cannot contribute less than 32 bytes, nor more."""
    made = offer()
    sealed = seal_to(GATEWAY.public, b"s" * size, purpose="session-offer", context=ENDS.context())
    message = strict_json.encode({"key": to_base64url(TRAINER.public), "sealed": to_base64url(sealed)})
    with pytest.raises(EncodingError) as caught:
        respond(GATEWAY, ENDS, message, initiator_key_hash=digest(TRAINER))
    assert caught.value.code == "session.malformed"
    assert made.message != message


@pytest.mark.parametrize("change", ["body", "method", "path", "sequence", "session"])
def test_a_request_changed_in_one_field_does_not_open(change: str) -> None:
    """Body, method, path, sequence and session are all bound."""
    initiator, responder = agree()
    sequence, sealed = initiator.seal_request("POST", "/x", b"model")
    if change == "session":
        _, responder = agree()
    fields = {
        "sequence": sequence + (change == "sequence"),
        "method": "PUT" if change == "method" else "POST",
        "path": "/y" if change == "path" else "/x",
        "sealed": sealed[:-1] + bytes([sealed[-1] ^ 1]) if change == "body" else sealed,
    }
    with pytest.raises(VerificationError) as caught:
        responder.open_request(**fields)  # type: ignore[arg-type]  # values by name
    assert caught.value.code == "crypto.open_failed"
    assert fields["sequence"] == sequence or responder.open_request(sequence, "POST", "/x", sealed) == b"model"


def test_a_response_of_another_status_request_or_direction_does_not_open() -> None:
    """A response is bound to its status and its request, and is no request."""
    initiator, responder = agree()
    first, one = initiator.seal_request("POST", "/x", b"")
    second, two = initiator.seal_request("POST", "/x", b"")
    responder.open_request(first, "POST", "/x", one)
    answer = responder.seal_response(first, 200, b"reply")
    for sequence, status in ((first, 404), (second, 200)):
        with pytest.raises(VerificationError):
            initiator.open_response(sequence, status, answer)
    with pytest.raises(VerificationError):
        responder.open_request(second, "POST", "/x", answer)
    with pytest.raises(VerificationError):
        initiator.open_response(second, 200, two)
    assert initiator.open_response(first, 200, answer) == b"reply"


def test_a_request_or_response_opens_once() -> None:
    """A replay is refused at both ends."""
    initiator, responder = agree()
    sequence, sealed = initiator.seal_request("POST", "/x", b"")
    responder.open_request(sequence, "POST", "/x", sealed)
    with pytest.raises(FreshnessError) as caught:
        responder.open_request(sequence, "POST", "/x", sealed)
    assert caught.value.code == "session.replayed"
    answer = responder.seal_response(sequence, 200, b"")
    initiator.open_response(sequence, 200, answer)
    with pytest.raises(FreshnessError) as caught:
        initiator.open_response(sequence, 200, answer)
    assert caught.value.code == "session.replayed"


def test_a_forgotten_exchange_is_over() -> None:
    """After a failed exchange neither end takes or gives its response any more."""
    initiator, responder = agree()
    requests = [initiator.seal_request("POST", "/x", b"") for _ in range(2)]
    for request in requests:
        responder.open_request(*_args(request))
    answer = responder.seal_response(0, 200, b"")
    initiator.forget(0)
    with pytest.raises(FreshnessError) as late:
        initiator.open_response(0, 200, answer)
    assert late.value.code == "session.replayed"
    responder.forget(1)
    with pytest.raises(StateError) as unasked:
        responder.seal_response(1, 200, b"")
    assert unasked.value.code == "session.answered"


def test_a_session_ends_after_its_last_request() -> None:
    """The 2**24th request is the last one: no sequence number, and so no nonce, is used beyond it."""
    initiator, responder = agree()
    initiator._next = 2**24 - 1  # sealing the sixteen million before it would take minutes
    before = initiator.exhausted
    last = initiator.seal_request("POST", "/x", b"last")
    assert responder.open_request(*_args(last)) == b"last"
    assert (before, initiator.exhausted) == (False, True)
    with pytest.raises(StateError) as caught:
        initiator.seal_request("POST", "/x", b"")
    assert caught.value.code == "session.exhausted"


def test_a_request_is_answered_once() -> None:
    """A second answer would reuse a nonce."""
    initiator, responder = agree()
    sequence, sealed = initiator.seal_request("POST", "/x", b"")
    with pytest.raises(StateError):
        responder.seal_response(sequence, 200, b"")
    responder.open_request(sequence, "POST", "/x", sealed)
    responder.seal_response(sequence, 200, b"")
    with pytest.raises(StateError) as caught:
        responder.seal_response(sequence, 200, b"other")
    assert caught.value.code == "session.answered"


def test_what_falls_behind_the_window_is_refused() -> None:
    """Parallel requests may overtake each other by less than the window."""
    initiator, responder = agree()
    requests = [initiator.seal_request("POST", "/x", b"%d" % n) for n in range(WINDOW + 1)]
    responder.open_request(*_args(requests[-1]))
    assert responder.open_request(*_args(requests[1])) == b"1"
    with pytest.raises(FreshnessError):
        responder.open_request(*_args(requests[0]))


def test_no_request_opens_twice_however_the_window_moved() -> None:
    """Early, late, in leaps of more than the window: what was opened is refused ever after, in bounded memory."""
    initiator, responder = agree()
    requests = [initiator.seal_request("POST", "/x", b"") for _ in range(600)]
    order = (0, 2, 1, 255, 3, 300, 45, 299, 556, 555, 301)
    for count, sequence in enumerate(order, 1):
        responder.open_request(*_args(requests[sequence]))
        for earlier in order[:count]:
            with pytest.raises(FreshnessError) as caught:
                responder.open_request(*_args(requests[earlier]))
            assert caught.value.code == "session.replayed"
    assert responder._seen.bit_length() <= WINDOW


def test_a_forged_sequence_number_does_not_move_the_window() -> None:
    """Noise cannot lock the true sender out."""
    initiator, responder = agree()
    sequence, sealed = initiator.seal_request("POST", "/x", b"model")
    refusals = {-1: "session.replayed", 2**24: "session.replayed", 2**24 - 1: "crypto.open_failed"}
    for forged, code in refusals.items():
        with pytest.raises(SecflError) as caught:
            responder.open_request(forged, "POST", "/x", sealed)
        assert caught.value.code == code
    assert responder.open_request(sequence, "POST", "/x", sealed) == b"model"


def _args(request: tuple[int, bytes]) -> tuple[int, str, str, bytes]:
    return request[0], "POST", "/x", request[1]
