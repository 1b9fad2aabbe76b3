"""The pod's free fields are a contract:
what the operator, the platform and the loader keep for themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llm_operator.crds.pod import EnvVar, env_refusal
from llm_operator.plans.objects.containers import STORE_VARIABLES
from llm_operator.reconcile import Pace, Retry, reconcile
from llm_operator.settings import Choice, PodPolicy
from llm_operator.state import Key
from llm_runtime.contract import ENV_FREE_SETTINGS, RuntimeConfig
from unit.operator.fakes import NAMESPACE, World

PACE = Pace(verify_seconds=60, settle_seconds=5)
KEY = Key("LLMDeployment", NAMESPACE, "bot")


async def look(world: World) -> None:
    for name in world.cluster.named("Deployment"):
        world.cluster.play(name)
    await reconcile(KEY, world.outside, PACE)


async def asked(world: World, **spec: Any) -> tuple[str, str]:
    """Reason and message of Stalled; no pod was made if there is one."""
    await world.deploy(**spec)
    await look(world)
    stalled = world.condition("Stalled")
    assert (stalled["status"] == "True") is not bool(world.cluster.named("Deployment"))
    return stalled["reason"], stalled["message"]


REACHING = (
    "seccomp-profile.kubernetes.cri-o.io/runtime", "devices.crio.io", "userns-mode.crio.io", "run.oci.handler",
    "dev.gvisor.spec.mount.x.source", "devices.nri.io/container.runtime", "devices.gke.io/container.runtime",
    "dapr.io/sidecar-image", "dapr.io/volume-mounts-rw", "admission.datadoghq.com/python-lib.custom-image",
    "v1.multus-cni.io/default-network", "k8s.ovn.org/pod-networks", "vpc.amazonaws.com/pod-eni",
)  # fmt: skip
"""Annotations that reach a pod's sandbox, devices, volumes, containers or networks."""


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        (
            "annotations",
            {"container.apparmor.security.beta.kubernetes.io/runtime": "unconfined"},
            "annotations",
        ),
        ("annotations", {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}, "annotations"),
        ("annotations", {"cdi.k8s.io/gpu": "nvidia.com/gpu=all"}, "annotations"),
        ("annotations", {"k8s.v1.cni.cncf.io/networks": "kube-system/host"}, "annotations"),
        ("annotations", {"io.kubernetes.cri-o.userns-mode": "x"}, "annotations"),
        ("annotations", {"sidecar.istio.io/userVolume": "[]"}, "annotations"),
        ("annotations", {"proxy.istio.io/config": "x"}, "annotations"),
        ("annotations", {"vault.hashicorp.com/agent-inject": "true"}, "annotations"),
        *(("annotations", {key: "x"}, "annotations") for key in REACHING),
        ("labels", {"aadpodidbinding": "theirs"}, "labels"),
        ("labels", {"azure.workload.identity/use": "true"}, "labels"),
        ("labels", {"istio.io/rev": "other"}, "labels"),
        ("priorityClassName", "system-node-critical", "priorityClasses"),
        ("tolerations", [{"operator": "Exists"}], "tolerations"),
        (
            "tolerations",
            [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}],
            "tolerations",
        ),
    ],
)
async def test_what_the_platform_keeps_to_itself(field: str, value: Any, named: str) -> None:
    reason, message = await asked(World(), pod={field: value})
    assert reason == "NotPermitted"
    assert f"podPolicy.{named}" in message


def apart(kind: str, *namespaces: str) -> dict[str, Any]:
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}
    return {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
        {**term, **({"namespaces": list(namespaces)} if namespaces else {})}
    ]}}}  # fmt: skip


async def test_no_pod_keeps_those_of_other_namespaces_off_its_node() -> None:
    reason, message = await asked(World(), pod=apart("podAntiAffinity", NAMESPACE, "kube-system"))
    assert reason == "NotPermitted"
    assert "kube-system is refused by the platform (podPolicy.antiAffinityNamespaces" in message
    for own in (
        apart("podAntiAffinity"),
        apart("podAntiAffinity", NAMESPACE),
        apart("podAffinity", "kube-system"),
    ):
        assert (await asked(World(), pod=own))[0] == "NoFault"


@pytest.mark.parametrize(
    "given",
    [
        {"value": "$(HF_TOKEN)"},
        {"value": "/tmp/$$(HF_TOKEN)"},
        {"valueFrom": {"secretKeyRef": {"name": "theirs", "key": "k"}}},
    ],
)
async def test_a_stored_setting_with_a_secrets_value_makes_no_pod(given: dict[str, Any]) -> None:
    env = [{"name": "HF_TOKEN", "value": "x"}, {"name": "SERVER__LOG_FILE", **given}]
    reason, message = await asked(World(), pod={"env": env})
    assert (reason, "SERVER__LOG_FILE" in message) == ("InvalidSpec", True)


async def test_no_address_of_a_model_takes_a_variables_value() -> None:
    """The kubelet writes the variable in the place of $(NAME),
    and the path stands in the report of a folder that is not there."""
    world = World()
    secret(world, "theirs")
    credentials = {"credentialsSecretRef": {"name": "theirs"}}
    await world.deploy(model={"uri": "pvc://claim/$(password)/$$(a)$b", **credentials})
    await look(world)
    (name,) = world.cluster.named("Deployment")
    pod = world.cluster.objects["Deployment", NAMESPACE, name]["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        (path,) = (each["value"] for each in container["env"] if each["name"] == "MODEL_PATH")
        assert path == "/mnt/claims/claim/$$(password)/$$$$(a)$$b"


async def test_what_users_of_gpus_write_is_taken() -> None:
    ordinary = {
        "annotations": {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
            "prometheus.io/scrape": "true",
            "sidecar.istio.io/inject": "false",
            "example.com/rolled": "today",
            "ad.datadoghq.com/runtime.checks": "{}",
            "instrumentation.opentelemetry.io/inject-sdk": "true",
            "linkerd.io/inject": "enabled",
            "team": "a",
        },
        "labels": {"team": "a", "example.com/cost": "1", "kueue.x-k8s.io/queue-name": "gpus"},
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 60},
            {"key": "dedicated", "value": "gpus", "effect": "NoSchedule"},
        ],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "env": [
            {"name": name, "value": "1"}
            for name in (
                "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NCCL_DEBUG", "PYTORCH_CUDA_ALLOC_CONF", "HF_HOME", "TZ",
                "OTEL_EXPORTER_OTLP_ENDPOINT", "AWS_REGION", "HTTPS_PROXY", "no_proxy", "LLM_ATTENTION",
                "TOKENIZERS_PARALLELISM", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_REQUIRE_CUDA", "ROCR_VISIBLE_DEVICES",
                "CUDA_HOME", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "SSL_CERT_FILE", *ENV_FREE_SETTINGS,
            )
        ],
    }  # fmt: skip
    assert (await asked(World(), pod=ordinary))[0] == "NoFault"


async def test_what_is_refused_is_told_once_and_costs_no_look_after_look() -> None:
    """Thousands of such objects are told on themselves, and keep no worker from the others."""
    world = World()
    await world.deploy(pod={"priorityClassName": "system-node-critical"})
    for _ in range(2):
        assert (await reconcile(KEY, world.outside, PACE)).after_seconds is None
    assert world.cluster.events().count("NotPermitted") == 1
    writes = len(world.cluster.writes)
    await reconcile(KEY, world.outside, PACE)
    assert len(world.cluster.writes) == writes


@pytest.mark.parametrize(
    "name",
    ["MODEL_NAME", "model_path", "Model__Path", "AUTHENTICATION", "API_KEY", "ADMIN_API_KEY", "SERVER__FILTERS__PII",
     "ENGINE__DEVICE", "DATABASE__URL", "SERVER__LAZY_LOAD", "MLFLOW_TRACKING_URI", "LLM_ARTIFACT_HOSTS",
     "ADAPTERS", "TIERS", "PYTHONPATH", "PYTHONSTARTUP",
     "LD_PRELOAD", "LD_LIBRARY_PATH", "PATH", "BASH_ENV", "GLIBC_TUNABLES", "CXX",
     "CUDA_INJECTION64_PATH", "NCCL_NET_PLUGIN", "NVIDIA_VISIBLE_DEVICES", "OPENSSL_CONF", "INTEL_LIBITTNOTIFY64",
     "INTEL_JIT_PROFILER64", "NVTX_INJECTION64_PATH", "TORCH_ADDR2LINE_BINARY", "NCCL_CONF_FILE", "NVIDIA_MOFED",
     "NVIDIA_IMEX_CHANNELS", "NVIDIA_MIG_CONFIG_DEVICES", "AMD_VISIBLE_DEVICES", "HABANA_VISIBLE_DEVICES"],
)  # fmt: skip
async def test_variables_that_a_stored_object_may_still_have_make_no_pod(name: str) -> None:
    reason, message = await asked(World(), pod={"env": [{"name": name, "value": "x"}]})
    assert (reason, name in message) == ("InvalidSpec", True)


def test_all_that_a_configuration_file_says_is_refused_but_what_has_no_field() -> None:
    for name in RuntimeConfig.model_fields:
        assert env_refusal(EnvVar(name=name.upper()))
        assert env_refusal(EnvVar(name=f"{name.upper()}__ANYTHING"))
    assert not [name for name in ENV_FREE_SETTINGS if env_refusal(EnvVar(name=name, value="1"))]


async def test_a_policy_that_came_later_touches_no_pod_that_runs() -> None:
    world = World()
    await world.deploy(pod={"priorityClassName": "mine"})
    await look(world)
    await look(world)
    strict = PodPolicy(priority_classes=Choice(allowed=("low",), refused=("*",)))
    world.outside = replace(world.outside, policy=strict)
    await look(world)
    assert world.condition("Ready")["status"] == "True"
    world.registry.aliases["bot"]["champion"] = "2"
    await look(world)
    assert world.condition("Stalled")["reason"] == "NotPermitted"
    assert "what runs is left as it is" in world.condition("Ready")["message"]
    assert world.condition("Available")["status"] == "True"
    assert len(world.cluster.named("Deployment")) == 1


async def test_the_platform_says_which_images_run_where_credentials_are() -> None:
    world = World()
    images = Choice(allowed=("registry.example.com/llm/*",), refused=("*",))
    world.outside = replace(world.outside, policy=PodPolicy(images=images))
    assert (await asked(world, image="elsewhere.example.com/mine:1"))[0] == "NotPermitted"
    assert (await asked(world, image="registry.example.com/llm/runtime:1"))[0] == "NoFault"


@pytest.mark.parametrize("profile", ["", "RuntimeDefault"])
async def test_the_profile_is_written_where_the_platform_says_so(profile: str) -> None:
    world = World()
    world.outside = replace(world.outside, policy=PodPolicy(app_armor_profile=profile))
    await world.deploy()
    await look(world)
    (name,) = world.cluster.named("Deployment")
    template = world.cluster.objects["Deployment", NAMESPACE, name]["spec"]["template"]
    assert template["spec"]["securityContext"].get("appArmorProfile", {}).get("type", "") == profile


def secret(world: World, name: str, **metadata: Any) -> None:
    made = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": NAMESPACE, **metadata},
    }
    world.cluster._store("person", ("Secret", NAMESPACE, name), {**made, "data": {}})


OWNER = {
    "apiVersion": "llm-operator.dev/v1alpha1",
    "kind": "ApiKey",
    "name": "k",
    "uid": "u",
    "controller": True,
}
NAMES: dict[str, Any] = {
    "env": lambda name: {
        "pod": {
            "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": "k"}}}]
        }
    },
    "credentials": lambda name: {
        "model": {"uri": "s3://a/b", "credentialsSecretRef": {"name": name}}
    },
    "database": lambda name: {"database": {"secretRef": {"name": name, "key": "k"}}},
    "redis": lambda name: {"database": {"redisSecretRef": {"name": name, "key": "k"}}},
}


@pytest.mark.parametrize("way", NAMES)
async def test_no_specification_reads_a_secret_that_the_operator_keeps(way: str) -> None:
    world = World()
    secret(world, "handed-out", ownerReferences=[OWNER])
    secret(world, "restored", labels={"app.kubernetes.io/managed-by": "llm-operator"})
    secret(world, "my-keys")
    for name in (
        "handed-out",
        "restored",
        "bot-registry",
        "bot-keys",
        "later-registry",
        "later-llm-key",
    ):
        await world.deploy(**NAMES[way](name))
        await look(world)
        assert world.condition("Stalled")["reason"] == "SecretReserved", name
        assert not world.cluster.named("Deployment")
    await world.deploy(**NAMES[way]("my-keys"))
    await look(world)
    assert world.cluster.named("Deployment")


async def test_beside_the_registrys_credentials_only_a_stores_variables_are_taken() -> None:
    world = World()
    model = {
        "mlflow": {"name": "bot", "alias": "champion"},
        "credentialsSecretRef": {"name": "store"},
    }
    await world.deploy(model=model)
    with pytest.raises(
        Retry, match=r"Secret store of spec.model.credentialsSecretRef is not there yet"
    ):
        await look(world)
    secret(world, "store")
    stored = world.cluster.objects["Secret", NAMESPACE, "store"]["data"]
    stored |= {
        "AWS_ACCESS_KEY_ID": "YQ==",
        "PYTHONPATH": "YQ==",
        "LLM_ARTIFACT_HOSTS": "YQ==",
        "HTTPS_PROXY": "YQ==",
    }
    await look(world)
    assert world.condition("Stalled")["reason"] == "InvalidSpec"
    assert "HTTPS_PROXY, LLM_ARTIFACT_HOSTS, PYTHONPATH" in world.condition("Stalled")["message"]
    assert not world.cluster.named("Deployment")
    for name in ("PYTHONPATH", "LLM_ARTIFACT_HOSTS", "HTTPS_PROXY"):
        del stored[name]
    await look(world)
    (name,) = world.cluster.named("Deployment")
    (fetch,) = world.cluster.objects["Deployment", NAMESPACE, name]["spec"]["template"]["spec"][
        "initContainers"
    ]
    assert "envFrom" not in fetch  # A Secret that changes later brings nothing else.
    taken = [
        each["name"]
        for each in fetch["env"]
        if each.get("valueFrom", {}).get("secretKeyRef", {}).get("name") == "store"
    ]
    assert taken == list(STORE_VARIABLES)
