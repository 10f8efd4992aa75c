"""`secfl image`: the runtime image and its reference values."""

from __future__ import annotations

import shutil
import sysconfig
import time
from pathlib import Path
from typing import Annotated

import typer

from secfl.cli.console import note, out, print_json, table
from secfl.cli.enclaves import entry_of
from secfl.cli.options import Json
from secfl.crypto import strict_json
from secfl.federation.flower.contract import check_files, check_version
from secfl.linux.runtime.build import build_runtime_image
from secfl.party.home import read_file, write_file

__all__ = ["app"]

app = typer.Typer(help="Build and measure the runtime image.", no_args_is_help=True)
Out = Annotated[Path, typer.Option("--out", help="directory of the image")]


@app.command()
def build(
    target: Out,
    lock: Annotated[Path, typer.Option(help="hash-locked list of what goes in", exists=True)] = Path(
        "requirements/enclave.lock"
    ),
) -> None:
    """Build the image from this environment, every file checked against the digest of its wheel."""
    started = time.monotonic()
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with note.status("building the runtime image"):
        packages = Path(sysconfig.get_paths()["purelib"])
        check_version()
        check_files(packages)
        reference = build_runtime_image(partial, site_packages=packages, lock_file=lock)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(target)
    out.print(
        f"image {reference.image_root.hex()}: {reference.total_bytes / 2**20:.0f} MiB, "
        f"{len(reference.packages)} packages, {time.monotonic() - started:.1f} s"
    )


@app.command()
def show(
    target: Annotated[Path, typer.Argument(metavar="IMAGE", help="directory of the image", exists=True)],
    json: Json = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Show the reference values of an image."""
    document = strict_json.decode(read_file(target / "reference.json"))
    if json:
        print_json(document)
        return
    rows = [
        (name, kind, value)
        for name, entry in document["entrypoints"].items()
        for kind, value in entry["measurements"].items()
    ]
    out.print(table(f"image {document['image_root']}", ("entry", "platform", "measurement"), rows))


@app.command()
def reference(
    image: Annotated[Path, typer.Argument(help="directory of the image", exists=True, file_okay=False)],
    platform: Annotated[Path, typer.Option(help="platform.json of any site of the trust domain", exists=True)],
    target: Annotated[Path, typer.Option("--out", help="the study's handed-over/image.json")],
) -> None:
    """Write down what a study's services are measured as, from your own copy of the image."""
    public = strict_json.decode(read_file(platform))
    measurement = entry_of(image, "shield").measurements[public["tee"]]
    write_file(target, strict_json.encode({"measurement": measurement, "trust_domain": public["trust_domain"]}))
    out.print(f"{target}: measurement {measurement}")
