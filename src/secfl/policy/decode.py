"""Decoding a policy: bytes in; a valid policy or one error with every finding out.

1. The strict YAML subset (`yaml_tree`). 2. The closed model (`model`). 3. The rules between parts (`validate`). A step
runs only on what the step before accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from secfl.policy.findings import Path, PolicyError, PolicyFinding, RuleBreach, path_text, shown
from secfl.policy.model import Policy
from secfl.policy.validate import breaches
from secfl.policy.yaml_tree import Tree, parse_tree

__all__ = ["decode"]

_YAML_1_1_TRUTH = frozenset({"yes", "no", "on", "off", "y", "n"})
_ABSENT = frozenset({"missing", "union_tag_not_found"})
_MAX_FINDINGS = 100
"""More would only bury the first ones."""

_EXPECTED: Mapping[str, tuple[str, str, str]] = {
    "missing": ("policy.missing_key", "this key", "add it"),
    "extra_forbidden": ("policy.unknown_key", "a key of the language", "correct the spelling or remove it"),
    "string_type": ("policy.type", "text", "put the value in quotes"),
    "int_type": ("policy.type", "a whole number", "write digits without quotes"),
    "bool_type": ("policy.type", "true or false", "write true or false"),
    "tuple_type": ("policy.type", "a list", "write a list"),
    "mapping_type": ("policy.type", "a map", "write a map"),
    "dict_type": ("policy.type", "a map", "write a map"),
    "model_type": ("policy.type", "a map", "write a map"),
    "model_attributes_type": ("policy.type", "a map", "write a map"),
    "union_tag_not_found": ("policy.missing_key", "the key {discriminator}", "add it"),
    "union_tag_invalid": ("policy.value", "one of {expected_tags}", "write one of these"),
    "literal_error": ("policy.value", "{expected}", "write one of these"),
    "greater_than_equal": ("policy.range", "at least {ge}", "correct the number"),
    "less_than_equal": ("policy.range", "at most {le}", "correct the number"),
    "too_short": ("policy.empty_list", "at least {min_length} entry", "list what is allowed; empty allows nothing"),
    "too_long": ("policy.too_many_entries", "at most {max_length} entries", "shorten the list"),
    "string_too_long": ("policy.too_long", "at most {max_length} characters", "shorten the text"),
}


def decode(data: bytes, *, source: str = "policy") -> Policy:
    """Decode a policy.

    Args:
        source: name of the file, for messages only.

    Raises:
        PolicyError: all `policy.*` codes; carries the findings.
    """
    tree = parse_tree(data, source=source)
    try:
        policy = Policy.model_validate(tree.data)
    except ValidationError as error:
        raise PolicyError(_model_findings(tree, error)) from None
    found = [_place(tree, breach) for breach in breaches(policy)]
    if found:
        raise PolicyError(found[:_MAX_FINDINGS])
    return policy


def _place(tree: Tree, breach: RuleBreach, *, key: bool = False) -> PolicyFinding:
    _, position = tree.locate(breach.path, key=key)
    return PolicyFinding(
        rule=breach.rule,
        source=tree.source,
        line=position.line,
        column=position.column,
        path=path_text(breach.path),
        expected=breach.expected,
        actual=breach.actual,
        remedy=breach.remedy,
    )


def _model_findings(tree: Tree, error: ValidationError) -> list[PolicyFinding]:
    findings: list[PolicyFinding] = []
    for detail in error.errors(include_url=False)[:_MAX_FINDINGS]:
        location, kind, value = detail["loc"], detail["type"], detail["input"]
        context: Mapping[str, Any] = detail.get("ctx", {})
        if kind == "too_short" and len(value) >= context["min_length"]:
            continue  # counts only the entries that are valid; those that are not have their own finding
        about_key = kind == "extra_forbidden" or (bool(location) and location[-1] == "[key]")
        if kind == "union_tag_invalid":
            location, value = (*location, context["discriminator"].strip("'")), context["tag"]
        path = _path(tree, location)
        rule, expected, remedy = _EXPECTED.get(kind, (kind, "{expected}", "{remedy}"))
        if not rule.startswith("policy."):
            rule, expected, remedy = "policy.value", detail["msg"], "correct the value"
        actual = "nothing" if kind in _ABSENT else shown(path[-1] if about_key and path else value)
        if expected == "{expected}" and context.get("expected") == "true" and str(value).lower() in _YAML_1_1_TRUTH:
            remedy = "yes, no, on and off are plain text here: write true or remove the key"
        breach = RuleBreach(rule, path, _fill(expected, context), actual, _fill(remedy, context))
        findings.append(_place(tree, breach, key=about_key))
    findings.sort(key=lambda finding: (finding.line, finding.column))
    return findings


def _fill(text: str, context: Mapping[str, Any]) -> str:
    for name, value in context.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def _path(tree: Tree, location: tuple[str | int, ...]) -> Path:
    """Turn pydantic's location into a path of the file: union tags are no keys of it; the last key may be missing."""
    path: Path = ()
    value: Any = tree.data
    for index, part in enumerate(location):
        if (*path, part) in tree.places:
            path, value = (*path, part), value[part]
        elif index == len(location) - 1 and isinstance(value, dict) and part != "[key]":
            path = (*path, part)
    return path
