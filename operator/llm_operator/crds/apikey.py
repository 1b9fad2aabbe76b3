"""ApiKey: one key that its owner may call some LLMDeployments with."""

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field

from llm_operator.crds.access import LimitsSpec, TierName
from llm_operator.crds.common import ObjectName, Short
from llm_operator.crds.scheduling import LabelSelector
from llm_operator.crds.schema import Section, rules

MOMENT = (
    r"^[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
    r"(\.[0-9]{1,9})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
"""RFC 3339 without what only the format date-time takes:
the year 0, leap seconds, offsets of more than a day."""


class DeploymentSelector(LabelSelector):
    """Selects LLMDeployments in this namespace by their labels."""


class ApiKeySpec(Section):
    """Who holds the key and which LLMDeployments accept it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.deployments) != has(self.selector)",
                "write exactly one of deployments (names) or selector (labels)",
            )
        )
    )
    owner: Annotated[str, Field(max_length=256)] = ""
    """Person or team that holds the key, such as `web-team@example.com`,
    for logs and usage reports."""
    deployments: (
        Annotated[
            tuple[ObjectName, ...],
            Field(
                min_length=1, max_length=256, json_schema_extra={"x-kubernetes-list-type": "set"}
            ),
        ]
        | None
    ) = None
    """Names of the LLMDeployments in this namespace that accept the key. Write exactly one of
    `deployments` and `selector`."""
    selector: (
        Annotated[
            DeploymentSelector,
            Field(
                json_schema_extra=rules(
                    (
                        "has(self.matchLabels) || has(self.matchExpressions)",
                        "an empty selector would open everything: write matchLabels",
                    )
                )
            ),
        ]
        | None
    ) = None
    """Labels of the LLMDeployments in this namespace that accept the key."""
    tier: TierName | None = None
    """Tier of the key, by its name in `spec.access.tiers` of the LLMDeployments.
    Absent: the default tier of each."""
    limits: LimitsSpec = LimitsSpec()
    """Limits of this key alone; each one overrides that of its tier."""
    adapters: (
        Annotated[
            tuple[Short, ...],
            Field(max_length=256, json_schema_extra={"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """Names of the adapters that the key may use beside the model itself. Absent or empty: all."""
    expires_at: Annotated[datetime, Field(json_schema_extra={"pattern": MOMENT})] | None = None
    """Time from which the key is refused, in RFC 3339, such as `2027-01-31T00:00:00Z`. Absent: the
    key never expires."""
    secret_name: Annotated[ObjectName, Field(max_length=253)] | None = None
    """Secret that the key is written to, under `api-key`. Absent: `<name>-llm-key`."""
    suspended: bool = False
    """Whether the key is refused for the time being."""


class ApiKeyRoot(Section):
    """An API key that one or more LLMDeployments of its namespace accept."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.metadata.name.size() <= 200",
                "metadata.name must have at most 200 characters: the Secret's name adds to it",
            )
        )
    )
    spec: ApiKeySpec
    """Who holds the key and which LLMDeployments accept it."""
