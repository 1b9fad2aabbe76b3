"""The API server accepts the CRDs, accepts every golden object,
and answers a wrong YAML with what to write instead."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.operator_fixtures import Api, Refusal
from llm_operator.crds import API_VERSION

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
GOLDEN = Path(__file__).resolve().parents[1] / "unit" / "operator" / "golden"
PATH = "/apis/llm-operator.dev/v1alpha1/namespaces/default/"
GOOD: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": "LLMDeployment",
    "metadata": {"name": "bot"},
    "spec": {"model": {"mlflow": {"name": "bot", "alias": "champion"}}},
}
KEY: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": "ApiKey",
    "metadata": {"name": "team"},
    "spec": {"deployments": ["bot"]},
}


def edited(manifest: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one place set, or with None removed."""
    made = copy.deepcopy(manifest)
    *parents, last = path.split(".")
    place = made
    for parent in parents:
        place = place.setdefault(parent, {})
    place.pop(last, None) if value is None else place.update({last: value})
    return made


def create(api: Api, manifest: dict[str, Any]) -> dict[str, Any]:
    plural = {"LLMDeployment": "llmdeployments", "ApiKey": "apikeys"}[manifest["kind"]]
    return api.call("POST", PATH + plural, manifest, dryRun="All", fieldValidation="Strict")


def test_the_smallest_resources_are_accepted_and_only_scalars_are_defaulted(api: Api) -> None:
    spec = create(api, GOOD)["spec"]
    assert spec["replicas"] == 1
    assert set(spec) == {"model", "replicas", "suspend", "task"}
    assert create(api, KEY)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("spec.model.mlflow.version", 3, "write exactly one of alias"),
        ("spec.model.mlflow.alias", None, "write exactly one of alias"),
        ("spec.model.mlflow.alias", "7", "write `version` for a number"),
        ("spec.model.mlflow.alias", "@champion", "write the alias without @"),
        ("spec.model.mlflow.alias", "latest", "reserved by MLflow"),
        ("spec.model.mlflow.name", None, "spec.model.mlflow.name: Required value"),
        ("spec.model.mlflow.updatePolicy", "Sometimes", "Unsupported value"),
        ("spec.model.mlflow", {"name": "m", "version": 3, "updatePolicy": "Manual"}, "goes with alias or stage"),
        ("spec.adapters", [{"name": "a", "mlflow": {"name": "m", "alias": "c", "updatePolicy": "Manual"}}], "unknown"),
        ("spec.model.mlflow.subPath", "/etc", "write a folder inside the artifacts"),
        ("spec.model", {}, "write exactly one of mlflow"),
        ("spec.model.uri", "pvc://weights", "write exactly one of mlflow"),
        *(("spec.model", {"uri": uri}, told) for uri, told in {
            "models:/bot/3": "of MLflow is written as model.mlflow",
            "http://host/model": "write hf://org/name@commit, pvc://claim/folder",
            "hf://org/name": "the 40 digits of a commit: branches and tags move",
            "hf://org/name@main": "the 40 digits of a commit",
            "pvc:///folder": "write pvc://claim/folder",
            "pvc://weights/../etc": "without `..`",
            "file://folder": "write file:///folder, an absolute path",
            "s3://bucket": "write the bucket and the folder in it",
            "s3://bucket/a b": "without `..`, spaces",
        }.items()),
        ("spec.model.credentialsSecretRef", {}, "credentialsSecretRef.name: Required value"),
        ("spec.modle", {}, 'unknown field "spec.modle"'),
        ("spec.adapters", [{"name": "a", "mlflow": {"name": "m", "alias": "c"}}, {"name": "a", "mlflow": {"name": "m",
          "alias": "d"}}], "Duplicate value"),
        ("spec.adapters", [{"name": "a", "mlflow": {"name": "m", "alias": "c", "version": 3}}], "write exactly one of"),
        ("spec.adapters", [{"name": "a", "mlflow": {"name": "m"}}], "write exactly one of alias"),
        ("spec.adapters", [{"name": "a:b", "mlflow": {"name": "m", "alias": "c"}}], "should match"),
        ("spec.adapters", [{"name": "a"}], "spec.adapters[0].mlflow: Required value"),
        ("spec.adapters", [{"name": f"a{n}", "mlflow": {"name": "m", "alias": "c"}} for n in range(9)],
         "must have at most 8 items"),
        ("spec.defaultAdapter", "legal", "defaultAdapter must be the name of one of adapters"),
        ("spec.engine.dtype", "fp16", 'supported values: "auto", "float32"'),
        ("spec.engine.maxModelLength", 0, "should be greater than or equal to 16"),
        ("spec.server.maxRequestBytes", "1 MB", "spec.server.maxRequestBytes"),
        ("spec.server.maxRequestBytes", "1k", "write a size of at least 1024 bytes, like 1Mi"),
        ("spec.engine.kvCacheMemory", "0", "write a size above zero, like 8Gi"),
        ("spec.engine.kvCacheMemory", 0, "write a size above zero"),
        ("spec.engine.kvCacheMemory", "-8Gi", "write a size above zero"),
        ("spec.engine.kvCacheMemory", "500m", "write a size above zero"),
        ("spec.modelCache", {"maxSize": "0"}, "write a size above zero"),
        *(("spec.engine.kvCacheMemory", size, told) for size, told in {
            "1e999999": "should match", "1e5000": "should match", "1E100": "should match", "1.5e-999": "should match",
            "1e99": "at most 1Pi", "2Pi": "at most 1Pi", 2**62: "at most 1Pi", "99999999999999999999999": "at most 1Pi",
        }.items()),
        ("spec.modelCache", {"emptyDir": {}, "maxSize": "1e100"}, "should match"),
        ("spec.modelCache", {"emptyDir": {"sizeLimit": "1e999999"}}, "should match"),
        ("spec.server.maxRequestBytes", "1e999999", "should match"),
        ("spec.server.maxRequestBytes", "2Gi", "at most 1Gi"),
        ("spec.resources", {"limits": {"memory": "1e999999"}}, "should match"),
        ("spec.resources", {"requests": {"cpu": "1.5"}, "limits": {"cpu": "1200m"}}, "request is greater than its"),
        ("spec.resources", {"requests": {"memory": "8Gi"}, "limits": {"memory": "8G"}}, "greater than its limit"),
        ("spec.resources", {"requests": {"cpu": 2}, "limits": {"cpu": 1}}, "greater than its limit"),
        ("spec.pod.fetchResources", {"requests": {"cpu": 2}, "limits": {"cpu": 1}}, "greater than its limit"),
        *(("spec.resources", resources, "GPUs, other extended resources and huge pages are written in limits") for
          resources in [
            {"requests": {"nvidia.com/gpu": 1}}, {"requests": {"nvidia.com/gpu": 1}, "limits": {"nvidia.com/gpu": 2}},
            {"requests": {"hugepages-2Mi": "64Mi"}, "limits": {"memory": "1Gi"}},
        ]),
        ("spec.resources", {"limits": {"gpu": 1}}, "or a name like nvidia.com/gpu"),
        ("spec.resources", {"limits": {"nvidia.com/gpu": "0.5"}}, "write a whole number of GPUs"),
        ("spec.resources", {"requests": {"memory": "-1Gi"}}, "write no negative quantity"),
        ("spec.model.mlflow", {"name": "m", "version": 0}, "write a whole number above zero"),
        ("spec.model.mlflow", {"name": "m", "version": -3}, "write a whole number above zero"),
        ("spec.pod.topologySpreadConstraints", [{"maxSkew": n, "topologyKey": "zone",
          "whenUnsatisfiable": "ScheduleAnyway"} for n in (1, 2)], "Duplicate value"),
        ("spec.pod.topologySpreadConstraints", [{"maxSkew": 2**31, "topologyKey": "zone",
          "whenUnsatisfiable": "ScheduleAnyway"}], "maxSkew"),
        ("spec.pod.tolerations", [{"tolerationSeconds": 2**60}], "tolerationSeconds"),
        ("spec.pod.env", [{"name": "MODEL_PATH", "value": "/x"}], "spec.model.uri for the last"),
        *(("spec.pod.env", [{"name": name, "value": "x"}], told) for name, told in {
            "model_path": "a setting of the runtime that the operator writes",
            "MODEL_NAME": "a setting of the runtime that the operator writes",
            "Authentication": "a setting of the runtime that the operator writes",
            "SERVER__FILTERS__PII": "a setting of the runtime that the operator writes",
            "API_KEY": "a setting of the runtime that the operator writes",
            "PYTHONPATH": "changes which code a process runs",
            "LD_PRELOAD": "changes which code a process runs",
            "INTEL_LIBITTNOTIFY64": "changes which code a process runs",
            "NVIDIA_VISIBLE_DEVICES": "or which devices it gets",
            "NVIDIA_MOFED": "or which devices it gets",
        }.items()),
        ("spec.pod.env", [{"name": "ENGINE__STEP_TRACE", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}],
         "takes no value from a Secret"),
        ("spec.pod.env", [{"name": "SERVER__LOG_FILE", "value": "/tmp/$(HF_TOKEN)"}], "which may stand for one"),
        ("spec.pod.annotations", {"container.apparmor.security.beta.kubernetes.io/runtime": "unconfined"},
         "default AppArmor and seccomp profiles"),
        ("spec.pod.annotations", {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"},
         "default AppArmor and seccomp profiles"),
        ("spec.pod.labels", {"a/b/c": "x"}, "write keys like team"),
        ("spec.pod.labels", {"team": "a b"}, "should match"),
        ("spec.pod.annotations", {"a" * 64: "x"}, "write keys like team"),
        ("spec.pod.nodeSelector", {"-a": "x"}, "write keys like team"),
        ("spec.service.annotations", {"not a key": "x"}, "write keys like team"),
        ("spec.rollout.gates", [{"prometheusQuery": {"query": "up", "max": 1e300}}], "max"),
        ("spec.autoscaling", {"minReplicas": 3, "maxReplicas": 2, "metrics": [{"type": "CPU", "target": 80}]},
         "minReplicas must not be greater than maxReplicas"),
        ("spec.autoscaling", {"maxReplicas": 2, "metrics": [{"type": "GPU", "target": 80}]}, '"QueueDepth"'),
        ("spec.autoscaling", {"maxReplicas": 2, "metrics": [{"type": "CacheUsage", "target": 120}]}, "at most 100"),
        ("spec.rollout.strategy", "Later", 'supported values: "Auto", "Rolling", "BlueGreen", "Canary", "Recreate"'),
        ("spec.rollout.canary", {"steps": [{"weight": 50}, {"weight": 20}]}, "weights must increase"),
        ("spec.rollout.gates", [{"maxErrorRate": 0.1, "maxInterTokenP95Ratio": 2}], "write exactly one of smoke"),
        ("spec.adapters", [{"name": "a", "mlflow": {"name": "a", "version": 1}, "gates": [{}]}], "one of smokePrompts"),
        ("spec.rollout.shadow", {"percent": 101}, "less than or equal to 100"),
        ("spec.rollout.shadow", {"maxInFlight": 0}, "greater than or equal to 1"),
        ("spec.rollout", {"strategy": "Rolling", "shadow": {}}, "write strategy BlueGreen, Canary or Auto"),
        ("spec.rollout", {"gates": [{"shadowAgreement": {"minExact": 1}}]}, "write rollout.shadow with a percent"),
        (
            "spec.rollout",
            {"shadow": {"percent": 0}, "gates": [{"shadowAgreement": {"minExact": 1}}]},
            "write rollout.shadow with a percent",
        ),
        ("spec.rollout", {"shadow": {}, "gates": [{"shadowAgreement": {}}]}, "write exactly one of minExact"),
        ("spec.modelCache", {"persistentVolumeClaim": {"claimName": "a"}, "emptyDir": {}}, "write exactly one of"),
        ("spec.modelCache", {"hostPath": {"path": "/"}}, "hostPath"),
        ("spec.pod.labels", {"app.kubernetes.io/name": "x"}, "use a key of your own"),
        ("spec.pod.env", [{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}],
         "either value or valueFrom"),
        ("spec.pod.env", [{"name": "DATABASE_URL", "value": "sqlite:///x"}], "write spec.database"),
        ("spec.pod.serviceAccountName", "admin", "unknown field"),
        ("spec.image", "", "write an image as registry.example.com/team/image:tag"),
        ("spec.image", "https://example.com/llm-runtime:1", "write an image as"),
        ("spec.image", "example.com/LLM-Runtime:1", "write an image as"),
        ("spec.image", "example.com/llm-runtime:1 ", "write an image as"),
        ("spec.image", f"example.com/llm-runtime@sha256:{'a' * 63}", "write an image as"),
        ("spec.image", {"repository": "llm-runtime"}, 'unknown field "spec.image.repository"'),
        ("spec.pod.imagePullPolicy", "Sometimes", 'supported values: "Always", "IfNotPresent", "Never"'),
        ("spec.pod.fetchResources", {"limits": {"memory": "much"}}, "spec.pod.fetchResources.limits.memory"),
        ("spec.access", {"defaultTier": "gold"}, "defaultTier must be the name of one of tiers"),
        ("spec.access", {"defaultTier": "gold", "tiers": [{"name": "free"}]}, "defaultTier must be the name of one"),
        ("spec.access.tiers", [{"name": "free"}, {"name": "free"}], "Duplicate value"),
        ("spec.access.tiers", [{"name": "free", "requestsPerMinute": 0}], "should be greater than or equal to 1"),
        ("spec.access.tiers", [{"name": "a/b"}], "should match"),
        ("spec.access.tiers", [{"name": "free", "dollarsPerDay": 1}], "dollarsPerDay"),
        ("spec.server.filters.pii", "Hide", 'supported values: "Disabled", "Mask", "Reject"'),
        ("spec.server.filters.patterns", [{"name": "A B", "regex": "x"}], "should match"),
        ("spec.server.sessions.ttlSeconds", 0, "should be greater than or equal to 1"),
        ("spec.database.secretRef", {"name": "db"}, "spec.database.secretRef.key: Required value"),
        ("spec.database.url", "postgresql://user:password@host/db", "unknown field"),
        ("spec.monitoring.serviceMonitor.interval", "often", "should match"),
        ("metadata.name", "a" * 41, "at most 40 characters"),
        ("metadata.name", "a.b", "no dots"),
    ],
)  # fmt: skip
def test_a_wrong_llmdeployment_is_told_what_to_write(
    api: Api, path: str, value: Any, told: str
) -> None:
    with pytest.raises(Refusal) as refused:
        create(api, edited(GOOD, path, value))
    assert told in refused.value.message


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("spec.selector", {"matchLabels": {"a": "b"}}, "write exactly one of deployments"),
        ("spec.deployments", None, "write exactly one of deployments"),
        ("spec.deployments", ["a", "a"], "Duplicate value"),
        ("spec.expiresAt", "tomorrow", "must be of type date-time"),
        *(
            ("spec.expiresAt", moment, "should match")
            for moment in (
                "0000-01-01T00:00:00Z",
                "0999-01-01T00:00:00Z",
                "2027-01-01T00:00:00+25:00",
                "2027-01-01T00:00:00+00:99",
                "2016-12-31T23:59:60Z",
                "9999-12-31T23:59:59-23:59",
                "2027-01-01T00:00:00.1234567890Z",
            )
        ),
        ("spec.limits", {"maxConcurrent": 0}, "should be greater than or equal to 1"),
        ("spec.adapters", ["legal", "legal"], "Duplicate value"),
    ],
)
def test_a_wrong_apikey_is_told_what_to_write(api: Api, path: str, value: Any, told: str) -> None:
    with pytest.raises(Refusal) as refused:
        create(api, edited(KEY, path, value))
    assert told in refused.value.message


def test_tiers_are_accepted_and_get_scalar_defaults_only(api: Api) -> None:
    tiers = [{"name": "free", "requestsPerMinute": 10}, {"name": "gold", "tokensPerMonth": 10**12}]
    access = create(api, edited(GOOD, "spec.access", {"defaultTier": "gold", "tiers": tiers}))[
        "spec"
    ]["access"]
    assert access["tiers"][0] == {
        "name": "free",
        "requestsPerMinute": 10,
        "maxConcurrent": 5,
        "priority": 0,
    }
    assert create(api, edited(GOOD, "spec.access", {"authentication": "Required"}))["spec"][
        "access"
    ] == {
        "authentication": "Required",
        "defaultTier": "standard",
    }
    key = edited(edited(KEY, "spec.tier", "gold"), "spec.limits", {"tokensPerMonth": 5})
    assert create(api, key)["spec"]["limits"] == {"tokensPerMonth": 5}


def test_a_default_adapter_is_one_of_the_adapters(api: Api) -> None:
    adapters = [
        {"name": name, "mlflow": {"name": name, "alias": "c"}} for name in ("legal", "french")
    ]
    both = edited(edited(GOOD, "spec.adapters", adapters), "spec.defaultAdapter", "french")
    assert create(api, both)["spec"]["defaultAdapter"] == "french"
    with pytest.raises(Refusal, match="must be the name of one of adapters"):
        create(api, edited(both, "spec.defaultAdapter", "german"))


@pytest.mark.parametrize(
    "uri",
    [
        f"hf://org/name.v2@{'0123456789' * 4}",
        "pvc://weights",
        "pvc://weights.team/bot/3",
        "file:///models/bot",
        "s3://bucket/bot/3/",
        "gs://bucket/bot",
        "abfss://container@account.dfs.core.windows.net/bot",
    ],
)
def test_a_model_without_a_registry_is_accepted(api: Api, uri: str) -> None:
    assert create(api, edited(GOOD, "spec.model", {"uri": uri}))["spec"]["model"] == {"uri": uri}


@pytest.mark.parametrize(
    "image",
    [
        "llm-runtime",
        "llm-runtime:1.4-cpu",
        "localhost:5000/llm-runtime",
        "registry.example.com/team_a/llm--runtime:v1",
        f"registry.example.com:5000/a/b/c:1@sha256:{'0123456789abcdef' * 4}",
    ],
)
def test_an_image_is_written_as_in_a_pod(api: Api, image: str) -> None:
    assert create(api, edited(GOOD, "spec.image", image))["spec"]["image"] == image


@pytest.mark.parametrize(
    "resources",
    [
        {
            "requests": {"cpu": "500m", "memory": "2Gi"},
            "limits": {"cpu": "0.5", "memory": "2048Mi"},
        },
        {"requests": {"cpu": 4}, "limits": {"memory": "24Gi", "nvidia.com/gpu": 1}},
        {"requests": {"nvidia.com/gpu": "1"}, "limits": {"nvidia.com/gpu": 1}},
        {"requests": {"hugepages-2Mi": "64Mi", "cpu": 1}, "limits": {"hugepages-2Mi": "64Mi"}},
        {
            "requests": {"memory": "1e9"},
            "limits": {"nvidia.com/mig-1g.5gb": "1", "ephemeral-storage": "1.5Gi"},
        },
        {"limits": {f"example.com/device-{n}": n for n in range(16)}},
    ],
)
def test_resources_that_a_pod_may_have_are_accepted(api: Api, resources: dict[str, Any]) -> None:
    assert create(api, edited(GOOD, "spec.resources", resources))["spec"]["resources"] == resources


def test_a_version_may_be_written_with_and_without_quotes(api: Api) -> None:
    for version in (3, "3"):
        create(
            api,
            edited(
                edited(GOOD, "spec.model.mlflow.alias", None), "spec.model.mlflow.version", version
            ),
        )


@pytest.mark.parametrize(
    "case", sorted(folder.name for folder in GOLDEN.iterdir()) if GOLDEN.exists() else []
)
def test_golden_objects_are_what_kubernetes_accepts(api: Api, case: str) -> None:
    for manifest in yaml.safe_load((GOLDEN / case / "out.yaml").read_text())["objects"]:
        if manifest["kind"] not in ("ServiceMonitor", "HTTPRoute"):
            api.apply(manifest, dryRun="All", fieldValidation="Strict")
