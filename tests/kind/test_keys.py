"""Keys on real pods: mounted Secrets are the kubelet's, and it takes its time unless it is told."""

import random
import time
from collections.abc import Iterator

import httpx
import pytest
from kubernetes.client import CustomObjectsApi
from kubernetes.config import new_client_from_config

from kind.figures import note
from kind.site import Front, Site

pytestmark = pytest.mark.kind

DELETIONS = 50
PATIENCE_SECONDS = 5.0
"""By itself a kubelet looks at a Secret once a minute: later than this, it has not been told. The goal is 1 s."""


def key_yaml(name: str, **fields: object) -> str:
    more = "".join(f", {key}: {str(value).lower()}" for key, value in fields.items())
    return (
        "apiVersion: llm-operator.dev/v1alpha1\nkind: ApiKey\n"
        f"metadata: {{name: {name}}}\nspec: {{owner: {name}@example.com, deployments: [support-bot]{more}}}\n"
    )


def seconds_until(url: str, key: str, status: int, patience: float = 90.0) -> float:
    """From now until the first answer with this status; afterwards no other may come."""
    began = time.monotonic()
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(timeout=10, trust_env=False) as client:
        while (seen := client.get(f"{url}/v1/models", headers=headers).status_code) != status:
            assert time.monotonic() - began < patience, f"still {seen} after {patience} s"
            time.sleep(0.01)
    return time.monotonic() - began


@pytest.fixture
def team(site: Site, bot: Front) -> Iterator[str]:
    """A key that works."""
    site.cluster.kubectl("apply", "-f", "-", stdin=key_yaml("second-team"))
    began = time.monotonic()
    site.cluster.kubectl("wait", "llmkey/second-team", "--for=condition=Ready", "--timeout=60s")
    key = site.key("second-team")
    seconds_until(bot.url, key, 200)
    note("key issued → 200", f"{time.monotonic() - began:.2f} s")
    yield key
    site.cluster.kubectl("delete", "llmkey", "second-team", "--ignore-not-found")


def test_a_suspended_key_is_refused_and_comes_back(site: Site, bot: Front, team: str) -> None:
    for suspended, status in ((True, 403), (False, 200)):
        site.cluster.kubectl("apply", "-f", "-", stdin=key_yaml("second-team", suspended=suspended))
        note(f"key suspended: {suspended} → {status}", f"{seconds_until(bot.url, team, status):.2f} s")


def test_a_deleted_secret_makes_the_old_key_void_and_a_new_one(site: Site, bot: Front, team: str) -> None:
    site.cluster.kubectl("delete", "secret", "second-team-llm-key")
    note("Secret deleted → old key refused", f"{seconds_until(bot.url, team, 401):.2f} s")
    seconds_until(bot.url, site.key("second-team"), 200)


def test_deleted_keys_are_refused_at_once(site: Site, bot: Front) -> None:
    names = [f"leaver-{number}" for number in range(DELETIONS)]
    site.cluster.kubectl("apply", "-f", "-", stdin="---\n".join(key_yaml(name) for name in names))
    bot.until(lambda: ready_keys(site, "leaver-") == DELETIONS, "fifty keys", 120)
    keys = {name: site.key(name) for name in names}
    url, taken = bot.url, []
    for key in keys.values():
        seconds_until(url, key, 200)
    # Not by kubectl, whose own start takes as long as the rest.
    api = CustomObjectsApi(new_client_from_config(str(site.cluster.kubeconfig)))
    for name, key in keys.items():
        # One by one: a kubelet syncs a pod again only after its next look at the containers, which is once a second.
        time.sleep(random.uniform(1, 2))
        began = time.monotonic()
        api.delete_namespaced_custom_object("llm-operator.dev", "v1alpha1", "default", "apikeys", name)
        seconds_until(url, key, 401)
        taken.append(time.monotonic() - began)
    taken.sort()
    median, worst = taken[DELETIONS // 2], taken[-1]
    note(f"key deleted → 401, {DELETIONS} deletions", f"median {median:.2f} s, slowest {worst:.2f} s")
    assert worst <= PATIENCE_SECONDS


def ready_keys(site: Site, prefix: str) -> int:
    keys = site.get("llmkeys")["items"]
    ready = [
        key for key in keys
        if key["metadata"]["name"].startswith(prefix)
        and any(c["type"] == "Ready" and c["status"] == "True" for c in key.get("status", {}).get("conditions", []))
    ]  # fmt: skip
    return len(ready)
