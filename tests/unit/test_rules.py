"""Path rules of the gateway."""

from __future__ import annotations

import pytest

from secfl.errors import AuthorizationError, ConfigError, EncodingError
from secfl.shield.rules import MAX_HOLD_SECONDS, Rules

RULES = Rules.parse(
    ["POST /v1/fleet/*", "GET /health"], hold={"/v1/fleet/pull-messages": 20}, linger={"/v1/fleet/confirm": 120}
)


def test_an_allowed_request_is_permitted_with_its_hold() -> None:
    """Exact paths, prefixes and holds work as written."""
    assert RULES.authorize("POST", "/v1/fleet/push-object").hold == 0
    assert RULES.authorize("POST", "/v1/fleet/pull-messages").hold == 20
    assert RULES.authorize("POST", "/v1/fleet/confirm").linger == 120
    assert RULES.authorize("GET", "/health").target == "/health"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/fleet/push-object"),
        ("post", "/v1/fleet/push-object"),
        ("POST", "/v1/fleet"),
        ("POST", "/v1/fleetx/a"),
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/Fleet/a"),
        ("GET", "/health/"),
        ("GET", "/healthz"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("GET", "/.secfl/session"),
    ],
)
def test_what_no_rule_names_is_refused(method: str, target: str) -> None:
    """Nothing is permitted by resemblance."""
    with pytest.raises(AuthorizationError):
        RULES.authorize(method, target)


@pytest.mark.parametrize(
    "target",
    [
        "",
        "*",
        "v1/fleet/a",
        "http://gateway/v1/fleet/a",
        "//gateway/v1/fleet/a",
        "/v1/fleet//a",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/./a",
        "/v1/fleet/..",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/%2E%2E/control/start-run",
        "/v1/fleet%2fa",
        "/v1/fleet/a%00",
        "/v1/fleet/a%",
        "/v1\\fleet\\a",
        "/v1/fleet/a;x=/../../control",
        "/v1/fleet/a#b",
        "/v1/fleet/\u00e9",
        "/v1/fleet/a b",
        "/v1/fleet/a\n",
        "/v1/fleet/a\r\nX: y",
        "/v1/fleet/" + "a" * 3000,
        "/v1/fleet/a?",
        "/v1/fleet/a?x=1",
    ],
)
def test_a_target_in_any_other_spelling_is_refused(target: str) -> None:
    """Two readers of one path must not see two paths."""
    with pytest.raises(EncodingError) as caught:
        RULES.authorize("POST", target)
    assert caught.value.code == "gateway.target_malformed"


def test_without_rules_nothing_is_permitted() -> None:
    """Empty allows nothing."""
    with pytest.raises(AuthorizationError):
        Rules.parse([]).authorize("GET", "/")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GET",
        "GET ",
        "GET x",
        "get /x",
        "HEAD /x",
        "CONNECT /x",
        "* /x",
        "GET *",
        "GET /*/b",
        "GET /a//b",
        "GET /a/../b",
        "GET  /a",
        "GET /a ",
        "GET /a?",
        "GET /a?b",
        "GET /a%20b",
        "GET /a/**",
    ],
)
def test_a_malformed_rule_is_a_config_error(text: str) -> None:
    """A rule means one thing or is refused."""
    with pytest.raises(ConfigError) as caught:
        Rules.parse([text])
    assert caught.value.code == "rules.malformed"


@pytest.mark.parametrize("seconds", [0, -1, MAX_HOLD_SECONDS + 1])
def test_a_hold_beyond_the_engines_timeout_is_refused(seconds: int) -> None:
    """A hold that outlives the client would lose messages."""
    with pytest.raises(ConfigError) as caught:
        Rules.parse(["GET /x"], hold={"/x": seconds})
    assert caught.value.code == "rules.wait_out_of_range"
