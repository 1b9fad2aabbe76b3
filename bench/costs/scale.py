"""What many LLMDeployments and ApiKeys cost: `hack/bench scale [300 [1000]] [--beside FOLDER]
[--dry]`.

A real control plane, nodes played by kwok, a real MLflow server, and the operator with the chart's pace. As many
LLMDeployments of one pod as asked for, and as many ApiKeys, are applied at once. `--beside` names the checkout of
another build, which is measured first with the first number. Each measurement has a cluster of its own. Written to
docs/benchmarks/scale.json and scale.md.
"""

import argparse
import base64
import json
import os
import re
import ssl
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.machine import ROOT, commit, machine
from bench.process import Process, cpu_seconds
from bench.report import FOLDER, number, table
from devstack.cluster import Cluster
from devstack.ports import free_port
from devstack.registry import MlflowServer, mlflow_server
from llm_operator.crds import API_VERSION
from llm_operator.ports.cluster import path_of

Json = dict[str, Any]
NAMESPACES = 10
NODES = 10
SETTLE_SECONDS = 15
"""After all is ready, before the quiet minute begins."""
QUIET_SECONDS = 60
RESTART_SECONDS = 75
PATIENCE_SECONDS = 1800
WRITES = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE"})
OWN = {"LLMDeployment": "bot", "ApiKey": "team"}
PACE = {"workers": 8, "pollSeconds": 30, "verifySeconds": 60, "settleSeconds": 10}
METRICS = {
    "ready_s": "all Ready after the last apply, s",
    "writes_each": "writes of everybody until then, by deployment",
    "own_writes_each": "of these the operator's",
    "reads_each": "reads of everybody",
    "cpu_s": "processor time of the operator until then, s",
    "server_cpu_s": "of the API server",
    "quiet_writes_s": "writes a second in the quiet minute",
    "restart_writes": "writes in 75 s from the operator's restart",
    "memory_mib": "most memory of the operator, MiB",
}
METHOD = f"""\
A real API server with its controllers; kwok plays the pods on {NODES} nodes, so that nothing is served. LLMDeployments
of one pod, and an ApiKey for each, lie in {NAMESPACES} namespaces and are applied by eight threads at once. Writes are
POST, PUT, PATCH, apply and DELETE of everybody (the operator, Kubernetes' controllers, kwok) by the API server's own
count, without Leases and those that made the objects; the operator's are those that its own metric counts, and Events
among them. The quiet minute is {SETTLE_SECONDS} s later."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="hack/bench scale")
    parser.add_argument("counts", type=int, nargs="*", default=[300], help="of each kind")
    parser.add_argument("--beside", type=Path, help="checkout of another build, measured first")
    parser.add_argument(
        "--dry", action="store_true", help="print only; leave docs/benchmarks as it is"
    )
    options = parser.parse_args()
    before = machine()
    turns = [("this build", ROOT, count) for count in options.counts]
    if options.beside:
        turns.insert(0, ("the build beside", options.beside.resolve(), options.counts[0]))
    rows = {f"{title}, {count:,}": measure(folder, count) for title, folder, count in turns}
    record = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit(), "machine": before,
        "rows": rows,
    }  # fmt: skip
    print(page(record))
    if not options.dry:
        (FOLDER / "scale.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        (FOLDER / "scale.md").write_text(page(record))


def measure(checkout: Path, count: int) -> Json:
    """The figures of the operator in a checkout, as METRICS names them; what was asked of each resource beside."""
    with tempfile.TemporaryDirectory(prefix="llm-scale-") as scratch, _cluster(scratch) as cluster:
        api = Api(cluster.kubeconfig)
        with mlflow_server(Path(scratch) / "mlflow") as registry:
            _prepare(checkout, cluster, api, registry)
            operator = Operator(checkout, Path(scratch), cluster, registry)
            try:
                found = _converge(api, operator, count)
                _say(f"all ready after {found['ready_s']:.0f} s")
                found["quiet_writes_s"] = _quiet(api)
                found["memory_mib"] = operator.peak_memory_bytes() / 2**20
            finally:
                operator.stop()
            found["restart_writes"] = _restart(checkout, Path(scratch), cluster, api, registry)
            return found


class Api:
    """The administrator's client, and what the API server has counted."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        server = config["clusters"][0]["cluster"]
        ca = base64.b64decode(server["certificate-authority-data"]).decode()
        self._client = httpx.Client(
            base_url=server["server"],
            verify=ssl.create_default_context(cadata=ca),
            headers={"Authorization": f"Bearer {config['users'][0]['user']['token']}"},
            timeout=60,
            trust_env=False,
        )

    def create(self, manifest: Json) -> None:
        """Create an object; one that is there is left as it is."""
        path = path_of(manifest["kind"], manifest["metadata"].get("namespace", ""))
        answer = self._client.post(path, json=manifest)
        if answer.status_code != 409:
            answer.raise_for_status()

    def watch(self, kind: str) -> Iterator[Json]:
        """Objects of a kind as they are and become, until the server ends the stream."""
        query = {"watch": "true", "resourceVersion": "0", "timeoutSeconds": "3600"}
        with self._client.stream("GET", path_of(kind, ""), params=query, timeout=None) as answer:
            for line in answer.raise_for_status().iter_lines():
                yield json.loads(line)["object"]

    def requests(self) -> Counter[tuple[str, str]]:
        """Requests so far, by (verb, resource), without Leases."""
        found = Counter[tuple[str, str]]()
        for line in self._metrics():
            if line.startswith("apiserver_request_total{"):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
                resource = "/".join(filter(None, (labels["resource"], labels["subresource"])))
                if labels["resource"] not in ("leases", "nodes"):
                    found[labels["verb"], resource] += int(float(line.rpartition(" ")[2]))
        return found

    def cpu_seconds(self) -> float:
        """Processor time that the API server has taken."""
        name = "process_cpu_seconds_total "
        return next(float(line[len(name) :]) for line in self._metrics() if line.startswith(name))

    def _metrics(self) -> list[str]:
        return self._client.get("/metrics").raise_for_status().text.splitlines()


class Readiness:
    """Which objects are Ready, as a watch says: to list them all each second would cost the API
    server more than the operator does."""

    def __init__(self, api: Api) -> None:
        self._ready: dict[str, set[str]] = {kind: set() for kind in OWN}
        for kind in OWN:
            threading.Thread(target=self._follow, args=(api, kind), daemon=True).start()

    def _follow(self, api: Api, kind: str) -> None:
        known = self._ready[kind]
        with suppress(httpx.TransportError):  # The cluster ends before this thread does.
            for item in api.watch(kind):
                (known.add if _is_ready(item) else known.discard)(item["metadata"]["uid"])

    def counts(self) -> dict[str, int]:
        """By kind."""
        return {kind: len(known) for kind, known in self._ready.items()}


def _is_ready(item: Json) -> bool:
    conditions = (item.get("status") or {}).get("conditions") or ()
    return any((each["type"], each["status"]) == ("Ready", "True") for each in conditions)


@contextmanager
def _cluster(scratch: str) -> Iterator[Cluster]:
    cluster = Cluster.start(Path(scratch) / "cluster", progress=_say, provider="local")
    command = ["kwok", "--kubeconfig", str(cluster.kubeconfig), "--manage-all-nodes=false"]
    # Leases: a busy kwok that writes statuses late would have its nodes called silent.
    command += ["--manage-nodes-with-label-selector=type=kwok", "--server-address="]
    command += ["--node-lease-duration-seconds=40"]
    log = Path(scratch) / "kwok.log"
    try:
        kwok = Process(command, cluster.environment(), Path(scratch), log)
        try:
            yield cluster
        finally:
            kwok.stop()
    finally:
        cluster.stop()


def _prepare(checkout: Path, cluster: Cluster, api: Api, registry: MlflowServer) -> None:
    cluster.kubectl("apply", "--server-side", "-f", str(checkout / "crds"))
    cluster.kubectl(
        "wait", "--for=condition=Established", "--timeout=60s", "-f", str(checkout / "crds")
    )
    for number_ in range(NODES):
        api.create(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": f"kwok-{number_}", "labels": {"type": "kwok"}},
                "status": {"allocatable": {"cpu": "1000", "memory": "1000Gi", "pods": "10000"}},
            }
        )
    for name in ("llm-operator-system", *map(_namespace, range(NAMESPACES))):
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    with httpx.Client(base_url=f"{registry.uri}/api/2.0/mlflow/", trust_env=False) as client:
        client.post("registered-models/create", json={"name": "bot"}).raise_for_status()
        version = {"name": "bot", "source": "s3://models/bot/1"}
        client.post("model-versions/create", json=version).raise_for_status()
        alias = {"name": "bot", "alias": "champion", "version": "1"}
        client.post("registered-models/alias", json=alias).raise_for_status()


def _namespace(number_: int) -> str:
    return f"team-{number_}"


class Operator(Process):
    """The operator of a checkout."""

    def __init__(
        self, checkout: Path, scratch: Path, cluster: Cluster, registry: MlflowServer
    ) -> None:
        port = free_port()
        config = {
            **PACE,
            "runtimeImage": "example.com/llm-runtime:1",
            "port": port,
            "lease": {"namespace": "llm-operator-system"},
            "connections": {"default": {"trackingUri": registry.uri}},
        }
        file = scratch / "operator.yaml"
        file.write_text(yaml.safe_dump(config))
        folders = os.pathsep.join(str(checkout / part) for part in ("operator", "runtime"))
        environment = {**cluster.environment(), "PYTHONPATH": folders, "API_HOST": "127.0.0.1"}
        command = [sys.executable, "-m", "llm_operator", "--config", str(file)]
        super().__init__(command, environment, scratch, scratch / f"operator-{port}.log")
        self._url = f"http://127.0.0.1:{port}"
        self.wait_until_ready(f"{self._url}/readyz")

    def writes(self) -> float:
        """Writes so far, by its own metric."""
        text = httpx.get(f"{self._url}/metrics", trust_env=False).raise_for_status().text
        name = "llm_operator_writes_total{"
        return sum(
            float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)
        )

    def cpu_seconds(self) -> float:
        """Processor time that it and its children have taken."""
        return sum(map(cpu_seconds, self.pids()))


def _objects(count: int) -> Iterator[Json]:
    for number_ in range(count):
        namespace = _namespace(number_ % NAMESPACES)
        for kind, name in OWN.items():
            about = {"name": f"{name}-{number_}", "namespace": namespace}
            yield {
                "apiVersion": API_VERSION,
                "kind": kind,
                "metadata": about,
                "spec": _spec(kind, number_),
            }


def _spec(kind: str, number_: int) -> Json:
    if kind == "ApiKey":
        return {"owner": "bench", "deployments": [f"{OWN['LLMDeployment']}-{number_}"]}
    model = {"mlflow": {"name": "bot", "alias": "champion"}}
    return {"model": model, "replicas": 1, "pod": {"nodeSelector": {"type": "kwok"}}}


def _converge(api: Api, operator: Operator, count: int) -> Json:
    readiness = Readiness(api)
    before = api.requests()
    used = operator.cpu_seconds()
    own = operator.writes()
    server_used = api.cpu_seconds()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(api.create, _objects(count)))
    applied = time.monotonic()
    said = 0.0
    while (waited := time.monotonic() - applied) < PATIENCE_SECONDS:
        ready = readiness.counts()
        if all(each == count for each in ready.values()):
            break
        if waited - said > 15:
            said = waited
            _say(f"{waited:.0f} s: {ready} of {count}")
        time.sleep(0.1)
    else:
        raise SystemExit(f"not all were ready after {PATIENCE_SECONDS} s: {ready} of {count}")
    made = api.requests()
    made.subtract(before)
    written = Counter[str]()
    read = Counter[str]()
    for (verb, resource), each in made.items():
        if verb in WRITES:
            written[resource] += each
        elif verb in ("GET", "LIST"):
            read[f"{resource}, {verb}"] += each
    for kind in OWN:
        written[path_of(kind, "").rpartition("/")[2]] -= count  # Those who made them.
    return {
        "ready_s": waited,
        "writes_each": written.total() / count,
        "own_writes_each": (operator.writes() - own) / count,
        "reads_each": read.total() / count,
        "cpu_s": operator.cpu_seconds() - used,
        "server_cpu_s": api.cpu_seconds() - server_used,
        "writes_by_resource": {name: each / count for name, each in written.items() if each},
        "reads_by_resource": {name: each / count for name, each in read.items() if each},
    }


def _quiet(api: Api) -> float:
    time.sleep(SETTLE_SECONDS)
    before = _written(api)
    time.sleep(QUIET_SECONDS)
    return (_written(api) - before) / QUIET_SECONDS


def _restart(
    checkout: Path, scratch: Path, cluster: Cluster, api: Api, registry: MlflowServer
) -> float:
    before = _written(api)
    operator = Operator(checkout, scratch, cluster, registry)
    try:
        time.sleep(RESTART_SECONDS)
        return float(_written(api) - before)
    finally:
        operator.stop()


def _written(api: Api) -> int:
    return sum(each for (verb, _), each in api.requests().items() if verb in WRITES)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def page(record: Json) -> str:
    """The page, from the record and nothing else."""
    rows = record["rows"]
    figures = [
        (title, *(number(each[name]) for each in rows.values())) for name, title in METRICS.items()
    ]
    head = list(rows)
    about = record["machine"]
    return (
        "\n\n".join(
            (
                "# Many deployments",
                "So many LLMDeployments and as many ApiKeys. Made by `hack/bench scale` on"
                f" {record['date']}, commit {record['commit']}, {about['cores']} cores ({about['cpu']}),"
                f" load before {about['load_before']}.",
                METHOD,
                table(("", *head), figures),
                "Writes by deployment until all were ready:",
                table(("", *head), _by_resource(rows, "writes_by_resource")),
                "Reads by deployment:",
                table(("", *head), _by_resource(rows, "reads_by_resource")),
            )
        )
        + "\n"
    )


def _by_resource(rows: dict[str, Json], name: str) -> list[tuple[str, ...]]:
    return [
        (kind, *(number(each[name].get(kind, 0.0)) for each in rows.values()))
        for kind in sorted({kind for each in rows.values() for kind in each[name]})
    ]


if __name__ == "__main__":
    main()
