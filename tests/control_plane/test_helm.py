"""The chart with Helm 3 and Helm 4 on a real API server:
install, upgrade, take over from install.yaml, uninstall."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from devstack.cluster import Cluster, ClusterError
from devstack.helm3 import helm3

pytestmark = pytest.mark.control_plane

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "llm-operator"
INSTALL = ROOT / "manifests" / "install.yaml"
NAMESPACE = "llm-operator-system"
CRDS = ("llmdeployments.llm-operator.dev", "apikeys.llm-operator.dev")
TOUCHES = 6
Json = dict[str, Any]
BOT: Json = {
    "apiVersion": "llm-operator.dev/v1alpha1",
    "kind": "LLMDeployment",
    "metadata": {"name": "bot", "namespace": "default"},
    "spec": {"model": {"mlflow": {"name": "bot", "alias": "champion"}}},
}
EVERYTHING: Json = {
    "image": {
        "repository": "registry.example.com:5000/op",
        "digest": f"sha256:{'a' * 64}",
        "pullPolicy": "Always",
    },
    "imagePullSecrets": [{"name": "registry"}],
    "runtime": {
        "image": {"repository": "r/run", "tag": "2"},
        "imagePullSecrets": [{"name": "registry"}],
        "fetchResources": {"limits": {"cpu": 2}, "requests": {}},
    },
    "connections": {
        "default": {"trackingUri": "https://m", "workspace": "w", "credentialsSecret": "s"}
    },
    "webhooks": {"service": {"enabled": True, "annotations": {"a": "b"}}},
    "prometheusUrl": "http://prometheus:9090",
    "prometheusAllowed": ["http://other:9090"],
    "replicas": 3,
    "serviceAccount": {"name": "operator", "annotations": {"a": "b"}},
    "metrics": {
        "service": {"annotations": {"a": "b"}},
        "serviceMonitor": {"enabled": True, "labels": {"release": "p"}},
        "prometheusRule": {
            "enabled": True,
            "labels": {"release": "p"},
            "runbookBaseUrl": "https://example.com/x.md",
        },
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "LLM"}},
    },
    "networkPolicy": {
        "enabled": True,
        "ingressFrom": [{"namespaceSelector": {}}],
        "extraEgress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
        "runtime": {"namespaces": ["default"], "ingressFrom": [{"podSelector": {}}]},
    },
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "ml"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"operator": "Exists"}],
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "zone",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {},
        }
    ],
    "priorityClassName": "system-cluster-critical",
    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
}
VALUES: dict[str, Json] = {
    "defaults": {},
    "everything": EVERYTHING,
    "some-namespaces": {"watchNamespaces": ["default", "kube-public"]},
    "bring-your-own": {
        "replicas": 1,
        "rbac": {"create": False, "aggregateToUserRoles": False},
        "serviceAccount": {"create": False, "name": "default"},
        "crds": {"install": False},
        "connections": None,
    },
}


@dataclass(frozen=True)
class Helm:
    """One of the two versions, on a cluster of its own."""

    name: str
    program: Path
    cluster: Cluster

    def __call__(self, *arguments: str, values: Json | None = None) -> str:
        done = self.run(*arguments, values=values)
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def run(self, *arguments: str, values: Json | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(self.program), *arguments, "--namespace", NAMESPACE]
        command += ["--values", "-"] if values is not None else []
        return subprocess.run(
            command,
            env=self.cluster.environment(),
            input=json.dumps(values),
            capture_output=True,
            text=True,
            check=False,
        )

    def get(self, *what: str, namespace: str = NAMESPACE) -> Json:
        found: Json = json.loads(self.cluster.kubectl("get", *what, "-n", namespace, "-o", "json"))
        return found

    def uid(self, *what: str, namespace: str = NAMESPACE) -> str:
        return str(self.get(*what, namespace=namespace)["metadata"]["uid"])

    def served(self) -> None:
        for crd in CRDS:
            self.cluster.kubectl(
                "wait", f"crd/{crd}", "--for=condition=Established", "--timeout=30s"
            )


def _stub(plural: str, kind: str) -> Json:
    """A kind of the Prometheus operator, as far as the chart's objects need it."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


@pytest.fixture(scope="module", params=["helm4", "helm3"])
def tool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Helm]:
    """Built before the cluster is started."""
    own = helm3() if request.param == "helm3" else None
    cluster = Cluster.start(tmp_path_factory.mktemp(request.param) / "state", provider="local")
    try:
        assert cluster.programs is not None
        found = Helm(request.param, own or cluster.programs / "helm", cluster)
        stubs = [
            _stub("servicemonitors", "ServiceMonitor"),
            _stub("prometheusrules", "PrometheusRule"),
        ]
        cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(stubs))
        assert f"v{request.param[-1]}." in found("version")
        yield found
    finally:
        cluster.stop()


@pytest.fixture
def helm(tool: Helm) -> Iterator[Helm]:
    """With an empty namespace, and none of our CRDs before and after."""
    yield tool
    tool.run("uninstall", "llm-operator")
    # The namespace itself stays: its end can take minutes while the CRDs' end is not yet known
    # everywhere.
    objects = [
        each
        for each in yaml.safe_load_all(INSTALL.read_text())
        if each and each["kind"] != "Namespace"
    ]
    manifests = yaml.safe_dump_all(objects)
    tool.cluster.kubectl("delete", "-f", "-", "--ignore-not-found", "--wait=false", stdin=manifests)
    for crd in CRDS:
        _wait_for_the_end(tool.cluster, f"crd/{crd}")


def _wait_for_the_end(cluster: Cluster, crd: str) -> None:
    """An API server that is just reading a CRD anew ("storage is (re)initializing") may leave its
    end undone until the CRD is touched again; seen with 1.36.3."""
    for _ in range(TOUCHES):
        try:
            cluster.kubectl("wait", "--for=delete", crd, "--timeout=10s")
        except ClusterError:
            with suppress(ClusterError):  # It may have ended in between.
                cluster.kubectl("annotate", crd, f"touched={uuid4()}")
        else:
            return
    cluster.kubectl("wait", "--for=delete", crd, "--timeout=10s")


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_lint_finds_nothing(tool: Helm, values: Json) -> None:
    tool("lint", "--strict", "--quiet", str(CHART), values=values)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_everything_that_is_rendered_is_accepted_and_changed_values_reach_it(
    helm: Helm, values: Json
) -> None:
    helm("install", "llm-operator", str(CHART), "--create-namespace", values=values)
    # The server takes each object as it is, unknown fields and all warnings counting as faults;
    # the test pod, too.
    helm.cluster.kubectl(
        "label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted"
    )
    # Without a cluster Helm goes by what it was built with; a Helm 3 that is no release says 1.20.
    rendered = helm(
        "template", "llm-operator", str(CHART), "--kube-version", "1.36.0", values=values
    )
    command = [
        "kubectl",
        "apply",
        "--dry-run=server",
        "--server-side",
        "--force-conflicts",
        "--validate=strict",
    ]
    judged = subprocess.run(
        [*command, "--warnings-as-errors", "-f", "-"],
        input=rendered, env=helm.cluster.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stderr
    helm("upgrade", "llm-operator", str(CHART), values={**values, "pollSeconds": 7})
    assert "pollSeconds: 7" in helm.get("configmap", "llm-operator")["data"]["config.yaml"]
    assert "STATUS: deployed" in helm("status", "llm-operator")


def older(folder: Path) -> Path:
    """The chart as a release before this one may have been:
    a lower version, and CRDs without the field spec.image."""
    copied = shutil.copytree(CHART, folder / "llm-operator")
    described = copied / "Chart.yaml"
    described.write_text(described.read_text().replace("\nversion: 0.1.0", "\nversion: 0.0.9"))
    file = copied / "files" / "crds" / "llmdeployments.yaml"
    crd = yaml.safe_load(file.read_text())
    del crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"][
        "image"
    ]
    file.write_text(yaml.safe_dump(crd, sort_keys=False))
    return copied


def test_an_upgrade_from_an_older_chart_brings_new_fields_and_keeps_what_is_there(
    helm: Helm, tmp_path: Path
) -> None:
    own = {**BOT, "spec": {**BOT["spec"], "image": "example.com/runtime:cpu"}}
    helm("install", "llm-operator", str(older(tmp_path)), "--create-namespace")
    helm.served()
    helm.cluster.kubectl("apply", "--validate=false", "-f", "-", stdin=json.dumps(own))
    before = helm.get("llmd", "bot", namespace="default")
    assert "image" not in before["spec"]

    helm("upgrade", "llm-operator", str(CHART), "--reset-then-reuse-values")
    helm.cluster.kubectl(
        "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(own)
    )
    after = helm.get("llmd", "bot", namespace="default")
    assert after["spec"]["image"] == "example.com/runtime:cpu"
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def documented(helm: Helm, values: Path) -> list[str]:
    """The command of docs/operations.md for this version of Helm."""
    text = (ROOT / "docs" / "operations.md").read_text()
    block = re.search(r"### From install.yaml to Helm.*?```sh\n(.*?)```", text, re.S)
    assert block is not None
    commands = {
        line[-1]: line for line in re.split(r"\n(?=helm )", re.sub(r"\\\n", "", block[1].strip()))
    }
    chosen = next(
        each for each in commands.values() if re.search(rf"# Helm {helm.name[-1]}\b", each)
    )
    words = shlex.split(chosen, comments=True)
    swapped = {
        "helm": str(helm.program),
        "charts/llm-operator": str(CHART),
        "your-values.yaml": str(values),
    }
    return [swapped.get(word, word) for word in words]


def test_helm_takes_over_from_install_yaml_by_the_documented_command_and_leaves_the_crds(
    helm: Helm, tmp_path: Path
) -> None:
    helm.cluster.kubectl("apply", "--server-side", "-f", str(INSTALL))
    helm.served()
    key = {
        "apiVersion": BOT["apiVersion"],
        "kind": "ApiKey",
        "metadata": {"name": "team", "namespace": "default"},
    }
    made = [BOT, {**key, "spec": {"deployments": ["bot"]}}]
    helm.cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(made))
    ours = (("deployment", "llm-operator"), ("serviceaccount", "llm-operator"), ("crd", CRDS[0]))
    before = [helm.uid(*what) for what in ours]
    people = [
        helm.uid(kind, name, namespace="default")
        for kind, name in (("llmd", "bot"), ("apikey", "team"))
    ]

    refused = helm.run("upgrade", "--install", "llm-operator", str(CHART))
    assert refused.returncode != 0
    assert "invalid ownership metadata" in refused.stderr

    values = tmp_path / "values.yaml"
    values.write_text("pollSeconds: 7\nreplicas: 3\n")
    done = subprocess.run(
        documented(helm, values),
        env=helm.cluster.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [helm.uid(*what) for what in ours] == before
    assert helm.get("deployment", "llm-operator")["spec"]["replicas"] == 3
    assert "pollSeconds: 7" in helm.get("configmap", "llm-operator")["data"]["config.yaml"]
    # From now on a plain upgrade does, and takes away what is switched off.
    helm("upgrade", "llm-operator", str(CHART), values={"pollSeconds": 9, "replicas": 1})
    assert "pollSeconds: 9" in helm.get("configmap", "llm-operator")["data"]["config.yaml"]
    assert helm.get("pdb")["items"] == []

    helm("uninstall", "llm-operator")
    assert [
        helm.uid(kind, name, namespace="default")
        for kind, name in (("llmd", "bot"), ("apikey", "team"))
    ] == people
    assert (
        json.loads(helm.cluster.kubectl("get", "deployments", "-n", NAMESPACE, "-o", "json"))[
            "items"
        ]
        == []
    )
    helm("install", "llm-operator", str(CHART))
    assert helm.uid("crd", CRDS[0]) == before[2]
    assert [
        helm.uid(kind, name, namespace="default")
        for kind, name in (("llmd", "bot"), ("apikey", "team"))
    ] == people
