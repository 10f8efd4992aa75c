"""The app bundle: what is agreed on, hashed and run.

Flower's own builder makes the bundle (FAB) from an app directory, deterministically; its SHA-256 over all bytes is the
app's identity in a policy. Code is loaded only from a bundle that was built *here* from a directory that the caller
trusts, unpacked into a fresh directory: stray byte code or extension modules beside the sources are never importable,
and nothing that came over the wire is ever unpacked.
"""

from __future__ import annotations

import hashlib
import io
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from secfl.errors import ConfigError, EngineError
from secfl.federation.flower.launch import Scalar

__all__ = ["Bundle", "build", "require", "unpack"]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A built app bundle.

    Attributes:
        content: the bytes of the FAB.
        sha256: lower-case hex digest of `content`.
        app_id: publisher and name, as Flower writes it.
        version: the app's version.
        server: reference of the ServerApp, `module:attribute`.
        client: reference of the ClientApp.
        defaults: the run configuration that the app itself carries, flat with dotted keys.
    """

    content: bytes
    sha256: str
    app_id: str
    version: str
    server: str
    client: str
    defaults: Mapping[str, Scalar]

    def run_config(self, overrides: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Merge the app's own configuration with overrides; a key that the app does not have is an error.

        Raises:
            ConfigError: `engine.run_config_key`.
        """
        unknown = sorted(set(overrides) - set(self.defaults))
        if unknown:
            raise ConfigError("engine.run_config_key", f"the app has no run configuration key {unknown[0]!r}")
        return {**self.defaults, **overrides}


def build(app_directory: Path) -> Bundle:
    """Build the bundle of an app directory with Flower's own builder.

    Raises:
        ConfigError: `engine.app_directory`, `engine.app_invalid`.
    """
    from flwr.cli.build import build_fab_from_files
    from flwr.cli.utils import collect_files

    if not (app_directory / "pyproject.toml").is_file():
        raise ConfigError("engine.app_directory", f"{app_directory} is not a Flower app: it has no pyproject.toml")
    try:
        # Every file is read once, so that what is hashed is what is run.
        files = {name: source.read_bytes() for name, source in collect_files(app_directory.resolve()).items()}
        content, _ = build_fab_from_files(files)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            project = tomllib.loads(archive.read("pyproject.toml").decode())
        app = project["tool"]["flwr"]["app"]
        return Bundle(
            content=content,
            sha256=hashlib.sha256(content).hexdigest(),
            app_id=f"{app['publisher']}/{project['project']['name']}",
            version=project["project"]["version"],
            server=app["components"]["serverapp"],
            client=app["components"]["clientapp"],
            defaults=_flatten(app.get("config", {})),
        )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ConfigError("engine.app_invalid", f"Flower cannot build this app: {error}") from error


def require(bundle: Bundle, app_hash: str) -> Bundle:
    """Return the bundle if it is the pinned one.

    Raises:
        EngineError: `engine.app_not_pinned`.
    """
    if bundle.sha256 != app_hash:
        raise EngineError(
            "engine.app_not_pinned",
            "the app is not the one that the policy names",
            hint="propose a policy with the new hash, or restore the reviewed code",
            expected=app_hash,
            actual=bundle.sha256,
        )
    return bundle


def unpack(bundle: Bundle, target: Path) -> Path:
    """Write the bundle's files below a directory that does not exist yet; return it.

    Raises:
        EngineError: `engine.app_path`, `engine.app_unpack`.
    """
    try:
        target.mkdir(parents=True, mode=0o700)
        with zipfile.ZipFile(io.BytesIO(bundle.content)) as archive:
            for name in archive.namelist():
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts:
                    raise EngineError("engine.app_path", "the app holds a path outside itself")
                file = target.joinpath(*path.parts)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))
    except OSError as error:
        raise EngineError("engine.app_unpack", "the app cannot be unpacked", path=str(target)) from error
    return target


def _flatten(table: Mapping[str, object], prefix: str = "") -> dict[str, Scalar]:
    flat: dict[str, Scalar] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            flat[prefix + key] = value
        else:
            raise ConfigError("engine.app_invalid", f"the run configuration value {key!r} is not a scalar")
    return flat
