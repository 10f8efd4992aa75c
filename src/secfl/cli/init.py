"""`secfl init`: from a Flower app to a study folder: policy draft, site files, partition skeleton, next steps."""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any

import typer
from jinja2 import Environment, PackageLoader, StrictUndefined

from secfl.cli.console import out
from secfl.cli.study_plan import GATEWAY_PORT, StudyPlan, draft_policy
from secfl.crypto import strict_json
from secfl.errors import ConfigError
from secfl.federation.flower.bundle import build
from secfl.party.home import write_file

__all__ = ["app", "site_file", "write_study"]

app = typer.Typer(help="Start a study around an app.")
MANAGER_PORT = 7443
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\Z")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+(?:[eE][-+]?[0-9]{1,3})?|[eE][-+]?[0-9]{1,3})\Z")


def parse_settings(texts: list[str]) -> dict[str, Any]:
    """Read `key=value` texts: true, false, whole numbers, numbers with a point, anything else as text.

    Raises:
        ConfigError: `init.setting`, also for a key that is given twice.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or key in settings:
            raise ConfigError("init.setting", f"{text!r} is not key=value, or given twice")
        settings[key] = _scalar(value)
    return settings


def _scalar(value: str) -> bool | int | float | str:
    if value in ("true", "false"):
        return value == "true"
    # Not by trying int() and float(): they take "1_000", "nan" and blanks.
    if _INTEGER.match(value):
        return int(value)
    return float(value) if _DECIMAL.match(value) else value


def site_file(plan: StudyPlan, site: str, *, addresses: dict[str, str]) -> bytes:
    """Write what the operator of a site tells its enclaves: addresses and directories, nothing that is trusted.

    A site may run the aggregator and a trainer; a launch takes what its service mounts.
    """
    images, peers, volumes = {"code": "volumes/code"}, {}, {}
    if site in plan.sites:
        images[f"cohort-{site}"] = "volumes/cohort"
        peers["aggregator"] = f"{addresses[plan.aggregator_site]}:{GATEWAY_PORT}"
    if site == plan.aggregator_site:
        volumes["model"] = "volumes/model"
    return strict_json.encode(
        {
            "site": site,
            "manager": f"{addresses['manager']}:{MANAGER_PORT}",
            "listen": addresses[site],
            "peers": peers,
            "images": images,
            "volumes": volumes,
        }
    )


def write_study(folder: Path, plan: StudyPlan, *, addresses: dict[str, str]) -> None:
    """Write the study folder.

    Raises:
        ConfigError: `init.exists`, `init.address` or a configuration that the engine cannot take.
    """
    if folder.exists():
        raise ConfigError("init.exists", f"{folder} exists already", hint="choose a new folder")
    missing = {"manager", plan.aggregator_site, *plan.sites} - set(addresses)
    if missing:
        raise ConfigError("init.address", f"no address for {', '.join(sorted(missing))}", hint="--address NAME=IP")
    for name, address in addresses.items():
        _require_address(name, address)
    draft = draft_policy(plan)
    for name in ("handed-over/parties", "handed-over/platforms", "handed-over/volumes", "sites"):
        (folder / name).mkdir(parents=True)
    write_file(folder / "policy.draft.yaml", draft.encode())
    for site in {plan.aggregator_site, *plan.sites}:
        write_file(folder / "sites" / f"{site}.json", site_file(plan, site, addresses=addresses))
    environment = Environment(
        loader=PackageLoader("secfl.cli"),
        autoescape=False,  # noqa: S701 - Markdown and Python, not HTML
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    for source, target in (("study_readme.md", "README.md"), ("partition.py.txt", "partition.py")):
        write_file(folder / target, environment.get_template(source).render(plan=plan).encode())


def _require_address(name: str, address: str) -> None:
    try:
        IPv4Address(address)
    except ValueError as error:
        raise ConfigError("init.address", f"{name}: {address!r} is not an IPv4 address") from error


@app.command()
def init(  # noqa: PLR0913 - one parameter for each option
    app_dir: Annotated[Path, typer.Option("--app", help="the Flower app's folder", exists=True, file_okay=False)],
    study: Annotated[str, typer.Option(help="the study's name")],
    owner: Annotated[str, typer.Option(help="the party that owns code and model")],
    site: Annotated[list[str], typer.Option(help="a data-owning party, once for each")],
    target: Annotated[Path, typer.Option("--out", help="new folder for the study")],
    rounds: Annotated[int, typer.Option(help="number of rounds")],
    aggregator_site: Annotated[str, typer.Option(help="where the aggregator runs")] = "aggregator",
    address: Annotated[list[str] | None, typer.Option(help="NAME=IP of the manager and each site")] = None,
    run_config: Annotated[list[str] | None, typer.Option(help="key=value over the app's own configuration")] = None,
    node_config: Annotated[list[str] | None, typer.Option(help="key=value that each trainer tells the app")] = None,
    tee: Annotated[str, typer.Option(help="tdx or sgx")] = "tdx",
) -> None:
    """Write policy draft, site files, partition skeleton and the next steps for each role."""
    bundle = build(app_dir)
    plan = StudyPlan(
        study=study,
        owner=owner,
        sites=tuple(site),
        aggregator_site=aggregator_site,
        app_hash=bundle.sha256,
        rounds=rounds,
        run_config=parse_settings(run_config or []),
        node_config=parse_settings(node_config or []),
        tee=tee,
    )
    write_study(target, plan, addresses={k: str(v) for k, v in parse_settings(address or []).items()})
    out.print(f"{target}: app bundle {bundle.sha256}")
    out.print(f"next: read {target / 'README.md'}")
