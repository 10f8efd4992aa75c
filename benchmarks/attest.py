"""Attestation and release at the manager: nonce, evidence, verdict, log entry on the disk, sealed secrets.

The manager process with its verifier is held on one core, the clients on another, so that neither eats the other's
time. The limit is the bare verification of the same quote by the same library on one core.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import dcap_qvl

from benchmarks.machine import cores, cpu_seconds, on_cores
from benchmarks.manager_process import ManagerProcess, new_deployment
from benchmarks.result import Goal, Result, Table, median, quantile
from manager_world import Heart
from secfl.linux.https_client import HttpsClient
from secfl.protocol.public import AttestReply, NonceReply, payload_context
from secfl.testing.deployment import Deployment
from secfl.testing.enclaves import KIND, Workload

__all__ = ["run"]

_CLIENTS = 4
_KEPT_GOAL, _FRESH_GOAL = 0.15, 0.06


@dataclass(slots=True)
class _Load:
    # What one burst of clients saw.
    seconds: list[float]
    elapsed: float
    manager_cpu: float
    client_cpu: float

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.elapsed


def run(*, quick: bool) -> Result:
    """Measure latency and rate on kept and on fresh connections, and the limit before and after."""
    count = 100 if quick else 1200
    available = cores()
    manager_core, client_cores = available[:1], available[1:] or available
    with TemporaryDirectory(prefix="secfl-bench-") as place:
        directory = Path(place)
        deployment, store = new_deployment(directory, ("cleveland", "model-owner"), ("cleveland", "hub"))
        heart = Heart(deployment)
        store.close()
        with on_cores(manager_core):
            limits = [_limit(deployment, heart)]
        with ManagerProcess(deployment, directory, cores=manager_core) as manager, on_cores(client_cores):
            _burst(manager, heart, 20, 1, fresh=True)
            alone = {fresh: _burst(manager, heart, count // 4, 1, fresh=fresh) for fresh in (False, True)}
            crowd = {fresh: _burst(manager, heart, count, _CLIENTS, fresh=fresh) for fresh in (False, True)}
        with on_cores(manager_core):
            limits.append(_limit(deployment, heart))
    return _report(alone, crowd, sum(limits) / len(limits))


def _report(alone: dict[bool, _Load], crowd: dict[bool, _Load], limit: float) -> Result:
    names = {False: "kept connection", True: "fresh TLS handshake"}
    result = Result("attest", (__doc__ or "").replace("\n", " "))
    columns = ("", "p50 ms", "p99 ms", "p50 ms", "p99 ms", "per second", "manager CPU ms", "client CPU ms", "/ limit")
    rows = []
    for fresh, name in names.items():
        one, many = alone[fresh], crowd[fresh]
        total = len(many.seconds)
        shown = [quantile(load.seconds, share) * 1e3 for load in (one, many) for share in (0.5, 0.99)]
        shown += [many.rate, many.manager_cpu / total * 1e3, many.client_cpu / total * 1e3]
        rows.append((name, *(f"{value:.1f}" for value in shown), f"{many.rate / limit:.3f}"))
    rows.append(("bare verification", *[""] * 4, f"{limit:.0f}", f"{1e3 / limit:.2f}", "", "1"))
    title = f"one manager process on one core; left one client, right {_CLIENTS} at once"
    result.tables.append(Table(title, columns, rows))
    result.goals += [
        Goal("rate on kept connections / bare verification", crowd[False].rate / limit, _KEPT_GOAL, at_least=True),
        Goal("rate with a fresh handshake each / bare verification", crowd[True].rate / limit, _FRESH_GOAL, at_least=True),
    ]
    result.remarks += [
        "An attestation is two requests: a nonce, then the evidence over it; the client signs the simulated quote itself.",
        "Every answer was opened with the attested key; its secrets were in it.",
    ]
    return result


def _limit(deployment: Deployment, heart: Heart) -> float:
    """Bare verifications a second of a quote of this deployment."""
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
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        for _ in range(20):
            dcap_qvl.verify_with_root_ca(quote, collateral, root, deployment.now)
        seconds.append(time.perf_counter() - started)
    return 20 / median(seconds)


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
    return _Load(seconds, elapsed, cpu_seconds(pids) - cpu, time.process_time() - own)


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
