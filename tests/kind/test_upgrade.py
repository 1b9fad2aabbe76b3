"""The installation changes under its users: upgrades, uninstalling, another way of installing."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from kind.figures import note
from kind.site import CHART, NAMESPACE, RELEASE, ROOT, Front, Site
from kindstack.shell import KindError

pytestmark = pytest.mark.kind

NAME = "lasting"
DEPLOYMENT = f"""
apiVersion: llm-operator.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: {NAME}}}
spec:
  model: {{mlflow: {{name: support-bot, version: 1}}}}
  engine: {{maxModelLength: 256, maxBatchSize: 8}}
  access: {{authentication: Disabled}}
  resources: {{requests: {{cpu: 50m, memory: 256Mi}}}}
"""


@pytest.fixture(scope="module")
def lasting(site: Site) -> Front:
    site.cluster.kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    front = Front(site, NAME)
    front.ready()
    return front


def uids(site: Site) -> set[str]:
    return {pod["metadata"]["uid"] for pod in site.pods(NAME)}


def test_an_upgrade_restarts_no_pod_and_fails_no_request(site: Site, lasting: Front) -> None:
    before = uids(site)
    with lasting.load(clients=2) as tally:
        seconds = site.helm("upgrade", logFormat="console")
    assert uids(site) == before
    note("helm upgrade", f"{seconds:.1f} s, {tally.requests} requests, 0 failed")


def test_older_crds_do_no_harm_and_an_upgrade_brings_the_new_fields(
    site: Site, lasting: Front, tmp_path: Path
) -> None:
    field = {"spec": {"image": site.cluster.runtime_image}}
    site.helm("upgrade", chart=chart_with_older_crds(tmp_path / "chart"))
    lasting.kubectl(
        "patch",
        "llmd",
        NAME,
        "--type=merge",
        "-p",
        json.dumps({"spec": {**field["spec"], "replicas": 2}}),
    )
    lasting.until(
        lambda: len(site.pods(NAME)) == 2 and lasting.is_ready(),
        "this operator's work over older CRDs",
    )
    assert "image" not in lasting.llmd(NAME)["spec"], "the older CRD knows no such field"
    site.helm("upgrade")
    lasting.kubectl(
        "patch", "llmd", NAME, "--type=merge", "-p", json.dumps({"spec": {"replicas": 1}})
    )
    patched = lasting.kubectl(
        "patch",
        "llmd",
        NAME,
        "--type=merge",
        "--dry-run=server",
        "-o",
        "jsonpath={.spec.image}",
        "-p",
        json.dumps(field),
    )
    assert patched == site.cluster.runtime_image
    lasting.until(lambda: len(site.pods(NAME)) == 1 and lasting.is_ready(), "one replica again")


def chart_with_older_crds(folder: Path) -> Path:
    """This chart with the CRD of a release that had no spec.image yet."""
    shutil.copytree(CHART, folder)
    file = folder / "files" / "crds" / "llmdeployments.yaml"
    crd = yaml.safe_load(file.read_text())
    del crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"][
        "image"
    ]
    file.write_text(yaml.safe_dump(crd, sort_keys=False))
    return folder


def test_uninstalled_everything_serves_on_and_a_new_install_takes_it_over(
    site: Site, lasting: Front
) -> None:
    before = uids(site)
    with lasting.load(clients=2):
        site.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
        assert NAME in site.cluster.kubectl("get", "llmd", "-o", "name")
        site.helm("install")
        site.cluster.kubectl("scale", "llmd", NAME, "--replicas=2")
        lasting.until(
            lambda: len(site.pods(NAME)) == 2 and lasting.is_ready(), "the new operator's work"
        )
    assert before < uids(site)


def test_from_the_manifest_to_helm_as_the_docs_say(site: Site, lasting: Front) -> None:
    before = uids(site)
    site.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
    values = site.image_values()
    text = (ROOT / "manifests" / "install.yaml").read_text()
    for old, new in (
        ("llm-operator:0.1.0", f"{values['image']['repository']}:{values['image']['tag']}"),
        (
            "llm-runtime:0.1.0",
            f"{values['runtime']['image']['repository']}:{values['runtime']['image']['tag']}",
        ),
        ("http://mlflow.mlflow.svc.cluster.local:5000", site.mlflow.uri),
    ):
        assert old in text
        text = text.replace(old, new)
    site.cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
    site.rolled_out()
    with pytest.raises(KindError, match="ownership"):
        site.helm("install")
    site.helm("install", "--take-ownership", "--force-conflicts")
    assert uids(site) == before
    assert (
        json.loads(site.cluster.helm("list", "--namespace", NAMESPACE, "-o", "json"))[0]["status"]
        == "deployed"
    )
