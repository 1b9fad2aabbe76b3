"""Who may call an endpoint, and how much: tiers of an LLMDeployment, limits of one ApiKey."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from llm_operator.crds.schema import Section, rules

PerMinute = Annotated[int, Field(ge=1, le=1_000_000_000)]
PerMonth = Annotated[int, Field(ge=1, le=1_000_000_000_000_000, json_schema_extra={"format": "int64"})]
Concurrent = Annotated[int, Field(ge=1, le=100_000)]
Priority = Annotated[int, Field(ge=-100, le=100)]
TierName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

STANDARD = "standard"
"""The tier that is always there, with no limit but the concurrent requests, until one of that name is written."""


class TierSpec(Section):
    """What each of its keys may use. An absent limit limits nothing; months are UTC's."""

    name: TierName
    """ApiKeys name it in spec.tier."""
    requests_per_minute: PerMinute | None = None
    """Requests within a minute."""
    tokens_per_minute: PerMinute | None = None
    """Tokens of prompts and answers within a minute."""
    requests_per_month: PerMonth | None = None
    """Requests within a month."""
    tokens_per_month: PerMonth | None = None
    """Tokens of prompts and answers within a month."""
    max_concurrent: Concurrent = 5
    """Requests at the same time; more wait for their turn."""
    priority: Priority = 0
    """Of two requests that wait for the model, the one with the higher number goes first."""


class LimitsSpec(Section):
    """What one key may use beyond or below its tier; what is absent is the tier's."""

    requests_per_minute: PerMinute | None = None
    """Requests within a minute."""
    tokens_per_minute: PerMinute | None = None
    """Tokens of prompts and answers within a minute."""
    requests_per_month: PerMonth | None = None
    """Requests within a UTC month."""
    tokens_per_month: PerMonth | None = None
    """Tokens of prompts and answers within a UTC month."""
    max_concurrent: Concurrent | None = None
    """Requests at the same time; more wait for their turn."""
    priority: Priority | None = None
    """Of two requests that wait for the model, the one with the higher number goes first."""


class AccessSpec(Section):
    """Who may call the endpoint, and how much. Changed tiers reach running pods like keys do: within seconds."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                f"self.defaultTier == '{STANDARD}' || "
                "(has(self.tiers) && self.tiers.exists(tier, tier.name == self.defaultTier))",
                "defaultTier must be the name of one of tiers, or standard",
            )
        )
    )
    authentication: Literal["Required", "Disabled"] = "Required"
    """Required: only holders of an ApiKey. Disabled: everybody who reaches the Service."""
    default_tier: TierName = STANDARD
    """The tier of ApiKeys that name none, and of callers without a key, each by its address."""
    tiers: (
        Annotated[
            tuple[TierSpec, ...],
            Field(
                max_length=64,
                json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
            ),
        ]
        | None
    ) = None
    """What the holders of keys may use, by tier. Written names replace the built-in standard, too."""

    def tier_names(self) -> tuple[str, ...]:
        """Every tier that an ApiKey may name here."""
        return tuple(sorted({STANDARD, *(tier.name for tier in self.tiers or ())}))
