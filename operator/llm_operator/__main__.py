"""The command line: `python -m llm_operator --config FILE` runs the operator, `… crds --out
FOLDER` writes the CRDs, `… evaluate` makes one evaluation."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import REGISTRY

from llm_operator import crds, logs, metrics, probes, webhooks
from llm_operator.evaluation import task
from llm_operator.evaluation.evaluate import evaluate
from llm_operator.hearing import Hearing
from llm_operator.lease import Lease, LeaseLost
from llm_operator.metricsapi.part import DISABLED, MetricsApi
from llm_operator.mirror import Mirror
from llm_operator.observe import Outside
from llm_operator.plans.objects.evaluation import PODS_FILE
from llm_operator.poll import Poll
from llm_operator.ports.cluster import KubernetesCluster, NoCluster
from llm_operator.ports.mirrored import MirroredCluster
from llm_operator.ports.pods import HttpPods
from llm_operator.ports.prometheus import HttpPrometheus
from llm_operator.ports.registry import (
    CachedRegistry,
    MlflowRegistry,
    RegistryFault,
    read_connection,
)
from llm_operator.queue import Lanes
from llm_operator.reconcile import QUICK, Done, Pace, reconcile
from llm_operator.reconcile.worker import work
from llm_operator.settings import Connections, Settings, SettingsError, load
from llm_operator.state import EvaluationOutcome, Key
from llm_operator.watch import CHILDREN, OWN, WATCHED, watch

log = logging.getLogger("llm_operator")
REST_SECONDS = 5.0
"""How long a registry that does not answer is left alone."""
QUICK_WORKERS = 3
"""Workers for keys alone. They ask only the API server, so the two that one namespace may have keep
up with a hundred changes a second."""
CANCEL_AGAIN_SECONDS = 0.5


async def run(settings: Settings, connections: Connections) -> None:
    """Work until SIGTERM; raises when any part ends by itself."""
    stop = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    await _first_to_end(
        [asyncio.create_task(_serve(settings, connections)), asyncio.create_task(stop.wait())]
    )


async def _serve(settings: Settings, connections: Connections) -> None:
    """Probes → lease → workers, poll and watches."""
    cluster = await KubernetesCluster.connect()
    log.info("the API server is %s", cluster.where)
    queue: Lanes[Key] = Lanes(
        lambda key: key.kind in QUICK, lambda key: key.namespace, QUICK_WORKERS, settings.workers
    )
    # API_HOST, as in the runtime: where pods share one machine, each listens on its own address.
    host = os.environ.get("API_HOST")
    identity = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    lease = Lease(cluster, settings.lease, identity, address=_webhook_address(settings, host))
    hearing = Hearing(WATCHED, settings.watch_namespaces)
    health = probes.Health(
        queue.stuck,
        lambda: time.monotonic() - cluster.last_answer,
        lease,
        settings.lease.duration_seconds,
        hearing,
    )
    receiver = webhooks.Receiver(connections, leader=lambda: lease.leader_address)
    servers = [await probes.serve(health, host, settings.port, lambda: _refresh(queue, hearing))]
    if settings.webhook_port:
        servers.append(await webhooks.serve(receiver, host, settings.webhook_port))
    try:
        async with _metrics_api(settings, cluster, host) as api:
            await lease.acquire()
            await _lead(settings, connections, cluster, queue, lease, receiver, hearing, api)
    finally:
        receiver.wake = None
        await lease.release()
        for server in servers:
            await server.cleanup()
        await cluster.close()


@asynccontextmanager
async def _metrics_api(
    settings: Settings, cluster: KubernetesCluster, host: str | None
) -> AsyncIterator[MetricsApi | None]:
    """The metrics API, where it is asked for: on each replica, whether or not it leads."""
    if not settings.metrics_api.port:
        yield None
        return
    pods = HttpPods()
    api = MetricsApi(
        cluster,
        pods,
        cluster.review,
        settings.metrics_api,
        settings.lease.namespace,
        settings.watch_namespaces,
        host,
    )
    task = asyncio.create_task(api.run())
    try:
        yield api
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()
        await pods.close()


def _webhook_address(settings: Settings, host: str | None) -> str:
    """The address at which stand-bys find this process when it leads;
    empty when it was not given."""
    own = os.environ.get("POD_IP") or host
    if not own or not settings.webhook_port:
        return ""
    return f"http://{f'[{own}]' if ':' in own else own}:{settings.webhook_port}"


async def _lead(
    settings: Settings,
    connections: Connections,
    server: KubernetesCluster,
    queue: Lanes[Key],
    lease: Lease,
    receiver: webhooks.Receiver,
    hearing: Hearing,
    api: MetricsApi | None,
) -> None:
    mirror = Mirror(hearing.open)
    cluster = MirroredCluster(server, mirror, OWN, CHILDREN)
    if api:
        api.lead(cluster)
    registry = CachedRegistry(
        MlflowRegistry(), keep_seconds=settings.poll_seconds, rest_seconds=REST_SECONDS
    )
    pods = HttpPods()
    image = settings.runtime_image
    prometheus = HttpPrometheus(
        settings.prometheus.url,
        settings.prometheus.allowed,
        bound=settings.prometheus.bound_to_namespace,
    )
    outside = Outside(
        cluster,
        registry,
        pods,
        connections,
        image,
        lambda: datetime.now(UTC),
        installation=settings.lease.installation,
        prometheus=prometheus,
        fetch_resources=settings.fetch_resources.manifest() if settings.fetch_resources else {},
        pull_secrets=settings.runtime_pull_secrets,
        policy=settings.pod_policy,
        evaluation=settings.evaluation,
        metrics_advice=lambda: api.advice if api else DISABLED,
    )
    REGISTRY.register(outside.memory.inventory)
    pace = Pace(settings.verify_seconds, settings.settle_seconds)
    poll = Poll(cluster, registry, connections, queue.add, settings.watch_namespaces)
    receiver.wake = poll.wake

    async def handle(key: Key) -> Done:
        return await reconcile(key, outside, pace)

    parts: list[Coroutine[Any, Any, None]] = [
        *(
            work(queue.slow, handle, settings.resync_seconds, queue)
            for _ in range(settings.workers)
        ),
        *(work(queue.quick, handle, settings.resync_seconds, queue) for _ in range(QUICK_WORKERS)),
        poll.run(settings.poll_seconds),
        lease.keep(),
        watch(queue.add, settings.watch_namespaces, lease.identity, hearing, mirror),
    ]
    try:
        await _first_to_end([asyncio.create_task(part) for part in parts], CANCEL_AGAIN_SECONDS)
    finally:
        REGISTRY.unregister(outside.memory.inventory)
        await pods.close()
        await prometheus.close()


async def _first_to_end(
    tasks: list["asyncio.Task[Any]"], again_seconds: float | None = None
) -> None:
    """Wait until one part ends, whole or broken, then end all of them.

    A part can lose its cancellation: when an awaitable fails in the same moment, asyncio.gather
    raises that error instead. A caller that handles the error would work on although the lease is
    lost. So parts that have nothing to await at their end are cancelled again every `again_seconds`
    until they have ended.
    """
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        pending = set(tasks)
        while pending:
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=again_seconds)
        await asyncio.gather(*tasks, return_exceptions=True)


def _refresh(queue: Lanes[Key], hearing: Hearing) -> None:
    metrics.QUEUE_DEPTH.set(queue.depth())
    metrics.QUEUE_OLDEST.set(queue.oldest())
    for kind, heard in hearing.kinds().items():
        metrics.HEARING.labels(kind).set(heard)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line as written."""
    parser = argparse.ArgumentParser(
        prog="llm-operator", description="Serve the models of your MLflow registry."
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("/etc/llm-operator/config/config.yaml"),
        help="configuration file",
    )
    commands = parser.add_subparsers(dest="command")
    writing = commands.add_parser(
        "crds", help="print the CustomResourceDefinitions, or write them to a folder"
    )
    writing.add_argument("--out", type=Path, help="folder for one file per CRD")
    evaluating = commands.add_parser(
        "evaluate", help="ask a candidate and stable the records of a dataset, in a Job"
    )
    evaluating.add_argument(
        "--task", type=Path, required=True, help="file with the task, as the operator wrote it"
    )
    evaluating.add_argument(
        "--report",
        type=Path,
        required=True,
        help="file for the outcome, which the operator reads",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exits 2 for a wrong configuration or none of the cluster,
    1 when a part of the operator ended."""
    options = arguments(argv)
    if options.command == "crds":
        if options.out:
            crds.write(options.out)
        else:
            yaml.safe_dump_all(crds.definitions().values(), sys.stdout, sort_keys=False, width=120)
        return
    try:
        settings = load(options.config)
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
    logs.configure(settings.log_format, settings.log_level)
    if options.command == "evaluate":
        _evaluate(settings, options.task, options.report)
        return
    connections = Connections(options.config, settings, log.error)
    for warning in settings.warnings():
        log.warning(warning)
    try:
        asyncio.run(run(settings, connections))
    except NoCluster as error:
        log.error("%s", error)
        raise SystemExit(2) from error
    except LeaseLost as error:
        log.error("%s: ending, so that only one operator works", error)
        # Not through a graceful end: another operator may be working already.
        os._exit(1)


def _evaluate(settings: Settings, path: Path, report: Path) -> None:
    """Make one evaluation. The report tells the outcome, whatever it is;
    the exit status is always 0."""
    given = task.from_json(path.read_text())
    try:
        connection = read_connection(given.connection, settings.connections)
        pods = path.with_name(PODS_FILE)
        asking = evaluate(given, connection, lambda: task.pods_from_json(pods.read_text()))
        outcome = asyncio.run(asking)
    except RegistryFault as fault:
        outcome = EvaluationOutcome(waiting=str(fault))
    log.info("%s", outcome.waiting or outcome.message)
    report.write_text(task.report(outcome))


if __name__ == "__main__":
    main()
