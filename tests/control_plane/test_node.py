"""The process node on a real API server: each test is one thing a kubelet would do."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from devstack.cluster import Cluster
from waiting import eventually

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("process_node")]
Json = dict[str, Any]
LABELS = {"app": "web"}
# Answers with its pod's name, or with a mounted file; unhealthy once somebody asked it to be.
SERVER = """
import http.server, os, pathlib, signal, sys, time
sick = []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/sicken": sick.append(1)
        text = pathlib.Path(os.environ["CONFIG"]).read_text() if self.path == "/config" else os.environ["POD"]
        self.send_response(500 if sick and self.path == "/healthz" else 200)
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *words): print("GET", self.path, flush=True)
print("serving", *sys.argv[1:], flush=True)
http.server.ThreadingHTTPServer((os.environ["API_HOST"], 8000), Handler).serve_forever()
"""


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    name = f"node-{time.time_ns() % 10**10}"
    cluster.kubectl("create", "namespace", name)
    eventually(lambda: cluster.kubectl("get", "serviceaccount", "default", "-n", name))
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def server(**more: Any) -> Json:
    pod_name = {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    ready = {"httpGet": {"port": "http"}, "periodSeconds": 1}
    return {
        "name": "server",
        "image": "ignored",
        "command": ["python", "-c", SERVER],
        "env": [pod_name],
        "ports": [{"name": "http", "containerPort": 8000}],
        "readinessProbe": ready,
        **more,
    }


def script(name: str, code: str, **more: Any) -> Json:
    return {"name": name, "image": "ignored", "command": ["python", "-uc", code], **more}


def pod(*containers: Json, name: str = "web", **spec: Any) -> Json:
    body = {"containers": list(containers), "terminationGracePeriodSeconds": 5, **spec}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": LABELS},
        "spec": body,
    }


def service(**spec: Any) -> Json:
    body = {"selector": LABELS, "ports": [{"port": 80, "targetPort": "http"}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": body}


def apply(cluster: Cluster, namespace: str, *objects: Json) -> None:
    for each in objects:
        cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(each))


def get(cluster: Cluster, namespace: str, *what: str) -> Json:
    found: Json = json.loads(cluster.kubectl("get", "-n", namespace, *what, "-o", "json"))
    return found


def wait_ready(cluster: Cluster, namespace: str, name: str = "web") -> None:
    cluster.kubectl(
        "wait", "-n", namespace, f"pod/{name}", "--for=condition=Ready", "--timeout=60s"
    )


def fetch(cluster: Cluster, namespace: str, path: str = "/") -> str:
    address = get(cluster, namespace, "service", "web")["spec"]["clusterIP"]
    return httpx.get(f"http://{address}{path}", trust_env=False, timeout=5).text


def answers(cluster: Cluster, namespace: str) -> bool:
    try:
        return bool(fetch(cluster, namespace))
    except httpx.TransportError:
        return False


def container_status(cluster: Cluster, namespace: str, kind: str = "containerStatuses") -> Json:
    found: Json = get(cluster, namespace, "pod", "web")["status"][kind][0]
    return found


def test_pod_of_two_containers_becomes_ready_through_its_probe(
    cluster: Cluster, namespace: str
) -> None:
    apply(
        cluster,
        namespace,
        pod(server(), script("beside", "import time; print('hello'); time.sleep(600)")),
    )
    wait_ready(cluster, namespace)
    status = get(cluster, namespace, "pod", "web")["status"]
    assert status["phase"] == "Running"
    assert status["podIP"].startswith("127.")
    assert [each["ready"] for each in status["containerStatuses"]] == [True, True]
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    assert {"PodScheduled", "Initialized", "ContainersReady", "Ready"} <= conditions.keys()


def test_service_answers_on_its_cluster_address_and_follows_readiness(
    cluster: Cluster, namespace: str
) -> None:
    apply(cluster, namespace, service(), pod(server()))
    wait_ready(cluster, namespace)
    assert fetch(cluster, namespace) == "web"
    cluster.kubectl(
        "patch", "service", "web", "-n", namespace, "-p", '{"spec":{"selector":{"app":"nobody"}}}'
    )
    eventually(lambda: not answers(cluster, namespace))


ECHO = """
import os, socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile: self.wfile.write(line)
socketserver.ThreadingTCPServer((os.environ["API_HOST"], 8000), Echo).serve_forever()
"""


def test_open_connection_outlives_a_switch_of_the_selector(
    cluster: Cluster, namespace: str
) -> None:
    echo = server(
        command=["python", "-c", ECHO],
        readinessProbe={"tcpSocket": {"port": 8000}, "periodSeconds": 1},
    )
    apply(cluster, namespace, service(), pod(echo))
    wait_ready(cluster, namespace)
    address = get(cluster, namespace, "service", "web")["spec"]["clusterIP"]
    with socket.create_connection((address, 80), timeout=5) as line:
        line.sendall(b"one\n")
        assert line.recv(10) == b"one\n"
        cluster.kubectl(
            "patch",
            "service",
            "web",
            "-n",
            namespace,
            "-p",
            '{"spec":{"selector":{"app":"nobody"}}}',
        )
        eventually(lambda: not answers(cluster, namespace))
        line.sendall(b"two\n")
        assert line.recv(10) == b"two\n"


def test_config_map_reaches_its_volume_on_a_nudge(cluster: Cluster, namespace: str) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "words"},
        "data": {"word": "one"},
    }
    mounted = server(volumeMounts=[{"name": "words", "mountPath": "/etc/words"}])
    mounted["env"] = [*mounted["env"], {"name": "CONFIG", "value": "/etc/words/word"}]
    volumes = [{"name": "words", "configMap": {"name": "words"}}]
    apply(cluster, namespace, config, service(), pod(mounted, volumes=volumes))
    wait_ready(cluster, namespace)
    assert fetch(cluster, namespace, "/config") == "one"
    apply(cluster, namespace, {**config, "data": {"word": "two"}})
    time.sleep(0.5)
    assert (
        fetch(cluster, namespace, "/config") == "one"
    )  # like the kubelet, which reads it anew only now and then
    cluster.kubectl("annotate", "-n", namespace, "pod/web", "nudge=1")
    eventually(lambda: fetch(cluster, namespace, "/config") == "two")


def test_missing_secret_is_named_and_waited_for(cluster: Cluster, namespace: str) -> None:
    secret = {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "late", "key": "word"}}}
    apply(
        cluster,
        namespace,
        pod(
            script(
                "main", "import os, time; print(os.environ['WORD']); time.sleep(600)", env=[secret]
            )
        ),
    )

    def waiting() -> Json:
        found: Json = container_status(cluster, namespace)["state"]["waiting"]
        return found if found["reason"] == "CreateContainerConfigError" else {}

    assert 'secret "late" not found' in eventually(waiting)["message"]
    cluster.kubectl(
        "create", "secret", "generic", "late", "-n", namespace, "--from-literal=word=here"
    )
    wait_ready(cluster, namespace)
    assert "here" in eventually(lambda: cluster.kubectl("logs", "-n", namespace, "web"))


def test_liveness_failure_restarts_the_container(cluster: Cluster, namespace: str) -> None:
    alive = {
        "httpGet": {"port": "http", "path": "/healthz"},
        "periodSeconds": 1,
        "failureThreshold": 1,
    }
    up = {"tcpSocket": {"port": "http"}, "periodSeconds": 1, "failureThreshold": 20}
    apply(cluster, namespace, service(), pod(server(livenessProbe=alive, startupProbe=up)))
    wait_ready(cluster, namespace)
    fetch(cluster, namespace, "/sicken")
    status = eventually(
        lambda: (s := container_status(cluster, namespace))["restartCount"] == 1 and s
    )
    assert status["lastState"]["terminated"]["exitCode"] == 143
    assert "serving" in cluster.kubectl("logs", "-n", namespace, "web", "--previous")
    wait_ready(cluster, namespace)


def test_crash_loop_backs_off_and_keeps_the_last_words(cluster: Cluster, namespace: str) -> None:
    dying = script(
        "main", "raise SystemExit('no weights')", terminationMessagePolicy="FallbackToLogsOnError"
    )
    apply(cluster, namespace, pod(dying))

    def looping() -> Json:
        status = container_status(cluster, namespace)
        return (
            status if status["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff" else {}
        )

    status = eventually(looping)
    assert status["restartCount"] >= 1
    assert status["lastState"]["terminated"]["message"] == "no weights"
    assert get(cluster, namespace, "pod", "web")["status"]["phase"] == "Running"


def test_init_container_failure_shows_its_message(cluster: Cluster, namespace: str) -> None:
    broken = script(
        "fetch",
        "raise SystemExit('registry is down')",
        terminationMessagePolicy="FallbackToLogsOnError",
    )
    apply(cluster, namespace, pod(server(), initContainers=[broken], restartPolicy="Never"))
    eventually(lambda: get(cluster, namespace, "pod", "web")["status"]["phase"] == "Failed")
    state = container_status(cluster, namespace, "initContainerStatuses")["state"]["terminated"]
    assert (state["exitCode"], state["reason"], state["message"]) == (
        1,
        "Error",
        "registry is down",
    )
    assert container_status(cluster, namespace)["state"]["waiting"]["reason"] == "PodInitializing"


def test_init_containers_share_an_empty_dir_with_the_rest(cluster: Cluster, namespace: str) -> None:
    mount = [{"name": "models", "mountPath": "/models"}]
    write = script(
        "write",
        "import sys; open(sys.argv[1], 'w').write('weights')",
        args=["/models/x"],
        volumeMounts=mount,
    )
    read = script(
        "read",
        "import sys; print(open(sys.argv[1].split('=')[1]).read())",
        args=["--file=/models/x"],
        volumeMounts=mount,
    )
    spec: Json = {
        "initContainers": [write],
        "volumes": [{"name": "models", "emptyDir": {}}],
        "restartPolicy": "Never",
    }
    apply(cluster, namespace, pod(read, **spec))
    eventually(lambda: get(cluster, namespace, "pod", "web")["status"]["phase"] == "Succeeded")
    assert cluster.kubectl("logs", "-n", namespace, "web") == "weights\n"


def test_pre_stop_and_sigterm_fit_into_the_grace_period(cluster: Cluster, namespace: str) -> None:
    polite = script(
        "main",
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (print('drained',"
        " flush=True), time.sleep(1), sys.exit(0)))\nprint('up', flush=True)\nwhile True:"
        " time.sleep(0.1)",
        lifecycle={
            "preStop": {"exec": {"command": ["python", "-c", "import time; time.sleep(1)"]}}
        },
    )
    apply(cluster, namespace, pod(polite, name="web"))
    wait_ready(cluster, namespace)
    eventually(lambda: "up" in cluster.kubectl("logs", "-n", namespace, "web"))
    started = time.monotonic()
    cluster.kubectl("delete", "pod", "web", "-n", namespace, "--wait=true", "--timeout=60s")
    assert 2.0 < time.monotonic() - started < 20, "both, and not the whole grace period of 30 s"


def test_deaf_process_is_killed_when_the_grace_period_ends(
    cluster: Cluster, namespace: str
) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up',"
        " flush=True); time.sleep(600)"
    )
    apply(cluster, namespace, pod(script("main", deaf), terminationGracePeriodSeconds=2))
    eventually(lambda: "up" in cluster.kubectl("logs", "-n", namespace, "web"))
    started = time.monotonic()
    cluster.kubectl("delete", "pod", "web", "-n", namespace, "--wait=true", "--timeout=60s")
    assert time.monotonic() - started > 1.5


def test_logs_can_be_followed_and_cut(cluster: Cluster, namespace: str) -> None:
    counting = "import time\nfor n in range(20): print(n, flush=True); time.sleep(0.05)"
    apply(cluster, namespace, pod(script("main", counting), restartPolicy="Never"))
    eventually(lambda: cluster.kubectl("logs", "-n", namespace, "web"))
    assert cluster.kubectl("logs", "-f", "-n", namespace, "web").split() == [
        str(n) for n in range(20)
    ]
    assert cluster.kubectl("logs", "--tail=2", "-n", namespace, "web").split() == ["18", "19"]


def test_service_account_token_works_through_kubeconfig(cluster: Cluster, namespace: str) -> None:
    asking = (
        "import subprocess; print(subprocess.run(['kubectl', 'auth', 'whoami'],"
        " capture_output=True, text=True).stdout)"
    )
    apply(cluster, namespace, pod(script("main", asking), restartPolicy="Never"))
    eventually(
        lambda: (
            f"system:serviceaccount:{namespace}:default"
            in cluster.kubectl("logs", "-n", namespace, "web")
        )
    )


def test_what_cannot_run_here_is_refused_aloud(cluster: Cluster, namespace: str) -> None:
    apply(cluster, namespace, pod({"name": "main", "image": "nginx"}))
    status = eventually(
        lambda: (s := get(cluster, namespace, "pod", "web")["status"])["phase"] == "Failed" and s
    )
    assert status["reason"] == "ProcessNodeUnsupported"
    assert "'main' has no command" in status["message"]
    events = get(cluster, namespace, "events", "--field-selector=reason=ProcessNodeUnsupported")[
        "items"
    ]
    assert len(events) == 1


def deployment(replicas: int) -> Json:
    template = {"metadata": {"labels": LABELS}, "spec": pod(server())["spec"]}
    spec = {"replicas": replicas, "selector": {"matchLabels": LABELS}, "template": template}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": spec,
    }


def test_two_replicas_share_the_requests_and_scale_to_zero(
    cluster: Cluster, namespace: str
) -> None:
    apply(cluster, namespace, service(), deployment(2))
    cluster.kubectl("rollout", "status", "-n", namespace, "deployment/web", "--timeout=30s")
    said = [fetch(cluster, namespace) for _ in range(10)]
    assert sorted(said.count(name) for name in set(said)) == [5, 5]
    cluster.kubectl("scale", "-n", namespace, "deployment/web", "--replicas=0")
    eventually(lambda: not get(cluster, namespace, "pods")["items"])
    assert not answers(cluster, namespace)
