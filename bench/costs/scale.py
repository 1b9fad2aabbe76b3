"""What many LLMDeployments and ApiKeys cost: `hack/bench scale [300] [--beside FOLDER] [--dry]`.

A real control plane, nodes played by kwok, a real MLflow server, and the operator with the chart's pace. As many
LLMDeployments of one pod as asked for, and as many ApiKeys, are applied at once. `--beside` names the checkout of
another build, which is measured first, on a cluster of its own. Written to docs/benchmarks/scale.json and scale.md.
"""

import argparse
import base64
import json
import os
import re
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.machine import ROOT, commit, machine
from bench.process import Process
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
    "reads_each": "reads",
    "cpu_s": "processor time of the operator until then, s",
    "quiet_writes_s": "writes a second in the quiet minute",
    "restart_writes": "writes in 75 s from the operator's restart",
    "memory_mib": "most memory of the operator, MiB",
}
METHOD = f"""\
A real API server with its controllers; kwok plays the pods on {NODES} nodes, so that nothing is served. LLMDeployments
of one pod, and an ApiKey for each, lie in {NAMESPACES} namespaces and are applied by eight threads at once. Writes are
POST, PUT, PATCH, apply and DELETE of everybody (the operator, Kubernetes' controllers, kwok) by the API server's own
count, without Leases and those that made the objects. The quiet minute is {SETTLE_SECONDS} s later."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="hack/bench scale")
    parser.add_argument("count", type=int, nargs="?", default=300, help="of each kind")
    parser.add_argument("--beside", type=Path, help="checkout of another build, measured first")
    parser.add_argument(
        "--dry", action="store_true", help="print only; leave docs/benchmarks as it is"
    )
    options = parser.parse_args()
    before = machine()
    builds = {"beside": options.beside.resolve()} if options.beside else {}
    rows = {
        name: measure(folder, options.count) for name, folder in {**builds, "this": ROOT}.items()
    }
    record = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit(), "machine": before,
        "count": options.count, "rows": rows,
    }  # fmt: skip
    print(page(record))
    if not options.dry:
        (FOLDER / "scale.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        (FOLDER / "scale.md").write_text(page(record))


def measure(checkout: Path, count: int) -> Json:
    """The figures of the operator in a checkout, as METRICS names them; `by_resource` beside."""
    with tempfile.TemporaryDirectory(prefix="llm-scale-") as scratch, _cluster(scratch) as cluster:
        api = Api(cluster.kubeconfig)
        with mlflow_server(Path(scratch) / "mlflow") as registry:
            _prepare(checkout, cluster, api, registry)
            operator = _operator(checkout, Path(scratch), cluster, registry)
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

    def ready(self, kind: str) -> int:
        """How many objects of a kind are Ready."""
        answer = self._client.get(path_of(kind, ""), params={"resourceVersion": "0"})
        return sum(_is_ready(item) for item in answer.raise_for_status().json()["items"])

    def requests(self) -> Counter[tuple[str, str]]:
        """Requests so far, by (verb, resource), without Leases."""
        found = Counter[tuple[str, str]]()
        for line in self._client.get("/metrics").raise_for_status().text.splitlines():
            if line.startswith("apiserver_request_total{"):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
                resource = "/".join(filter(None, (labels["resource"], labels["subresource"])))
                if labels["resource"] not in ("leases", "nodes"):
                    found[labels["verb"], resource] += int(float(line.rpartition(" ")[2]))
        return found


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


def _operator(checkout: Path, scratch: Path, cluster: Cluster, registry: MlflowServer) -> Process:
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
    process = Process(command, environment, scratch, scratch / f"operator-{port}.log")
    process.wait_until_ready(f"http://127.0.0.1:{port}/readyz")
    return process


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


def _converge(api: Api, operator: Process, count: int) -> Json:
    before = api.requests()
    used = _cpu_seconds(operator)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(api.create, _objects(count)))
    applied = time.monotonic()
    said = 0.0
    while (waited := time.monotonic() - applied) < PATIENCE_SECONDS:
        ready = {kind: api.ready(kind) for kind in OWN}
        if all(each == count for each in ready.values()):
            break
        if waited - said > 15:
            said = waited
            _say(f"{waited:.0f} s: {ready} of {count}")
        time.sleep(1)
    else:
        raise SystemExit(f"not all were ready after {PATIENCE_SECONDS} s: {ready} of {count}")
    made = api.requests()
    made.subtract(before)
    by_resource = Counter[str]()
    for (verb, resource), each in made.items():
        if verb in WRITES:
            by_resource[resource] += each
    for kind in OWN:
        by_resource[path_of(kind, "").rpartition("/")[2]] -= count  # Those who made them.
    reads = sum(each for (verb, _), each in made.items() if verb in ("GET", "LIST"))
    return {
        "ready_s": waited,
        "writes_each": by_resource.total() / count,
        "reads_each": reads / count,
        "cpu_s": _cpu_seconds(operator) - used,
        "by_resource": {name: each / count for name, each in by_resource.most_common(16)},
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
    operator = _operator(checkout, scratch, cluster, registry)
    try:
        time.sleep(RESTART_SECONDS)
        return float(_written(api) - before)
    finally:
        operator.stop()


def _written(api: Api) -> int:
    return sum(each for (verb, _), each in api.requests().items() if verb in WRITES)


def _cpu_seconds(process: Process) -> float:
    ticks = 0
    for pid in process.pids():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def page(record: Json) -> str:
    """The page, from the record and nothing else."""
    titles = {"beside": "the build beside", "this": "this build"}
    rows = record["rows"]
    figures = [
        (title, *(number(each[name]) for each in rows.values())) for name, title in METRICS.items()
    ]
    kinds = sorted({kind for each in rows.values() for kind in each["by_resource"]})
    written = [
        (kind, *(number(each["by_resource"].get(kind, 0.0)) for each in rows.values()))
        for kind in kinds
    ]
    head = [titles[name] for name in rows]
    about = record["machine"]
    return (
        "\n\n".join(
            (
                "# Many deployments",
                f"{record['count']} LLMDeployments and {record['count']} ApiKeys. Made by `hack/bench scale` on"
                f" {record['date']}, commit {record['commit']}, {about['cores']} cores ({about['cpu']}),"
                f" load before {about['load_before']}.",
                METHOD,
                table(("", *head), figures),
                "Writes by deployment until all were ready:",
                table(("", *head), written),
            )
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
