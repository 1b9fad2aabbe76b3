"""A first hour with the product: install with the chart's defaults,
apply the samples, ask from inside and outside."""

import json
from pathlib import Path

import httpx
import pytest
import yaml

from kind.figures import note
from kind.site import NAMESPACE, RELEASE, ROOT, Front, Site, inside, seconds_since_made
from kindstack.shell import KindError

pytestmark = pytest.mark.kind

SAMPLES = ROOT / "manifests" / "samples"
CLIENT = (
    "import urllib.request as r; print(r.urlopen('http://{name}.{namespace}.svc/v1/models',"
    " timeout=10).status)"
)
RESTRICTED = """
apiVersion: v1
kind: Namespace
metadata: {name: strict, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {name: guarded, namespace: strict}
spec:
  model: {mlflow: {name: support-bot, alias: champion}}
  engine: {maxModelLength: 256, maxBatchSize: 4}
  access: {authentication: Disabled}
  resources: {requests: {cpu: 50m, memory: 256Mi}}
"""
PROBE = """
import json, os, pathlib
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
status = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
def writable(folder):
    try:
        (pathlib.Path(folder) / "probe").write_text("")
    except OSError:
        return False
    return True
print(json.dumps({
    "uid": os.getuid(),
    "capabilities": int(status["CapEff"], 16),
    "seccomp": status["Seccomp"],
    "root": writable("/") or writable("/opt") or writable("/etc"),
    "tmp": writable("/tmp"),
    "token": os.path.exists("/var/run/secrets/kubernetes.io/serviceaccount/token"),
}))
"""


def test_the_operator_gets_ready_with_default_values(site: Site) -> None:
    """`site` has installed it.
    All replicas are ready, none was restarted, and each took seconds."""
    pods = site.operator_pods()
    assert len(pods) == 2
    assert [pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods] == [0, 0]
    seconds = [seconds_since_made(pod, "Ready") for pod in pods]
    note("operator's pod made → Ready", f"{max(seconds):.0f} s")
    note("helm install → rolled out", f"{site.installed_seconds:.1f} s")


def test_helm_test_agrees(site: Site) -> None:
    said = site.cluster.helm("test", RELEASE, "--namespace", NAMESPACE, "--timeout", "120s")
    assert "Succeeded" in said


def test_a_sample_and_its_key_answer_from_the_host_and_from_a_pod(site: Site, bot: Front) -> None:
    headers = {"Authorization": f"Bearer {site.key('web-team')}"}
    body = {"model": bot.name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    with httpx.Client(base_url=bot.url, trust_env=False, timeout=60) as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 401
        answer = client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    (pod,) = site.pods(bot.name)
    with pytest.raises(KindError, match="401"):
        inside(pod, site.cluster, "python", "-c", CLIENT.format(name=bot.name, namespace="default"))


def test_an_open_sample_answers_by_its_name_in_the_clusters_dns(site: Site, bot: Front) -> None:
    site.cluster.kubectl("apply", "-f", str(SAMPLES / "open-inside-the-cluster.yaml"))
    playground = Front(site, "playground")
    playground.ready()
    (pod,) = site.pods(bot.name)
    asked = inside(
        pod, site.cluster, "python", "-c", CLIENT.format(name="playground", namespace="default")
    )
    assert asked.strip() == "200"
    site.cluster.kubectl("delete", "llmd", "playground")


@pytest.mark.parametrize(
    ("sample", "name", "reason"),
    [
        ("autoscaled-gpu.yaml", "assistant", "PodUnschedulable"),
        ("without-registry.yaml", "translator", "PodUnschedulable"),
    ],
)
def test_a_sample_that_asks_for_what_is_not_here_says_what(
    site: Site, sample: str, name: str, reason: str
) -> None:
    front = Front(site, name)
    site.cluster.kubectl("apply", "-f", str(SAMPLES / sample))
    try:
        front.until(lambda: front.condition("Ready", name)["reason"] == reason, reason, 60)
        assert "describe pod" in front.condition("Ready", name)["message"]
    finally:
        site.cluster.kubectl("delete", "-f", str(SAMPLES / sample), "--wait=false")


def test_a_pod_may_do_nothing_that_it_need_not(site: Site, bot: Front) -> None:
    (pod,) = site.pods(bot.name)
    seen = json.loads(inside(pod, site.cluster, "python", "-c", PROBE))
    assert seen == {
        "uid": 65532,
        "capabilities": 0,
        "seccomp": "2",
        "root": False,
        "tmp": True,
        "token": False,
    }


def test_a_namespace_with_pod_security_restricted_admits_and_serves(site: Site) -> None:
    site.cluster.kubectl("apply", "-f", "-", stdin=RESTRICTED)
    try:
        site.cluster.kubectl(
            "-n", "strict", "wait", "llmd/guarded", "--for=condition=Ready", "--timeout=180s"
        )
        url = site.service_url("guarded", "strict")
        assert httpx.get(f"{url}/v1/models", trust_env=False, timeout=10).status_code == 200
    finally:
        site.cluster.kubectl("delete", "namespace", "strict", "--wait=false")


def test_nothing_was_forbidden_to_the_operator(site: Site) -> None:
    logs = [
        site.cluster.kubectl("-n", NAMESPACE, "logs", pod["metadata"]["name"], "--tail=-1")
        for pod in site.operator_pods()
    ]
    assert not [line for log in logs for line in log.splitlines() if "forbidden" in line.lower()]


def test_every_sample_is_valid(site: Site) -> None:
    for sample in sorted(Path(SAMPLES).glob("*.yaml")):
        assert list(yaml.safe_load_all(sample.read_text()))
        site.cluster.kubectl("apply", "--dry-run=server", "-f", str(sample))
