"""spec.model and spec.adapters: what is served, and the gates of an adapter."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from llm_operator.crds.common import IntegerText, ObjectName
from llm_operator.crds.rollout import (
    EvaluationSpec,
    GateSpec,
    LoadProbe,
    ShadowAgreement,
    ShadowSpec,
    SmokePrompts,
)
from llm_operator.crds.schema import Section, described_by, one_of, rules
from llm_runtime.contract import AdapterConfig, EngineConfig, ModelConfig

MAX_ADAPTERS = EngineConfig().max_adapters // 2
"""Half of what an engine holds: each may be replaced while requests still run with its old
version."""

AdapterName = Annotated[
    str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
]
DEFAULT_ADAPTER_EXISTS = (
    (
        "!has(self.defaultAdapter) || (has(self.adapters) && self.adapters.exists(a, a.name =="
        " self.defaultAdapter))"
    ),
    "defaultAdapter must be the name of one of adapters",
)
ONE_REFERENCE = (
    "[has(self.alias), has(self.version), has(self.stage)].filter(x, x).size() == 1",
    (
        "write exactly one of alias (follows promotions), version (pinned) or stage (deprecated in"
        " MLflow)"
    ),
)

ONE_SOURCE = (
    "has(self.mlflow) != has(self.uri)",
    (
        "write exactly one of mlflow (a registered model, whose promotions are followed) and uri"
        " (files elsewhere)"
    ),
)
URI = (
    (
        "self.matches('^(hf|pvc|file|s3|gs|abfss)://')",
        (
            "write hf://org/name@commit, pvc://claim/folder, file:///folder, s3://…, gs://… or"
            " abfss://…; a registered model of MLflow is written as model.mlflow"
        ),
    ),
    (
        (
            "!self.startsWith('hf://') ||"
            " self.matches('^hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+@[0-9a-f]{40}$')"
        ),
        (
            "write hf://org/name@ and the 40 digits of a commit: branches and tags move, and pods"
            " would differ (git ls-remote https://huggingface.co/org/name shows them)"
        ),
    ),
    (
        (
            "!self.startsWith('pvc://') ||"
            " self.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?$')"
        ),
        "write pvc://claim/folder, the claim being a PersistentVolumeClaim of this namespace",
    ),
    (
        "!self.startsWith('file://') || self.matches('^file:///[^/]')",
        "write file:///folder, an absolute path in the image",
    ),
    (
        "!self.matches('^(s3|gs|abfss)://') || self.matches('^[a-z0-9]+://[^/]+/[^/]')",
        "write the bucket and the folder in it, like s3://models/support-bot/3",
    ),
    (
        "!self.contains('..') && !self.matches('[[:space:]?#]')",
        "write the address without `..`, spaces, ? and #",
    ),
)


class MlflowModel(Section):
    """A registered model in MLflow and which of its versions to serve."""

    model_config = ConfigDict(json_schema_extra=rules(ONE_REFERENCE))
    name: Annotated[str, Field(min_length=1, max_length=256)]
    """Name of the registered model in MLflow."""
    alias: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=256,
                json_schema_extra=rules(
                    (
                        "!self.matches('^[0-9]+$')",
                        "MLflow aliases are never numbers: write `version` for a number",
                    ),
                    ("!self.startsWith('@')", "write the alias without @"),
                    (
                        "self != 'latest'",
                        "`latest` is reserved by MLflow: name an alias of the model or a `version`",
                    ),
                ),
            ),
        ]
        | None
    ) = None
    """Alias whose version is served, such as `champion`. Moving it starts a roll-out."""
    version: IntegerText | None = None
    """Number of the version to serve, such as `3`, wherever aliases point."""
    stage: Literal["None", "Staging", "Production", "Archived"] | None = None
    """Stage whose newest version is served. MLflow deprecates stages: prefer `alias`."""
    connection: Annotated[str, Field(min_length=1, max_length=63)] = "default"
    """MLflow server, by its name under `connections` in the operator's configuration."""
    sub_path: Annotated[
        str,
        Field(
            max_length=1024,
            json_schema_extra=rules(
                (
                    "!self.startsWith('/') && !self.contains('..')",
                    "write a folder inside the artifacts, like model/final",
                )
            ),
        ),
    ] = ""
    """Folder inside the version's artifacts, such as `model/final`,
    where they hold several models."""


class ServedModel(MlflowModel):
    """The registered model that an LLMDeployment serves,
    and whether new versions roll out by themselves."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ONE_REFERENCE,
            (
                "self.updatePolicy == 'Auto' || !has(self.version)",
                (
                    "updatePolicy Manual goes with alias or stage: a pinned version moves only when"
                    " you change it"
                ),
            ),
        )
    )
    update_policy: Literal["Auto", "Manual"] = "Auto"
    """Auto: a moved alias starts a roll-out. Manual: the new version is reported in the condition
    UpdateAvailable and waits until the annotation llm-operator.dev/approve-version has its
    number."""


class CredentialsSecret(Section):
    """A Secret in this namespace."""

    name: ObjectName
    """Name of the Secret to read."""


@described_by(ModelConfig)
class ModelSpec(Section):
    """The model to serve. Write exactly one of mlflow and uri."""

    model_config = ConfigDict(json_schema_extra=rules(ONE_SOURCE))
    mlflow: ServedModel | None = None
    """Registered model in MLflow, whose promotions are followed."""
    uri: (
        Annotated[str, Field(min_length=1, max_length=1024, json_schema_extra=rules(*URI))] | None
    ) = None
    """Address of model files outside a registry: `hf://org/name@<commit>`, `pvc://claim/folder`,
    `file:///folder` in the image, `s3://`, `gs://` or `abfss://`. Nothing is polled: write another
    address for another version."""
    credentials_secret_ref: CredentialsSecret | None = None
    """Secret whose keys become environment variables of the container that fetches the model, and
    of no other: HF_TOKEN, HF_ENDPOINT, AWS_ and others. For a model in MLflow only those of an
    artifact store are taken (AWS_, AZURE_, MLFLOW_S3_)."""
    system_prompt: Annotated[str, Field(max_length=32_768)] = ""
    chat_template: Annotated[str, Field(max_length=65_536)] = ""


class AdapterGate(Section):
    """A check that a version of the adapter must pass before it answers clients.
    Write exactly one kind of check per entry."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            one_of("smokePrompts evaluation loadProbe shadowAgreement", "entry")
        )
    )
    smoke_prompts: SmokePrompts | None = None
    """Prompts whose answers must be as expected, by the new version on every ready pod."""
    evaluation: EvaluationSpec | None = None
    """Records of an evaluation dataset, answered by the new version and by the one that serves."""
    load_probe: LoadProbe | None = None
    """A short load on one pod for the new version, in turns with the same for the version that
    serves."""
    shadow_agreement: ShadowAgreement | None = None
    """A bound on how far answers to copies differ from those of the version that serves. Needs the
    adapter's shadow."""
    min_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Fewest copies by which shadowAgreement is judged."""


@described_by(AdapterConfig)
class AdapterSpec(Section):
    """A LoRA adapter that running pods load beside the model."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.gates) || !self.gates.exists(gate, has(gate.shadowAgreement)) || "
                "(has(self.shadow) && (!has(self.shadow.percent) || self.shadow.percent > 0))",
                (
                    "a gate shadowAgreement judges copies: write the adapter's shadow with a"
                    " percent above 0"
                ),
            )
        )
    )
    name: AdapterName
    mlflow: MlflowModel
    """Registered model in MLflow whose artifacts are the adapter in PEFT's format."""
    gates: Annotated[tuple[AdapterGate, ...], Field(max_length=4)] | None = None
    """Checks that each version must pass before it answers clients, the first one too. Until then
    the version before answers. Absent or empty: a version answers as soon as it is loaded."""
    shadow: ShadowSpec | None = None
    """Copies of the adapter's requests for its new version, by the pods that answer these.
    A version answers clients when it has been sent them for long enough. Absent: none."""

    @property
    def gated(self) -> bool:
        """Whether a version has to show something before it answers clients."""
        return bool(self.gates) or self.shadows

    @property
    def shadows(self) -> bool:
        """Whether new versions are sent copies."""
        return self.shadow is not None and self.shadow.percent > 0

    @property
    def checks(self) -> tuple[GateSpec, ...]:
        """The gates as those of a roll-out."""
        return tuple(GateSpec(**dict(gate)) for gate in self.gates or ())

    @property
    def smoke_maps(self) -> tuple[str, ...]:
        """The ConfigMaps with smoke prompts, each once."""
        found = (gate.smoke_prompts.config_map for gate in self.checks if gate.smoke_prompts)
        return tuple(dict.fromkeys(found))

    @property
    def load_probes(self) -> tuple[LoadProbe, ...]:
        """The load probes, each once."""
        return tuple(dict.fromkeys(gate.load_probe for gate in self.checks if gate.load_probe))

    @property
    def evaluations(self) -> tuple[GateSpec, ...]:
        """The gates of kind evaluation, each once."""
        return tuple(dict.fromkeys(gate for gate in self.checks if gate.evaluation))
