"""The operator's own configuration: one YAML file,
checked at the start, connections read again when it changes."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel


class SettingsError(Exception):
    """The configuration can't be used; the message names the file and the field."""


class _Section(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )


ALL_NAMESPACES = "*"


class NamespaceSelector(_Section):
    """Chooses namespaces by their labels."""

    match_labels: Annotated[dict[str, str], Field(min_length=1)]
    """Labels that a namespace must have, with exactly these values."""


class ConnectionSettings(_Section):
    """An MLflow server that LLMDeployments name by its key."""

    tracking_uri: Annotated[str, Field(pattern=r"^https?://")]
    """Where the operator and the pods reach the server."""
    workspace: str = ""
    """MLflow workspace; empty: the server's default one."""
    ca_file: Path | None = None
    """Certificate authority of the server, PEM; a file that is not there counts as none."""
    namespaces: tuple[str, ...] | None = None
    """Namespaces whose LLMDeployments may use it; `*` means all.
    Absent, and without a selector: all."""
    namespace_selector: NamespaceSelector | None = None
    """Namespaces that may use it beside those of the list."""
    credentials_folder: Path | None = None
    """Folder of a mounted Secret: files username and password, or token, and webhookSecret. They
    are read at every use, because they may rotate."""
    pod_credentials_folder: Path | None = None
    """The same files for the pods, of an account that may only read;
    absent: they are given the operator's account."""
    artifact_hosts: tuple[Annotated[str, Field(pattern=r"^[^/\s,]+$")], ...] = ()
    """Other hosts, as `host` or `host:port`,
    to which the pods may send the credentials where a version lies there."""
    write_verdicts: bool = True
    """Tell the registry by tags on the model version how each roll-out ended;
    the user needs the right to edit it."""

    @property
    def open_to_all(self) -> bool:
        """Whether nothing says who may use it."""
        return self.namespaces is None and self.namespace_selector is None

    def permits(self, namespace: str, labels: Mapping[str, str] | None = None) -> bool:
        """Whether LLMDeployments of this namespace may use it. `labels`: the namespace's own."""
        if self.open_to_all or {namespace, ALL_NAMESPACES} & set(self.namespaces or ()):
            return True
        selector = self.namespace_selector
        return selector is not None and selector.match_labels.items() <= (labels or {}).items()


class LeaseSettings(_Section):
    """Which of several operators works. Durations as in client-go's leader election."""

    name: str = "llm-operator"
    """The Lease's name."""
    namespace: str = "llm-operator"
    """Namespace of the Lease: the operator's own."""
    duration_seconds: Annotated[float, Field(gt=0)] = 15
    """A leader that was not seen to renew for so long is replaced."""
    renew_deadline_seconds: Annotated[float, Field(gt=0)] = 10
    """A leader that could not renew for so long ends."""
    retry_seconds: Annotated[float, Field(gt=0)] = 2
    """How often the leader renews and the others look."""

    @property
    def installation(self) -> str:
        """What all replicas of one installation share, and no other has."""
        return f"{self.namespace}/{self.name}"


class PrometheusSettings(_Section):
    """The servers that roll-out gates may ask."""

    url: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = ""
    """Asked by gates that name no server, as `http://prometheus.monitoring:9090`; empty: none."""
    allowed: tuple[Annotated[str, Field(pattern=r"^https?://\S+$")], ...] = ()
    """Others that a gate may name, each written as here;
    no gate makes the operator ask any other address."""
    bound_to_namespace: bool = False
    """The servers bind each query to the namespace in its parameter `namespace`, as
    prom-label-proxy does. A gate's figure is told only then;
    otherwise only whether it is above the threshold."""


class EvaluationSettings(_Section):
    """How gates of kind evaluation are judged: by Jobs in the operator's own namespace."""

    pod_template: dict[str, Any] = Field(default_factory=dict)
    """Template of their pods, as a Job has it: with the operator's image and configuration, and one
    container whose arguments are completed. The chart writes it; empty: no evaluation is made."""
    judges: tuple[Annotated[str, Field(pattern=r"^https?://\S+$")], ...] = ()
    """Addresses of judge models that a gate may name, each written as there."""


class MetricsApiSettings(_Section):
    """custom.metrics.k8s.io and external.metrics.k8s.io for autoscalers (docs/autoscaling.md)."""

    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """HTTPS for the API server; 0: neither is served."""
    service: str = "llm-operator-metrics-api"
    """The Service before that port, in the operator's own namespace. The Secret with the
    certificate authority has its name, too."""
    service_port: Annotated[int, Field(ge=1, le=65535)] = 8443
    """Port of that Service."""
    cluster_role: str = "llm-operator-metrics-api"
    """The ClusterRole with the rights for it. What the operator makes goes when it goes."""


_Quantity = Annotated[
    str,
    BeforeValidator(str),
    Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+|m|k|[MGTPE]|[KMGTPE]i)?$"),
]


class ContainerResources(_Section):
    """Compute resources of a container, as Kubernetes writes them."""

    requests: dict[str, _Quantity] | None = None
    """At least; by default 100m of CPU and 256Mi:
    fetching takes 136 MiB at most, whatever the model's size."""
    limits: dict[str, _Quantity] | None = None
    """At most: by default 512Mi and no limit of CPU, which would only make the download slower."""

    def manifest(self) -> dict[str, dict[str, str]]:
        """In the form of a container's field, without empty parts."""
        return {name: value for name, value in self.model_dump().items() if value}


class Choice(_Section):
    """Which names may be written. Patterns with * and ?, as a shell's."""

    allowed: tuple[str, ...] = ()
    """What matches one of these may be written, whatever is refused."""
    refused: tuple[str, ...] = ()
    """What matches one of these may not."""

    def permits(self, name: str) -> bool:
        """Whether LLMDeployments may write it."""
        return any(fnmatchcase(name, each) for each in self.allowed) or not any(
            fnmatchcase(name, each) for each in self.refused
        )


class PodPolicy(_Section):
    """What new pods may be asked for, whoever writes their LLMDeployment."""

    annotations: Choice = Choice(
        allowed=(
            "cluster-autoscaler.kubernetes.io/safe-to-evict",
            "controller.kubernetes.io/pod-deletion-cost",
            "kubectl.kubernetes.io/*",
            "sidecar.istio.io/inject",
        ),
        refused=(
            "*kubernetes.io/*", "*k8s.io/*", "*.cncf.io/*", "io.kubernetes.*", "io.katacontainers.*", "io.containerd.*",
            "*cri-o.io/*", "*crio.io", "*crio.io/*", "dev.gvisor.*", "run.oci.*", "*nri.io/*", "devices.gke.io/*",
            "*istio.io/*", "config.linkerd.io/*", "consul.hashicorp.com/*", "vault.hashicorp.com/*",
            "dapr.io/sidecar-image", "dapr.io/volume-mounts*", "admission.datadoghq.com/*custom-image",
            "iam.amazonaws.com/*", "vpc.amazonaws.com/*", "*workload.identity/*", "cni.projectcalico.org/*",
            "*multus-cni.io/*", "*ovn.org/*",
        ),
    )  # fmt: skip
    """Keys of spec.pod.annotations."""
    labels: Choice = Choice(
        allowed=("sidecar.istio.io/inject", "kueue.x-k8s.io/*"),
        refused=(
            "*kubernetes.io/*",
            "*k8s.io/*",
            "*istio.io/*",
            "*workload.identity/*",
            "aadpodidbinding",
        ),
    )
    """Keys of spec.pod.labels."""
    tolerations: Choice = Choice(
        refused=("", "node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
    )
    """Keys of taints; the empty one tolerates every taint."""
    priority_classes: Choice = Choice(refused=("system-*",))
    """spec.pod.priorityClassName."""
    runtime_classes: Choice = Choice()
    """spec.pod.runtimeClassName."""
    anti_affinity_namespaces: Choice = Choice(refused=("*",))
    """Other namespaces in required terms of spec.pod.affinity.podAntiAffinity: their pods then come
    to no node, or zone, of these pods."""
    images: Choice = Choice()
    """spec.image: its code sees the credentials with which the pods fetch their model."""
    app_armor_profile: Literal["", "RuntimeDefault"] = ""
    """RuntimeDefault is written into new pods: nodes without AppArmor then refuse them. Empty: such
    nodes take them, and the others apply their default profile all the same."""


class Settings(_Section):
    """Everything that the platform team decides once for all LLMDeployments."""

    runtime_image: str
    """Image of the pods that serve, where an LLMDeployment names none: new revisions take it,
    running ones keep theirs."""
    fetch_resources: ContainerResources | None = ContainerResources(
        requests={"cpu": "100m", "memory": "256Mi"}, limits={"memory": "512Mi"}
    )
    """Resources of the init container that fetches the model: new revisions take them, running ones
    keep theirs."""
    runtime_pull_secrets: tuple[str, ...] = ()
    """Secrets with credentials for the runtime image's registry, in each namespace with
    LLMDeployments: of the pods whose LLMDeployment names no spec.pod.imagePullSecrets."""
    pod_policy: PodPolicy = PodPolicy()
    """What LLMDeployments may ask for; pods that run keep what they have."""
    watch_namespaces: tuple[str, ...] = ()
    """Empty: the whole cluster."""
    workers: Annotated[int, Field(ge=1, le=64)] = 8
    """Objects that are reconciled at the same time."""
    poll_seconds: Annotated[float, Field(gt=0)] = 30
    """How often each MLflow server is asked for moved aliases."""
    resync_seconds: Annotated[float, Field(gt=0)] = 600
    """How often everything is looked at, whether or not something happened (± 20 %)."""
    verify_seconds: Annotated[float, Field(gt=0)] = 60
    """How often key Secrets are looked at: they are not watched,
    so that the operator can't list Secrets."""
    settle_seconds: Annotated[float, Field(ge=0)] = 5
    """How long old pods stay after the Service has turned to the new ones."""
    log_format: Literal["json", "console"] = "json"
    """How to log."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """From which level on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Probes and metrics."""
    webhook_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """MLflow's webhooks (docs/promotion.md); 0: none are received."""
    metrics_api: MetricsApiSettings = MetricsApiSettings()
    """For HorizontalPodAutoscalers."""
    prometheus: PrometheusSettings = PrometheusSettings()
    """For gates of kind prometheusQuery."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """For gates of kind evaluation."""
    lease: LeaseSettings = LeaseSettings()
    """Leader election."""
    connections: dict[str, ConnectionSettings] = Field(default_factory=dict)
    """MLflow servers by name; an LLMDeployment that names none means `default`.
    Read again when the file changes."""

    def warnings(self) -> list[str]:
        """What the platform team may not have meant, one sentence each."""
        lines = []
        for name, connection in sorted(self.connections.items()):
            if connection.credentials_folder and connection.open_to_all:
                lines.append(
                    f"connection {name!r} has credentials, and every namespace may use it: write its namespaces or "
                    "namespaceSelector"
                )
            if connection.credentials_folder and not connection.pod_credentials_folder:
                lines.append(
                    f"connection {name!r} gives the operator's own account to the pods, and to all who may read "
                    "Secrets beside them: write podCredentialsFolder (in the chart podCredentialsSecret) with an "
                    "account that may only read"
                )
        return lines


def load(path: Path) -> Settings:
    """Read and check the configuration file. Raises SettingsError."""
    try:
        content = yaml.safe_load(path.read_text()) or {}
        return Settings.model_validate(content)
    except OSError as error:
        raise SettingsError(
            f"{path}: {error.strerror}: write a configuration file and name it with --config"
        ) from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(path, fault) for fault in error.errors())) from error


def _explain(path: Path, fault: object) -> str:
    assert isinstance(fault, dict)
    where = ".".join(str(part) for part in fault["loc"]) or "the file"
    known = ", ".join(sorted(to_camel(name) for name in Settings.model_fields))
    hint = (
        f"; the keys at the top are {known}"
        if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1
        else ""
    )
    return f"{path}: {where}: {fault['msg']}{hint}"


class Connections:
    """The connections of the configuration file, as it is now."""

    def __init__(self, path: Path, settings: Settings, warn: Callable[[str], None]) -> None:
        self._path = path
        self._known = settings.connections
        self._warn = warn
        self._stamp = _stamp(path)

    def current(self) -> dict[str, ConnectionSettings]:
        """Read the file again when it has changed;
        a broken file leaves the last good connections in force."""
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._known = load(self._path).connections
            except SettingsError as error:
                self._warn(f"connections are kept as they were: {error}")
        return self._known


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
