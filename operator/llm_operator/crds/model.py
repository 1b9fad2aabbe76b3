"""What is served: a model and the adapters beside it."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from llm_operator.crds.common import IntegerText
from llm_operator.crds.schema import Section, rules

MAX_ADAPTERS = 8
"""Half of what an engine holds: each may be replaced while requests still run with its old version."""

AdapterName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
DEFAULT_ADAPTER_EXISTS = (
    "!has(self.defaultAdapter) || (has(self.adapters) && self.adapters.exists(a, a.name == self.defaultAdapter))",
    "defaultAdapter must be the name of one of adapters",
)
ONE_REFERENCE = (
    "[has(self.alias), has(self.version), has(self.stage)].filter(x, x).size() == 1",
    "write exactly one of alias (follows promotions), version (pinned) or stage (deprecated in MLflow)",
)


class MlflowModel(Section):
    """A registered model in MLflow and which of its versions to serve."""

    model_config = ConfigDict(json_schema_extra=rules(ONE_REFERENCE))
    name: Annotated[str, Field(min_length=1, max_length=256)]
    """The registered model's name."""
    alias: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=256,
                json_schema_extra=rules(
                    ("!self.matches('^[0-9]+$')", "MLflow aliases are never numbers: write `version` for a number"),
                    ("self != 'latest'", "`latest` is reserved by MLflow: name an alias of the model or a `version`"),
                ),
            ),
        ]
        | None
    ) = None
    """Serve the version that this alias names, and roll out whenever it is moved."""
    version: IntegerText | None = None
    """Serve this version and no other."""
    stage: Literal["None", "Staging", "Production", "Archived"] | None = None
    """Serve the newest version in this stage. MLflow deprecates stages: prefer `alias`."""
    connection: Annotated[str, Field(min_length=1, max_length=63)] = "default"
    """Which MLflow server: a name under `connections` in the operator's configuration."""
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
    """Folder inside the version's artifacts, where they hold several models."""


class ServedModel(MlflowModel):
    """The registered model that an LLMDeployment serves, and who decides on a roll-out."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ONE_REFERENCE,
            (
                "self.updatePolicy == 'Auto' || !has(self.version)",
                "updatePolicy Manual goes with alias or stage: a pinned version moves only when you change it",
            ),
        )
    )
    update_policy: Literal["Auto", "Manual"] = "Auto"
    """Auto: a moved alias starts a roll-out. Manual: it is told, and waits for the annotation
    llm-operator.dev/approve-version with the version's number."""


class ModelSpec(Section):
    """What to serve."""

    mlflow: ServedModel
    """A version from the MLflow registry."""
    system_prompt: Annotated[str, Field(max_length=32_768)] = ""
    """Put before every conversation that brings no system message of its own."""
    chat_template: Annotated[str, Field(max_length=65_536)] = ""
    """A Jinja template that takes the place of the tokenizer's own."""


class AdapterSpec(Section):
    """A LoRA adapter beside the model, loaded into the running pods."""

    name: AdapterName
    """Clients ask for it as `<LLMDeployment>:<name>`."""
    mlflow: MlflowModel
    """A version from the MLflow registry that holds an adapter in PEFT's format."""
