"""The harness: a whole federation of real processes on one machine, each site with its own platform, user and network.

Used by the demonstration, the end-to-end tests and the benchmarks. It stands for the operators: it starts platforms,
manager and services and carries files. What a party decides is done in a process of that party's site, by the same
library calls as the command line.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from secfl.cli.enclaves import Entry, entry_of, launch, prepare_host
from secfl.cli.manager import founders_of, install_collateral, manager_config, reference_of
from secfl.cli.parties import Party
from secfl.cli.simulated import BUNDLE, PUBLIC, create_platform, create_vendor, run_platform
from secfl.cli.study_plan import GATEWAY_PORT, HandedOver, StudyPlan, assemble, draft_policy
from secfl.crypto import strict_json
from secfl.errors import EngineError, UnavailableError
from secfl.party.home import read_file, write_file
from secfl.policy.version import PolicyVersion
from secfl.shield.config import LaunchConfig
from secfl.tee.simulated.client import EnclaveHandle, PlatformClient
from secfl.testing.sites import Site, Sites

__all__ = ["Harness", "Service"]

MANAGER, AGGREGATOR = "manager", "aggregator"
MANAGER_PORT = 7443
_START_SECONDS = 30.0
_POLL_SECONDS = 0.02


@dataclass(slots=True)
class Service:
    """A launched enclave and where its phases are logged."""

    name: str
    site: str
    client: PlatformClient
    handle: EnclaveHandle
    log: Path

    def phases(self) -> list[dict[str, Any]]:
        """Read the shield's phases so far."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines if line.startswith('{"')]

    def failure(self) -> dict[str, Any] | None:
        """Return what the shield reported when it did not start the service."""
        return next((phase for phase in self.phases() if phase.get("event") == "failed"), None)

    def wait_phase(self, event: str, *, seconds: float = _START_SECONDS) -> dict[str, Any]:
        """Wait for a phase.

        Raises:
            UnavailableError: `harness.no_phase`.
            EngineError: `harness.not_started` when the shield failed or ended first.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for phase in self.phases():
                if phase.get("event") == event:
                    return phase
                if phase.get("event") in ("failed", "stopped"):
                    raise EngineError("harness.not_started", f"{self.name}: {phase['code']}: {phase['message']}")
            time.sleep(_POLL_SECONDS)
        raise UnavailableError("harness.no_phase", f"{self.name} did not reach {event}; see {self.log}")

    def wait(self, *, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status.

        Raises:
            UnavailableError: it did not end in time.
        """
        return self.client.wait(self.handle, timeout=timeout)


@dataclass(slots=True)
class Harness:
    """One federation.

    Attributes:
        base: where everything of this run lies; empty or new.
        image: the runtime image.
        app: the Flower app's folder.
        records: folder with the records of each data-owning site.
        plan: the study.
        extra_sites: further sites, such as a rogue's.
    """

    base: Path
    image: Path
    app: Path
    records: Mapping[str, Path]
    plan: StudyPlan
    extra_sites: tuple[str, ...] = ()
    sites: Sites = field(init=False)
    parties: dict[str, Party] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    policy: bytes = b""
    versions: int = 0
    manager: Service | None = None

    def __enter__(self) -> Self:
        names = [MANAGER, self.plan.aggregator_site, self.plan.owner, *self.plan.sites, *self.extra_sites]
        self.sites = Sites(names, self.base)
        (self.base / "log").mkdir(exist_ok=True)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.sites.close()

    @property
    def party_names(self) -> list[str]:
        """All parties, the owner first."""
        return [self.plan.owner, *self.plan.sites]

    @property
    def machine_sites(self) -> list[str]:
        """All sites with a platform."""
        return [MANAGER, self.plan.aggregator_site, *self.plan.sites, *self.extra_sites]

    @property
    def manager_address(self) -> str:
        """Where the manager listens."""
        return f"{self.sites[MANAGER].address}:{MANAGER_PORT}"

    # -- platforms and manager -------------------------------------------------------------------------------------

    def start_platforms(self) -> str:
        """Make the simulated root and a platform process for each site; returns the trust domain."""
        now = int(time.time())
        bundle = create_vendor(self.base / "vendor", now=now)
        for site in self.machine_sites:
            create_platform(self._platform(site), self.base / "vendor", site=site, tee=self.plan.tee, now=now)
            self._spawn_platform(self.sites[site])
        deadline = time.monotonic() + _START_SECONDS
        for site in self.machine_sites:
            while not self._socket(site).exists():
                if time.monotonic() > deadline:
                    raise UnavailableError("harness.no_platform", f"the platform of {site} did not start")
                time.sleep(_POLL_SECONDS)
        return bundle.anchor.domain

    def _spawn_platform(self, site: Site) -> None:
        socket = self._socket(site.name)
        log = self.base / "log" / f"platform-{site.name}.log"
        directory = self._platform(site.name)
        site.spawn(lambda: run_platform(directory, socket, site_user=site.uid), log=log, keep_root=True)

    def _platform(self, site: str) -> Path:
        return self.base / "platforms" / site

    def _socket(self, site: str) -> Path:
        return self.base / f"{site}.sock"

    def create_parties(self) -> None:
        """Every party makes its keys in its own home; identities and collateral are handed over."""
        handed = self.base / "handed-over"
        for folder in ("parties", "platforms", "volumes"):
            (handed / folder).mkdir(parents=True, exist_ok=True)
        for name in self.party_names:
            party = Party(self.sites[name], name, self.base / "vendor" / BUNDLE)
            self.parties[name] = party
            write_file(handed / "parties" / f"{name}.json", strict_json.encode(party.create()))
        for site in self.machine_sites:
            shutil.copy(self._platform(site) / PUBLIC, handed / "platforms" / f"{site}.json")

    def start_manager(self) -> dict[str, Any]:
        """Start the manager in an enclave and write what the parties will accept; returns that reference."""
        identities = [self.base / "handed-over/parties" / f"{name}.json" for name in self.party_names]
        founders = founders_of(identities)
        site = self.sites[MANAGER]
        host = site.home / "host"
        install_collateral(host, [self.base / "vendor" / BUNDLE], quiet=True)
        prepare_host(self._socket(MANAGER), host, ("state",))
        config = manager_config(self.manager_address, founders)
        self.manager = self._launch(MANAGER, MANAGER, entry_of(self.image, "manager"), config, host)
        reference = reference_of(self.image, self._platform(MANAGER) / PUBLIC, self.manager_address, founders)
        write_file(self.base / "handed-over/manager-reference.json", reference.encode())
        deadline = time.monotonic() + _START_SECONDS
        while not any("ready" in phase for phase in self.manager.phases()):
            if time.monotonic() > deadline:
                raise UnavailableError("harness.no_manager", f"the manager is not ready; see {self.manager.log}")
            time.sleep(_POLL_SECONDS)
        document: dict[str, Any] = strict_json.decode(reference.encode())
        return document

    def attest_manager(self, name: str) -> dict[str, Any]:
        """One party attests the manager with its own nonce."""
        reference = read_file(self.base / "handed-over/manager-reference.json")
        return self.parties[name].attest_manager(reference)

    # -- volumes and agreement -------------------------------------------------------------------------------------

    def pack(self, name: str) -> dict[str, Any]:
        """One party packs its code or records, registers the volume, and hands the description over."""
        volume = "code" if name == self.plan.owner else "cohort"
        source = self.app if volume == "code" else self.records[name]
        private = self.sites[name].home / "plain"
        shutil.copytree(source, private, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        self._give(name, private)
        owned = self.parties[name].pack(private, volume)
        write_file(self.base / "handed-over/volumes" / f"{name}-{volume}.json", strict_json.encode(owned))
        return owned

    def _give(self, name: str, path: Path) -> None:
        uid = self.sites[name].uid
        if uid is not None:
            for place in (path, *path.rglob("*")):
                os.chown(place, uid, uid, follow_symlinks=False)

    def agree(self) -> str:
        """Assemble the policy, propose it, let every party vote and grant; returns the policy's hash.

        Called again, it replaces the version in force by one with the next number in its first line.
        """
        entry = entry_of(self.image, "shield")
        public = strict_json.decode(read_file(self._platform(MANAGER) / PUBLIC))
        image = {"measurement": entry.measurements[self.plan.tee], "trust_domain": public["trust_domain"]}
        write_file(self.base / "handed-over/image.json", strict_json.encode(image))
        self.versions += 1
        draft = f"# Agreement {self.versions}\n{draft_policy(self.plan)}"
        self.policy = assemble(draft, HandedOver(self.base / "handed-over"))
        version = PolicyVersion.read(self.policy, source=f"{self.plan.study}.yaml")
        write_file(self.base / f"{self.plan.study}.yaml", self.policy)
        self.parties[self.plan.owner].propose(self.policy)
        for name in self.party_names:
            self.parties[name].vote_and_grant(self.policy)
        return version.hash.hex()

    def hand_over_release(self, volume: str) -> Path:
        """Carry the release volume of a finished study to where anybody may read the ciphertext."""
        found = sorted((self.sites[self.plan.aggregator_site].home / "host/release").glob(f"{volume}-*"))
        if not found:
            raise UnavailableError("harness.no_release", f"no release volume of {volume} was made")
        target = self.base / "released"
        shutil.copytree(found[-1], target)
        for place in (target, *target.iterdir()):
            place.chmod(0o755 if place.is_dir() else 0o644)
        return target

    # -- services --------------------------------------------------------------------------------------------------

    def deliver(self, site: str, *, code: Path | None = None, cohort: Path | None = None) -> Path:
        """Lay the sealed volumes into a site's host directory, as an operator does; returns it."""
        host = self.sites[site].home / "host"
        volumes = host / "volumes"
        volumes.mkdir(parents=True, exist_ok=True)
        shutil.copytree(code or self.sites[self.plan.owner].home / "sealed", volumes / "code")
        if cohort is not None:
            shutil.copytree(cohort, volumes / "cohort")
        prepare_host(self._socket(site), host)
        return host

    def config(self, service: str, site: str, changes: Mapping[str, Any] | None = None) -> LaunchConfig:
        """Make the operator's launch configuration of a service."""
        aggregator = service == AGGREGATOR
        cohort = {} if aggregator else {f"cohort-{service.removeprefix('trainer-')}": "volumes/cohort"}
        values: dict[str, Any] = {
            "manager": self.manager_address,
            "study": self.plan.study,
            "service": service,
            "site": site,
            "policy_hash": PolicyVersion.read(self.policy).hash.hex(),
            "listen": self.sites[site].address,
            "peers": {} if aggregator else {AGGREGATOR: self._gateway()},
            "images": {"code": "volumes/code", **cohort},
            "volumes": {"model": "volumes/model"} if aggregator else {},
        }
        return LaunchConfig(**{**values, **(changes or {})})

    def _gateway(self) -> str:
        return f"{self.sites[self.plan.aggregator_site].address}:{GATEWAY_PORT}"

    def start_services(self) -> Iterator[Service]:
        """Start the aggregator and all trainers; yields each when it is attested."""
        started = [self.run_service(AGGREGATOR, self.plan.aggregator_site)]
        started += [self.run_service(f"trainer-{site}", site) for site in self.plan.sites]
        for service in started:
            service.wait_phase("attested")
            yield service

    def run_service(self, service: str, site: str) -> Service:
        """Deliver the volumes and start one service."""
        cohort = None if service == AGGREGATOR else self.sites[site].home / "sealed"
        host = self.deliver(site, cohort=cohort)
        self.services[service] = self.start(service, site, host)
        return self.services[service]

    def start(self, service: str, site: str, host: Path, changes: Mapping[str, Any] | None = None) -> Service:
        """Start an enclave for a service with a delivered host directory; `changes` go into its configuration."""
        config = self.config(service, site, changes).encode()
        return self._launch(service, site, entry_of(self.image, "shield"), config, host)

    def _launch(self, name: str, site: str, entry: Entry, config: bytes, host: Path) -> Service:
        log = self.base / "log" / f"{site}-{name}-{time.monotonic_ns()}.log"
        console = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            client, handle = launch(self._socket(site), entry, config=config, host_dir=host, console=console)
        finally:
            os.close(console)
        return Service(name, site, client, handle, log)

    def stop_platform(self, site: str) -> None:
        """Kill a site's platform process, as a power cut would: everything it runs ends with it."""
        for pid in self.sites[site].children:
            os.kill(pid, signal.SIGKILL)
