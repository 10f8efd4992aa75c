"""The report: one self-contained HTML page about a run, for people who were not there.

Everything shown comes from the record of the run; names and findings are escaped by the template engine (NW-12). The
page loads nothing: curves are inline SVG, and its content security policy forbids scripts and requests.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

__all__ = ["RunRecord", "curves", "render_report"]


@dataclass(slots=True)
class RunRecord:
    """What happened in one run.

    Attributes:
        title: the study's title.
        trust_domain: under which everything was appraised; a simulated one is shown on top.
        facts: name and value pairs for the head of the page.
        attested: rows of who attested whom: verifier, service, site, measurement, platform.
        refused: rows of who was refused: who, rule, expected, actual, remedy.
        rounds: rows with `round` and, for each series, float values by metric.
        equal: whether confidential and plain run agree bit for bit; None when only one ran.
        timings: step and seconds.
        memory: process and peak MiB.
        limits: sentences about what this run does not protect.
    """

    title: str
    trust_domain: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    attested: list[Mapping[str, str]] = field(default_factory=list)
    refused: list[Mapping[str, str]] = field(default_factory=list)
    rounds: list[Mapping[str, Any]] = field(default_factory=list)
    equal: bool | None = None
    timings: list[tuple[str, float]] = field(default_factory=list)
    memory: list[tuple[str, float]] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)


def curves(rounds: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """Draw one panel a metric, confidential over plain, as an SVG element.

    Raises:
        ValueError: there is no round or no metric.
    """
    if not rounds or not metrics:
        raise ValueError("nothing to draw")
    with mpl.rc_context({"svg.hashsalt": "secfl", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(3.6 * len(metrics), 2.7))
        panels = figure.subplots(1, len(metrics), squeeze=False)
        for panel, metric in zip(panels[0], metrics, strict=True):
            for series, style in (("plain", {"lw": 4, "alpha": 0.35}), ("confidential", {"lw": 1.5})):
                points = [(row["round"], row[series][metric]) for row in rounds if metric in row.get(series, {})]
                if points:
                    panel.plot(*zip(*points, strict=True), label=series, **style)
            panel.set_title(metric)
            panel.set_xlabel("round")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.grid(visible=True, alpha=0.3)
        panels[0][0].legend()
        figure.tight_layout()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def render_report(record: RunRecord) -> str:
    """Render the page.

    Raises:
        jinja2.TemplateError: the template names something that the record lacks.
    """
    metrics = sorted({name for row in record.rounds for name in row.get("confidential", {})})
    drawing = Markup(curves(record.rounds, metrics)) if record.rounds and metrics else ""  # noqa: S704 - our own SVG
    environment = Environment(loader=PackageLoader("secfl.cli"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html").render(record=record, drawing=drawing, metrics=metrics)
