"""The story: the eleven steps of the demonstration, in order, with what a watcher should see at each."""

from __future__ import annotations

import runpy
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.text import Text

from secfl.cli.audit import audit_bundle
from secfl.cli.console import out, simulated_banner, table
from secfl.cli.demo import adversary
from secfl.cli.demo.compare import Rounds, join_rounds, model_digest, plain_rounds
from secfl.cli.demo.memory import peak_memory
from secfl.cli.harness import AGGREGATOR, Harness
from secfl.cli.report import RunRecord, render_report
from secfl.cli.study_plan import StudyPlan
from secfl.errors import EngineError, VerificationError
from secfl.federation.flower.bundle import build
from secfl.federation.flower.launch import Scalar
from secfl.party.home import write_file
from secfl.party.session import ManagerPin

__all__ = ["Story"]

OWNER = "model-owner"
_TRAINING_SECONDS = 600.0
_LIMITS = [
    "The platform is simulated: root on this machine can read everything.",
    "Rollback protection of the manager's state: none, since no remote counter holds its head.",
    "Between enclaves bodies are sealed to a hybrid post-quantum session; headers and sizes only to classical TLS 1.3.",
    "Sizes, times and counts of messages and of reads are visible to the hosts.",
    "The honesty of the records is not checked here.",
]


@dataclass(slots=True)
class Story:
    """One telling.

    Attributes:
        base: a private folder for the run.
        image: the runtime image.
        example: the example's folder.
        target: where results are left.
        rounds: rounds of training.
        tee: flavour of the simulated platform.
    """

    base: Path
    image: Path
    example: Path
    target: Path
    rounds: int
    tee: str
    record: RunRecord = field(init=False)
    started: float = field(default_factory=time.monotonic)
    number: int = 0

    def tell(self) -> None:
        """Run all steps.

        Raises:
            SecflError: a step did not do what it should.
        """
        # The sites' users pass through here to their own homes; what else lies here stays closed to them.
        self.base.chmod(0o711)
        (self.base / "records").mkdir(mode=0o700)
        records = runpy.run_path(str(self.example / "partition.py"))["partition"](
            self.example / "heart4.npz", self.base / "records"
        )
        folders = {site: Path(file).parent for site, file in records.items()}
        sites = tuple(folders)
        run_config: dict[str, Scalar] = {"min-nodes": len(sites), "num-rounds": self.rounds}
        plan = StudyPlan(
            study="heart",
            owner=OWNER,
            sites=sites,
            aggregator_site=AGGREGATOR,
            app_hash=build(self.example / "app").sha256,
            rounds=self.rounds,
            run_config=run_config,
            node_config={"data-path": "/data/records.npz"},
            tee=self.tee,
        )
        with Harness(
            self.base / "sites", self.image, self.example / "app", folders, plan, (adversary.ROGUE,)
        ) as harness:
            self._prepare(harness)
            confidential = self._train(harness)
            plain, model = self._compare(harness, folders, run_config, confidential)
            self._release(harness, model, equal=confidential == plain)
            self._audit(harness)

    # -- steps 1 to 4 ----------------------------------------------------------------------------------------------

    def _prepare(self, harness: Harness) -> None:
        with self._step("the simulated platforms start, one for each site"):
            domain = harness.start_platforms()
        self.record = RunRecord("Heart disease, four hospitals", domain, limits=list(_LIMITS))
        simulated_banner(out, domain)
        if not harness.sites.isolated:
            out.print("not root: the sites share one OS user and the loopback network")
        with self._step("the Security Policy Manager starts in an enclave; every party attests it"):
            harness.create_parties()
            reference = harness.start_manager()
            for name in harness.party_names:
                claims = harness.attest_manager(name)
                self._attested(name, "manager", "manager", claims["measurement"], claims["platform_id"])
        out.print(f"   measurement {reference['measurements'][0]}")
        with self._step("each hospital packs its records, the owner its code; keys go to the manager, sealed"):
            for name in harness.party_names:
                owned = harness.pack(name)
                out.print(f"   {owned['policy']:<24} root {owned['root']}", markup=False)
        with self._step("the policy is proposed, signed by all parties and activated"):
            self.stale = harness.agree()
            current = harness.agree()
        out.print(f"   agreement 2 in force, hash {current}")
        self.record.facts += [("policy", current), ("app bundle", harness.plan.app_hash)]

    stale: str = ""

    # -- steps 5 to 8 ----------------------------------------------------------------------------------------------

    def _train(self, harness: Harness) -> Rounds:
        with self._step("aggregator and trainers start in enclaves; secrets only after attestation"):
            for service in harness.start_services():
                phase = service.wait_phase("attested")
                out.print(f"   {service.name:<22} at {service.site:<14} attested in {phase['ms']} ms", markup=False)
        with self._step("rogue: one line of the code changed; stale policy; recorded quote"):
            self._refused(
                adversary.changed_code(
                    harness, file="heart/server.py", old="np.savez(", new="print(weights := 0) or np.savez("
                )
            )
            self._refused(adversary.stale_policy(harness, self.stale))
            first = harness.plan.sites[0]
            self._refused(adversary.recorded_quote(harness, harness.parties[harness.plan.sites[1]], f"trainer-{first}"))
        with self._step("every hospital attests the aggregator and the other trainers itself"):
            self._attest_each_other(harness)
        return self._follow(harness)

    def _attest_each_other(self, harness: Harness) -> None:
        for name in harness.plan.sites:
            others = [f"trainer-{site}" for site in harness.plan.sites if site != name]
            for row in harness.parties[name].attest(harness.policy, [AGGREGATOR, *others]):
                if "refused" in row:
                    raise EngineError("demo.refused", f"{name} refused {row['service']}: {row['refused']['code']}")
                self._attested(name, row["service"], row["site"], row["measurement"], row["platform"])
        out.print(f"   {4 * len(harness.plan.sites)} attestations accepted, each with a nonce of the hospital")
        first, second, third = harness.plan.sites[:3]
        self._refused(
            adversary.lies(
                harness.parties[first], harness.policy, service=f"trainer-{second}", other=f"trainer-{third}"
            )
        )

    def _follow(self, harness: Harness) -> Rounds:
        rounds: Rounds = {}
        with self._step(f"an unmodified Flower app trains for {self.rounds} rounds between the enclaves"):
            for line in harness.parties[OWNER].watch(harness.plan.study, seconds=_TRAINING_SECONDS):
                if "exit" in line:
                    if line["exit"] != 0:
                        raise EngineError("demo.training", f"the aggregator ended with {line['exit']}")
                elif line["phase"] == "evaluate":
                    metrics = {name: float.fromhex(value) for name, value in line["metrics"].items()}
                    rounds[line["round"]] = metrics
                    shown = "  ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
                    out.print(f"   round {line['round']:>2}  {shown}   {self._elapsed():6.1f} s", markup=False)
                    if line["round"] == max(1, self.rounds // 2):
                        self.record.memory = peak_memory()
        if len(rounds) != self.rounds:
            raise EngineError("demo.rounds", f"{len(rounds)} of {self.rounds} rounds were reported")
        return rounds

    # -- steps 9 to 11 ---------------------------------------------------------------------------------------------

    def _compare(
        self, harness: Harness, records: dict[str, Path], run_config: dict[str, Scalar], confidential: Rounds
    ) -> tuple[Rounds, Path]:
        with self._step("the same app runs plain: Flower's programs and the warm executor, on plain files"):
            out.print("   no manager, shield, volume or gateway; a loopback relay only hides Flower's idle polling")
            plain, model = plain_rounds(
                harness.app,
                records,
                run_config,
                self.base / "plain",
                on_round=lambda number: out.print(f"   plain round {number:>2}   {self._elapsed():6.1f} s"),
            )
        rows, equal = join_rounds(confidential, plain)
        self.record.rounds = list(rows)
        names = sorted({name for row in rows for name in row["confidential"]})
        cells = [
            [row["round"], *(f"{row[series].get(name, float('nan')):.6f}" for name in names for series in _SERIES)]
            for row in rows
        ]
        out.print(table("", ["round", *(f"{name}\n{label}" for name in names for label in ("conf.", "plain"))], cells))
        if not equal:
            raise EngineError("demo.not_equal", "the confidential and the plain run differ")
        return plain, model

    def _release(self, harness: Harness, plain_model: Path, *, equal: bool) -> None:
        study = harness.plan.study
        with self._step("the model is released to the party that the policy names, and to nobody else"):
            harness.services[AGGREGATOR].wait(timeout=30)
            directory = harness.hand_over_release("model")
            answer = harness.parties[OWNER].receive(study, "model", directory)
            if "files" not in answer:
                raise EngineError("demo.release", f"the owner was refused: {answer['code']}")
            self._refused(
                [
                    *adversary.rows_of(
                        harness.plan.sites[0], harness.parties[harness.plan.sites[0]].receive(study, "model", directory)
                    ),
                    *adversary.stranger(harness, AGGREGATOR, "operator", directory),
                    *adversary.stranger(harness, "manager", "administrator", directory),
                ]
            )
            self.target.mkdir(parents=True, exist_ok=True)
            released = next(Path(file) for file in answer["files"] if file.endswith("final_model.npz"))
            shutil.copyfile(released, self.target / "final_model.npz")
            digests = model_digest(self.target / "final_model.npz"), model_digest(plain_model)
        if digests[0] != digests[1]:
            raise EngineError("demo.not_equal", "the models of the confidential and the plain run differ")
        self.record.equal = equal
        self.record.facts.append(("model", digests[0]))
        out.print(
            Text("   equal bit for bit: every metric of every round, every byte of the model", style="bold green")
        )

    def _audit(self, harness: Harness) -> None:
        with self._step("report and audit bundle"):
            owner = harness.parties[OWNER]
            bundle = owner.export()
            pin = ManagerPin.load(owner.home.pin_path)
            report = audit_bundle(bundle, pin)
            broken = bytearray(bundle)
            broken[len(broken) // 2] ^= 1
            try:
                audit_bundle(bytes(broken), pin)
            except Exception as error:  # noqa: BLE001 - any refusal will do; acceptance is the failure
                self._refused(
                    [
                        {
                            "who": "bundle with one byte changed",
                            "rule": getattr(error, "code", "malformed"),
                            "expected": "the log as it was written",
                            "actual": "another byte",
                            "remedy": "take the bundle from the manager again",
                        }
                    ]
                )
            else:
                raise VerificationError("demo.audit", "a changed bundle was accepted")
            write_file(self.target / "bundle.json", bundle)
            pin.save(self.target / "manager-pin.json")
            write_file(self.target / f"{harness.plan.study}.yaml", harness.policy)
            self.record.facts.append(("log", f"{report.entries} entries, head {report.head.hex()}"))
        self.record.timings.append(("all", self._elapsed()))
        write_file(self.target / "report.html", render_report(self.record).encode())
        out.print(f"\ndone in {self._elapsed():.1f} s. Look at {self.target / 'report.html'}, and check it yourself:")
        out.print(f"  secfl audit verify {self.target / 'bundle.json'} --pin {self.target / 'manager-pin.json'}")

    # -- telling ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _step(self, title: str) -> Iterator[None]:
        self.number += 1
        started = self._elapsed()
        out.print(Text.assemble((f"{self.number:>2} ", "bold cyan"), (title, "bold")))
        yield
        self.record_timing(title, self._elapsed() - started)

    def record_timing(self, title: str, seconds: float) -> None:
        """Note how long a step took; the first one runs before there is a record."""
        timings = self.record.timings if hasattr(self, "record") else []
        timings.append((title, seconds))
        out.print(Text(f"   {seconds:.1f} s", style="dim"))

    def _elapsed(self) -> float:
        return time.monotonic() - self.started

    def _attested(self, verifier: str, service: str, site: str, measurement: str, platform: str) -> None:
        self.record.attested.append(
            {
                "verifier": verifier,
                "service": service,
                "site": site,
                "measurement": measurement,
                "platform": platform,
            }
        )

    def _refused(self, rows: list[dict[str, str]]) -> None:
        self.record.refused += rows
        for row in rows:
            out.print(Text.assemble("   ", ("refused ", "bold red"), f"{row['who']}: {row['rule']}"))
            for name, label in (("expected", "expected"), ("actual", "found")):
                if row[name]:
                    out.print(f"      {label:<9}{row[name]}", markup=False)


_SERIES = ("confidential", "plain")
