"""The chart, the rendered manifest and the samples, before a real API server."""

import json
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from devstack.cluster import Cluster, ClusterError
from waiting import eventually

pytestmark = pytest.mark.control_plane

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "llm-operator"
INSTALL = ROOT / "manifests" / "install.yaml"
SAMPLES = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))
NAMESPACE = "llm-operator-system"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:llm-operator"


def documents() -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(INSTALL.read_text()) if each]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """install.yaml applied as a person would, to a cluster of its own:
    elsewhere an operator runs under these rules."""
    cluster = Cluster.start(tmp_path_factory.mktemp("chart") / "state", provider="local")
    try:
        cluster.kubectl("apply", "--server-side", "-f", str(INSTALL))
        for crd in ("llmdeployments", "apikeys"):
            cluster.kubectl(
                "wait",
                f"crd/{crd}.llm-operator.dev",
                "--for=condition=Established",
                "--timeout=30s",
            )
        yield cluster
    finally:
        cluster.stop()


def may(
    cluster: Cluster,
    verb: str,
    resource: str,
    namespace: str = "default",
    user: str = ACCOUNT,
    of: str = "",
) -> bool:
    """Whether `user` may;
    `resource` may have a subresource, which kubectl would take for a name."""
    name, _, sub = resource.partition("/")
    arguments = [
        "auth",
        "can-i",
        verb,
        f"{name}/{of}" if of else name,
        "--as",
        user,
        "-n",
        namespace,
        *(["--subresource", sub] if sub else []),
    ]
    try:
        return cluster.kubectl(*arguments).strip() == "yes"
    except ClusterError:  # "no" is exit status 1
        return False


def test_helm_finds_no_fault_in_the_chart(cluster: Cluster) -> None:
    assert cluster.programs is not None
    subprocess.run(
        [cluster.programs / "helm", "lint", "--strict", "--quiet", CHART],
        check=True,
        capture_output=True,
    )


def test_helm_installs_what_the_manifest_installs(installed: Cluster) -> None:
    """Every kind of object the chart can make, accepted by the server;
    ServiceMonitor's CRD is not ours to bring."""
    namespaces = ("team-a", "team-b")
    for name in namespaces:
        installed.kubectl("create", "namespace", name)
    values = {
        "watchNamespaces": list(namespaces),
        "connections": {"default": {"trackingUri": "http://m", "credentialsSecret": "s"}},
    }
    assert installed.programs is not None
    rendered = subprocess.run(
        [installed.programs / "helm", "template", "other", CHART, "-n", NAMESPACE, "--skip-tests", "--values", "-"],
        input=json.dumps(values), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    installed.kubectl(
        "apply", "--dry-run=server", "--server-side", "--force-conflicts", "-f", "-", stdin=rendered
    )
    for name in namespaces:
        installed.kubectl("delete", "namespace", name, "--wait=false")


def test_a_second_apply_changes_nothing(installed: Cluster) -> None:
    before = installed.kubectl(
        "get", "-f", str(INSTALL), "-o", "jsonpath={.items[*].metadata.generation}"
    )
    installed.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(INSTALL))
    assert (
        installed.kubectl(
            "get", "-f", str(INSTALL), "-o", "jsonpath={.items[*].metadata.generation}"
        )
        == before
    )


def test_a_plain_kubectl_apply_works_too(installed: Cluster) -> None:
    """It keeps the whole object in an annotation, which has a limit of 256 KiB."""
    installed.kubectl(
        "create",
        "--dry-run=server",
        "--save-config",
        "-f",
        "-",
        stdin=yaml.safe_dump_all(renamed()),
    )


def renamed() -> list[dict[str, Any]]:
    """The CRDs under a group of their own, so that they are new to the server."""
    crds = []
    for each in documents():
        if each["kind"] == "CustomResourceDefinition":
            plural = each["spec"]["names"]["plural"]
            each["spec"]["group"] = "trial.example.com"
            each["metadata"]["name"] = f"{plural}.trial.example.com"
            crds.append(each)
    return crds


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda file: file.stem)
def test_sample_is_accepted_without_a_warning(installed: Cluster, sample: Path) -> None:
    command = [
        "kubectl",
        "apply",
        "--dry-run=server",
        "--validate=strict",
        "--warnings-as-errors",
        "--namespace",
        "default",
    ]
    done = subprocess.run(
        [*command, "-f", str(sample)],
        env=installed.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


def test_operator_pods_keep_to_the_restricted_pod_security_standard(installed: Cluster) -> None:
    namespace = json.loads(installed.kubectl("get", "namespace", NAMESPACE, "-o", "json"))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    (deployment,) = [each for each in documents() if each["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "trial", "namespace": NAMESPACE},
        "spec": template["spec"],
    }
    done = subprocess.run(
        ["kubectl", "create", "--dry-run=server", "--warnings-as-errors", "-f", "-"],
        input=json.dumps(pod), env=installed.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("get", "secrets"),
        ("create", "secrets"),
        ("patch", "deployments.apps"),
        ("patch", "llmdeployments.llm-operator.dev/status"),
        ("watch", "apikeys.llm-operator.dev"),
        ("patch", "pods"),
        ("create", "events"),
    ],
)
def test_operator_may(installed: Cluster, verb: str, resource: str) -> None:
    assert may(installed, verb, resource)


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("list", "secrets"),
        ("watch", "secrets"),
        ("patch", "llmdeployments.llm-operator.dev"),
        ("delete", "llmdeployments.llm-operator.dev"),
        ("create", "pods"),
        ("delete", "pods"),
        ("create", "pods/exec"),
        ("create", "rolebindings.rbac.authorization.k8s.io"),
        ("create", "clusterroles.rbac.authorization.k8s.io"),
        ("create", "serviceaccounts/token"),
        ("impersonate", "users"),
        ("create", "leases.coordination.k8s.io"),
        ("patch", "nodes"),
        ("*", "*"),
    ],
)
def test_operator_may_not(installed: Cluster, verb: str, resource: str) -> None:
    assert not may(installed, verb, resource)


def test_operator_keeps_its_own_lease_and_no_other(installed: Cluster) -> None:
    leases = "leases.coordination.k8s.io"
    assert may(installed, "patch", leases, NAMESPACE, of="llm-operator")
    assert not may(installed, "patch", leases, NAMESPACE, of="somebody-else")
    assert not may(installed, "get", leases, "kube-system", of="llm-operator")


def test_people_with_the_role_edit_may_write_deployments_and_viewers_may_read_them(
    installed: Cluster,
) -> None:
    """The aggregated roles reach Kubernetes' own edit and view within a moment."""
    for role, verb in (("edit", "create"), ("view", "list")):
        installed.kubectl(
            "create",
            "rolebinding",
            f"trial-{role}",
            f"--clusterrole={role}",
            f"--user={role}er",
            "-n",
            "default",
        )
        try:
            eventually(
                partial(may, installed, verb, "llmdeployments.llm-operator.dev", user=f"{role}er")
            )
        finally:
            installed.kubectl("delete", "rolebinding", f"trial-{role}", "-n", "default")
