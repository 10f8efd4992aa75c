"""`secfl demo`: a confidential study by four real hospitals, from the first key to the audited model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from secfl.cli.demo.story import Story
from secfl.errors import ConfigError

__all__ = ["app"]

app = typer.Typer(help="Run a whole confidential federation on this machine.")


@app.command()
def demo(
    image: Annotated[Path, typer.Option(help="the runtime image")] = Path("build/image"),
    example: Annotated[Path, typer.Option(help="the example's folder")] = Path("examples/heart-disease"),
    target: Annotated[Path, typer.Option("--out", help="where report, bundle and model are left")] = Path("run/demo"),
    rounds: Annotated[int, typer.Option(min=1, help="rounds of training")] = 15,
    tee: Annotated[str, typer.Option(help="flavour of the simulated platform: tdx or sgx")] = "tdx",
) -> None:
    """Train on the records of four hospitals without showing them to anybody, and check everything."""
    for path in (image / "reference.json", example / "heart4.npz"):
        if not path.exists():
            raise ConfigError("demo.missing", f"{path} is missing", hint="make demo does all set-up")
    with tempfile.TemporaryDirectory(prefix="secfl-demo-") as base:
        Story(Path(base), image=image, example=example, target=target, rounds=rounds, tee=tee).tell()
