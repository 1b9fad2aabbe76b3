"""Who may call an endpoint, and how much: tiers of an LLMDeployment, limits of one ApiKey."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from llm_operator.crds.schema import Section, described_by, rules
from llm_runtime.contract import STANDARD_TIER, TIER_CONCURRENT, Limits, Tier

PerMinute = Annotated[int, Field(ge=1, le=1_000_000_000)]
PerMonth = Annotated[
    int, Field(ge=1, le=1_000_000_000_000_000, json_schema_extra={"format": "int64"})
]
Concurrent = Annotated[int, Field(ge=1, le=100_000)]
Priority = Annotated[int, Field(ge=-100, le=100)]
TierName = Annotated[
    str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
]

STANDARD = STANDARD_TIER.name
"""The tier that is always there, with no limit but the concurrent requests,
until one of that name is written."""


@described_by(Tier)
class TierSpec(Section):
    """Limits for each of the tier's keys. An absent limit is unlimited."""

    name: TierName
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    requests_per_month: PerMonth | None = None
    tokens_per_month: PerMonth | None = None
    max_concurrent: Concurrent = TIER_CONCURRENT
    priority: Priority = STANDARD_TIER.priority


@described_by(Limits)
class LimitsSpec(Section):
    """Limits of one key that override those of its tier."""

    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    requests_per_month: PerMonth | None = None
    tokens_per_month: PerMonth | None = None
    max_concurrent: Concurrent | None = None
    priority: Priority | None = None


class AccessSpec(Section):
    """Who may call the endpoint, and how much.
    Running pods pick up changed tiers within seconds, without a restart."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    f"self.defaultTier == '{STANDARD}' || "
                    "(has(self.tiers) && self.tiers.exists(tier, tier.name == self.defaultTier))"
                ),
                "defaultTier must be the name of one of tiers, or standard",
            )
        )
    )
    authentication: Literal["Required", "Disabled"] = "Required"
    """Required: only callers with a valid ApiKey are served.
    Disabled: everybody who reaches the Service is served."""
    default_tier: TierName = STANDARD
    """Tier of ApiKeys that name none, and of callers without a key,
    who are told apart by their address."""
    tiers: (
        Annotated[
            tuple[TierSpec, ...],
            Field(
                max_length=64,
                json_schema_extra={
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                },
            ),
        ]
        | None
    ) = None
    """Limits by tier. An entry named standard replaces the built-in tier, which limits concurrent
    requests alone. Absent: only the built-in tier."""

    def tier_names(self) -> tuple[str, ...]:
        """Every tier that an ApiKey may name here."""
        return tuple(sorted({STANDARD, *(tier.name for tier in self.tiers or ())}))
