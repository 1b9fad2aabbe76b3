"""ApiKey: one key that its owner may call some LLMDeployments with."""

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field

from llm_operator.crds.access import LimitsSpec, TierName
from llm_operator.crds.common import ObjectName, Short
from llm_operator.crds.pod import LabelSelector
from llm_operator.crds.schema import Section, rules

MOMENT = (
    r"^[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
    r"(\.[0-9]{1,9})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
"""RFC 3339 without what only the format date-time takes: the year 0, leap seconds, offsets of more than a day."""


class DeploymentSelector(LabelSelector):
    """Chooses LLMDeployments of this namespace by their labels."""


class ApiKeySpec(Section):
    """Whose key it is and what it opens."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.deployments) != has(self.selector)",
                "write exactly one of deployments (names) or selector (labels)",
            )
        )
    )
    owner: Annotated[str, Field(max_length=256)] = ""
    """Who holds the key, for logs and usage."""
    deployments: (
        Annotated[
            tuple[ObjectName, ...],
            Field(min_length=1, max_length=256, json_schema_extra={"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """LLMDeployments of this namespace, by name."""
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
    """LLMDeployments of this namespace, by their labels."""
    tier: TierName | None = None
    """A name of spec.access.tiers of the LLMDeployments; absent: the default tier of each."""
    limits: LimitsSpec = LimitsSpec()
    """Of this key, over those of its tier."""
    adapters: (
        Annotated[tuple[Short, ...], Field(max_length=256, json_schema_extra={"x-kubernetes-list-type": "set"})] | None
    ) = None
    """Adapters that the key may use beside the model itself, by name; absent or empty: all."""
    expires_at: Annotated[datetime, Field(json_schema_extra={"pattern": MOMENT})] | None = None
    """The key stops working then."""
    secret_name: Annotated[ObjectName, Field(max_length=253)] | None = None
    """The Secret to write the key to, under `api-key`; absent: <name>-llm-key."""
    suspended: bool = False
    """The key does not work while this is true."""


class ApiKeyRoot(Section):
    """A key for the holders of which one or more LLMDeployments answer."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.metadata.name.size() <= 200",
                "metadata.name must have at most 200 characters: the Secret's name adds to it",
            )
        )
    )
    spec: ApiKeySpec
    """Whose key it is and what it opens."""
