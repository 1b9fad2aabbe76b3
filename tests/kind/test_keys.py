"""Keys on real pods: mounted Secrets are the kubelet's, and it takes its time unless it is told."""

import random
import time
from collections.abc import Iterator

import pytest
from kubernetes.client import CustomObjectsApi
from kubernetes.config import new_client_from_config

from kind.figures import note
from kind.site import Front, Site
from llm_runtime.contract import PORT

pytestmark = pytest.mark.kind

DELETIONS = 50
PATIENCE_SECONDS = 5.0
"""By itself a kubelet looks at a Secret once a minute: later than this, it has not been told.
The goal is 1 s."""


def key_yaml(name: str, **fields: object) -> str:
    more = "".join(f", {key}: {str(value).lower()}" for key, value in fields.items())
    return (
        "apiVersion: llm-operator.dev/v1alpha1\nkind: ApiKey\n"
        f"metadata: {{name: {name}}}\nspec: {{owner: {name}@example.com, deployments: [support-bot]{more}}}\n"
    )


class Doors:
    """Two pods, each asked by itself through the API server:
    a key is refused when all of them refuse it."""

    def __init__(self, site: Site, pods: list[str]) -> None:
        # Not kubectl, whose own start takes as long as the rest.
        self.api = new_client_from_config(str(site.cluster.kubeconfig))
        self.pods = pods

    def answer(self, pod: str, key: str) -> int:
        """The status of the pod.
        The key goes under its second header: the first is for the API server."""
        path = f"/api/v1/namespaces/default/pods/{pod}:{PORT}/proxy/v1/models"
        return int(
            self.api.call_api("GET", self.api.configuration.host + path, {"X-API-Key": key}).status
        )

    def seconds_until(self, key: str, status: int, patience: float = 90.0) -> float:
        """From now until every pod has answered with this status;
        afterwards none may answer with another."""
        began = time.monotonic()
        for pod in self.pods:
            while (seen := self.answer(pod, key)) != status:
                assert time.monotonic() - began < patience, (
                    f"pod {pod}: still {seen} after {patience} s"
                )
                time.sleep(0.01)
        seconds = time.monotonic() - began
        assert {self.answer(pod, key) for pod in self.pods} == {status}
        return seconds


@pytest.fixture(scope="module")
def doors(site: Site, bot: Front) -> Iterator[Doors]:
    scale(site, bot, 2)
    yield Doors(site, [pod["metadata"]["name"] for pod in site.pods(bot.name)])
    scale(site, bot, 1)


def scale(site: Site, bot: Front, replicas: int) -> None:
    site.cluster.kubectl("scale", "llmd", bot.name, f"--replicas={replicas}")
    bot.until(
        lambda: bot.is_ready() and len(site.pods(bot.name)) == replicas, f"{replicas} pods", 120
    )


@pytest.fixture
def team(site: Site, doors: Doors) -> Iterator[str]:
    """A key that works."""
    site.cluster.kubectl("apply", "-f", "-", stdin=key_yaml("second-team"))
    began = time.monotonic()
    site.cluster.kubectl("wait", "llmkey/second-team", "--for=condition=Ready", "--timeout=60s")
    key = site.key("second-team")
    doors.seconds_until(key, 200)
    note("key issued → 200", f"{time.monotonic() - began:.2f} s")
    yield key
    site.cluster.kubectl("delete", "llmkey", "second-team", "--ignore-not-found")


def test_a_suspended_key_is_refused_and_comes_back(site: Site, doors: Doors, team: str) -> None:
    for suspended, status in ((True, 403), (False, 200)):
        site.cluster.kubectl("apply", "-f", "-", stdin=key_yaml("second-team", suspended=suspended))
        note(f"key suspended: {suspended} → {status}", f"{doors.seconds_until(team, status):.2f} s")


def test_a_deleted_secret_makes_the_old_key_void_and_a_new_one(
    site: Site, doors: Doors, team: str
) -> None:
    site.cluster.kubectl("delete", "secret", "second-team-llm-key")
    note("Secret deleted → old key refused", f"{doors.seconds_until(team, 401):.2f} s")
    doors.seconds_until(site.key("second-team"), 200)


def test_deleted_keys_are_refused_at_once(site: Site, bot: Front, doors: Doors) -> None:
    names = [f"leaver-{number}" for number in range(DELETIONS)]
    site.cluster.kubectl("apply", "-f", "-", stdin="---\n".join(key_yaml(name) for name in names))
    bot.until(lambda: ready_keys(site, "leaver-") == DELETIONS, "fifty keys", 120)
    keys = {name: site.key(name) for name in names}
    taken = []
    for key in keys.values():
        doors.seconds_until(key, 200)
    api = CustomObjectsApi(doors.api)
    for name, key in keys.items():
        # One by one: a kubelet syncs a pod again only after its next look at the containers,
        # which is once a second.
        time.sleep(random.uniform(1, 2))
        began = time.monotonic()
        api.delete_namespaced_custom_object(
            "llm-operator.dev", "v1alpha1", "default", "apikeys", name
        )
        doors.seconds_until(key, 401)
        taken.append(time.monotonic() - began)
    taken.sort()
    median = taken[DELETIONS // 2]
    worst = taken[-1]
    note(
        f"key deleted → 401 from both pods, {DELETIONS} deletions",
        f"median {median:.2f} s, slowest {worst:.2f} s",
    )
    assert worst <= PATIENCE_SECONDS


def ready_keys(site: Site, prefix: str) -> int:
    keys = site.get("llmkeys")["items"]
    ready = [
        key for key in keys
        if key["metadata"]["name"].startswith(prefix)
        and any(c["type"] == "Ready" and c["status"] == "True" for c in key.get("status", {}).get("conditions", []))
    ]  # fmt: skip
    return len(ready)
