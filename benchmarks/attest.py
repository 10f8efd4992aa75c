"""Attestation and release at the manager: nonce, evidence, verdict, log entry on the disk, sealed secrets.

The manager process with its verifier is held on one core, the clients on another, so that neither eats the other's
time. The limit is the bare verification of the same quote by the same library on one core.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import dcap_qvl

from benchmarks.machine import cores, cpu_seconds, on_cores
from benchmarks.manager_process import ManagerProcess
from benchmarks.result import Goal, Result, Table, median, quantile
from manager_world import Heart
from secfl.linux.https_client import HttpsClient
from secfl.protocol.public import AttestReply, NonceReply, payload_context
from secfl.testing.deployment import Deployment
from secfl.testing.enclaves import KIND, Workload

__all__ = ["run"]

_CLIENTS = 8
_KEPT_GOAL, _FRESH_GOAL = 0.15, 0.06


@dataclass(slots=True)
class _Load:
    # What bursts of clients saw, and the processor time that they took; `costs` has the manager's for each burst.
    seconds: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    manager_cpu: float = 0.0
    client_cpu: float = 0.0

    def add(self, other: _Load) -> None:
        self.seconds += other.seconds
        self.costs.append(other.each(other.manager_cpu))
        self.elapsed += other.elapsed
        self.manager_cpu += other.manager_cpu
        self.client_cpu += other.client_cpu

    def each(self, total: float) -> float:
        return total / len(self.seconds)


def run(*, quick: bool) -> Result:
    """Measure in turns, so that what else the machine does falls on all alike: limit, kept, fresh, and again."""
    turns, count = (2, 80) if quick else (4, 800)
    available = cores()
    manager_core, client_cores = available[:1], available[1:] or available
    alone, crowd = ({False: _Load(), True: _Load()} for _ in range(2))
    limit = _Load()
    with TemporaryDirectory(prefix="secfl-bench-") as place:
        directory = Path(place)
        deployment = Deployment("cleveland", "model-owner", sites=("cleveland", "hub"), now=int(time.time()))
        heart = Heart(deployment)
        with ManagerProcess(deployment, directory, cores=manager_core) as manager:
            _burst(manager, heart, 20, 1, fresh=True)
            for _ in range(turns):
                with on_cores(manager_core):
                    limit.add(_limit(deployment, heart, count))
                with on_cores(client_cores):
                    for fresh in (False, True):
                        alone[fresh].add(_burst(manager, heart, count // 8, 1, fresh=fresh))
                        crowd[fresh].add(_burst(manager, heart, count, _CLIENTS, fresh=fresh))
        # As it is deployed: manager, verifier and clients share all cores.
        whole = {False: _Load(), True: _Load()}
        (directory / "whole").mkdir()
        deployment = Deployment("cleveland", "model-owner", sites=("cleveland", "hub"), now=int(time.time()))
        heart = Heart(deployment)
        with ManagerProcess(deployment, directory / "whole") as manager:
            _burst(manager, heart, 20, 1, fresh=True)
            for _ in range(turns):
                limit.add(_limit(deployment, heart, count))
                for fresh in (False, True):
                    whole[fresh].add(_burst(manager, heart, count, _CLIENTS, fresh=fresh))
    return _report(alone, crowd, limit, whole)


def _report(alone: dict[bool, _Load], crowd: dict[bool, _Load], limit: _Load, whole: dict[bool, _Load]) -> Result:
    names = {False: "kept connection", True: "fresh TLS handshake"}
    result = Result("attest", __doc__ or "")
    columns = (
        "",
        "p50 ms",
        "p99 ms",
        "p50 ms",
        "p99 ms",
        "per second",
        "/ limit",
        "CPU ms",
        "limit's CPU / this",
        "client CPU ms",
    )
    rows, bare = [], median(limit.costs)
    for fresh, name in names.items():
        one, many = alone[fresh], crowd[fresh]
        times = [quantile(load.seconds, share) * 1e3 for load in (one, many) for share in (0.5, 0.99)]
        cpu, slower = median(many.costs), limit.each(limit.elapsed) / many.each(many.elapsed)
        shown = (1 / many.each(many.elapsed), cpu * 1e3, many.each(many.client_cpu) * 1e3)
        rate, cost, client = (f"{value:.1f}" for value in shown)
        rows.append(
            (name, *(f"{value:.1f}" for value in times), rate, f"{slower:.3f}", cost, f"{bare / cpu:.3f}", client)
        )
        goal = _FRESH_GOAL if fresh else _KEPT_GOAL
        share = limit.each(limit.elapsed) / whole[fresh].each(whole[fresh].elapsed)
        result.goals.append(
            Goal(f"{name}: bare verification / attestation on one core, in CPU time", bare / cpu, goal, at_least=True)
        )
        result.goals.append(Goal(f"{name}: rate on the whole machine / bare verification", share, goal, at_least=True))
        result.remarks.append(
            f"{name}: {1 / whole[fresh].each(whole[fresh].elapsed):.0f} per second where manager, verifier and clients "
            f"share all cores, as deployed; on one core {slower:.3f} of the limit, {bare / cpu:.3f} by CPU time."
        )
    best = quantile(limit.seconds, 0.5) * 1e3
    rate = f"{1 / limit.each(limit.elapsed):.0f}"
    rows.append(("bare verification", f"{best:.2f}", *[""] * 3, rate, "1", f"{bare * 1e3:.2f}", "1", ""))
    title = f"one manager process with its verifier on one core; left one client, then {_CLIENTS} at once"
    result.tables.append(Table(title, columns, rows))
    spread = " to ".join(f"{cost(crowd[False].costs) * 1e3:.1f}" for cost in (min, max))
    result.remarks += [
        "An attestation is two requests: a nonce, then evidence over it. The client makes the simulated quote itself.",
        "Every answer was opened with the attested key; its secrets were in it.",
        "CPU time is that of manager and verifier, median of the turns. Other load raises it more than the limit's.",
        f"The turns on kept connections took {spread} ms of it for each attestation.",
    ]
    return result


def _limit(deployment: Deployment, heart: Heart, count: int) -> _Load:
    """Bare verifications of a quote of this deployment."""
    workload = heart.trainer()
    quote = workload.attester.collect(bytes(64)).blob
    source = deployment.vendor.collateral(KIND, deployment.now)
    collateral = dcap_qvl.QuoteCollateralV3(
        source.pck_crl_issuer_chain,
        source.root_ca_crl,
        source.pck_crl,
        source.tcb_info_issuer_chain,
        source.tcb_info,
        source.tcb_info_signature,
        source.qe_identity_issuer_chain,
        source.qe_identity,
        source.qe_identity_signature,
    )
    root = deployment.vendor.anchor().root_der
    seconds, cpu, begun = [], time.process_time(), time.perf_counter()
    for _ in range(count):
        started = time.perf_counter()
        dcap_qvl.verify_with_root_ca(quote, collateral, root, deployment.now)
        seconds.append(time.perf_counter() - started)
    return _Load(seconds, elapsed=time.perf_counter() - begun, manager_cpu=time.process_time() - cpu)


def _burst(manager: ManagerProcess, heart: Heart, count: int, clients: int, *, fresh: bool) -> _Load:
    """Attest `count` times from several threads of this process."""
    seconds: list[float] = []
    failures: list[BaseException] = []

    def client() -> None:
        try:
            seconds.extend(_attestations(manager.client, heart.trainer(), count // clients, fresh=fresh))
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that measures
            failures.append(error)

    pids = manager.pids
    cpu, own, started = cpu_seconds(pids), time.process_time(), time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    elapsed = time.perf_counter() - started
    spent = cpu_seconds(pids) - cpu
    return _Load(seconds, elapsed=elapsed, manager_cpu=spent, client_cpu=time.process_time() - own)


def _attestations(connect: Callable[[], HttpsClient], workload: Workload, count: int, *, fresh: bool) -> list[float]:
    seconds = []
    client = connect()
    for _ in range(count):
        started = time.perf_counter()
        nonce = NonceReply.decode(client.call("nonces", b"{}")).nonce
        request = workload.request(nonce)
        reply = AttestReply.decode(client.call("attest", request.encode()))
        seconds.append(time.perf_counter() - started)
        context = payload_context(nonce, request.policy_hash)
        if not workload.sealing.open(reply.sealed, purpose="service-payload", context=context):
            raise AssertionError("nothing was released")
        if fresh:
            client.close()
    client.close()
    return seconds
