"""The installation changes under its users: upgrades, uninstalling, another way of installing."""

import json

import pytest

from kind.site import NAMESPACE, RELEASE, ROOT, Front, Site
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
    print(f"helm upgrade: {seconds:.1f} s, {tally.requests} requests, 0 failed")


def test_uninstalled_everything_serves_on_and_a_new_install_takes_it_over(site: Site, lasting: Front) -> None:
    before = uids(site)
    with lasting.load(clients=2):
        site.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
        assert NAME in site.cluster.kubectl("get", "llmd", "-o", "name")
        site.helm("install")
        site.cluster.kubectl("scale", "llmd", NAME, "--replicas=2")
        lasting.until(lambda: len(site.pods(NAME)) == 2 and lasting.is_ready(), "the new operator's work")
    assert before < uids(site)


def test_from_the_manifest_to_helm_as_the_docs_say(site: Site, lasting: Front) -> None:
    before = uids(site)
    site.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
    values = site.image_values()
    text = (ROOT / "manifests" / "install.yaml").read_text()
    for old, new in (
        ("llm-operator:0.1.0", f"{values['image']['repository']}:{values['image']['tag']}"),
        ("llm-runtime:0.1.0", f"{values['runtime']['image']['repository']}:{values['runtime']['image']['tag']}"),
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
    assert json.loads(site.cluster.helm("list", "--namespace", NAMESPACE, "-o", "json"))[0]["status"] == "deployed"
