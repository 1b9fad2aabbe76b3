"""spec.rollout: strategy, canary steps, gates and their checks, copies of requests, deadlines."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from llm_operator.crds.common import Line, ObjectName, Short
from llm_operator.crds.schema import Section, one_of, rules
from llm_operator.crds.server import SecretKey
from llm_runtime import contract

MAX_STEPS = 10
MAX_GATES = 10
StrategyName = Literal["Rolling", "BlueGreen", "Canary", "Recreate"]
JUDGED_SECONDS = 60
"""How long a candidate is judged by its traffic where no step says how long."""
Ratio = Annotated[float, Field(ge=0.01, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]


class CanaryStep(Section):
    """A share of the traffic, and how long the candidate is judged at it."""

    weight: Annotated[int, Field(ge=1, le=99)]
    """Largest share of the traffic that the candidate gets, in percent."""
    hold_seconds: Annotated[int, Field(ge=0, le=86_400)] = 60
    """Seconds that the step lasts once its pods are ready."""


DEFAULT_STEPS = (CanaryStep(weight=10, hold_seconds=120), CanaryStep(weight=50, hold_seconds=300))


class ParentReference(Section):
    """A Gateway that a route attaches to."""

    name: ObjectName
    """Name of the Gateway object."""
    namespace: Annotated[ObjectName, Field(max_length=63)] | None = None
    """Namespace of the Gateway. Absent: this one."""
    section_name: Line | None = None
    """Name of one listener of the Gateway. Absent: all listeners."""


class HttpRouteSpec(Section):
    """An HTTPRoute of the Gateway API in front of the Services."""

    parent_refs: Annotated[tuple[ParentReference, ...], Field(min_length=1, max_length=8)]
    """Gateways that the route attaches to."""
    hostnames: Annotated[tuple[Line, ...], Field(max_length=16)] | None = None
    """Host names that the route answers for, such as `chat.example.com`.
    Absent: all of the Gateway's."""


class CanarySpec(Section):
    """Settings of the Canary strategy."""

    steps: (
        Annotated[
            tuple[CanaryStep, ...],
            Field(
                min_length=1,
                max_length=MAX_STEPS,
                json_schema_extra=rules(
                    (
                        (
                            "self.map(step, step.weight).isSorted() && "
                            "self.all(a, self.exists_one(b, b.weight == a.weight))"
                        ),
                        "weights must increase from step to step",
                    )
                ),
            ),
        ]
        | None
    ) = None
    """Shares of the traffic, increasing from step to step.
    Absent: 10 % for 120 s, then 50 % for 300 s."""
    http_route: HttpRouteSpec | None = None
    """HTTPRoute that gives the exact shares. Absent: the share follows from the numbers of pods."""


class BlueGreenSpec(Section):
    """Settings of the BlueGreen strategy."""

    hold_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """Seconds that the old pods stay ready after the switch, to switch back if a gate fails or a
    new pod crashes. Absent: 60 with gates that judge traffic, otherwise 0."""


class SmokePrompts(Section):
    """Prompts with expected answers, sent before the candidate gets traffic."""

    config_map: ObjectName
    """ConfigMap in this namespace, of which each entry is a prompt;
    docs/rollouts.md shows its form."""


class PrometheusQuery(Section):
    """A number that Prometheus computes, and its upper bound."""

    server: Annotated[str, Field(max_length=512, pattern=r"^https?://")] | None = None
    """Address of the Prometheus server, one of prometheus.allowed in the operator's configuration.
    Absent: prometheus.url there."""
    query: Annotated[str, Field(min_length=1, max_length=2048)]
    """PromQL with one number as its result;
    {candidate} and {stable} stand for the two revisions."""
    max: Annotated[float, Field(ge=-1e15, le=1e15)]
    """Upper bound of the number, above which the candidate fails."""


class LoadProbe(Section):
    """A short load on one pod of the candidate before it gets traffic,
    in turns with one pod of stable."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "has(self.maxTimeToFirstTokenRatio) || has(self.maxInterTokenRatio) || "
                    "has(self.minTokensPerSecondRatio)"
                ),
                (
                    "write at least one of maxTimeToFirstTokenRatio, maxInterTokenRatio,"
                    " minTokensPerSecondRatio"
                ),
            )
        )
    )
    concurrency: Annotated[int, Field(ge=1, le=contract.PROBE_MAX_CONCURRENCY)] = 4
    """Requests that run at the same time."""
    seconds: Annotated[int, Field(ge=10, le=contract.PROBE_MAX_SECONDS)] = 30
    """Seconds of load on each of the two pods, in ten blocks."""
    prompt_tokens: Annotated[int, Field(ge=1, le=contract.PROBE_MAX_PROMPT_TOKENS)] = 128
    """Tokens of each prompt, chosen at random."""
    max_tokens: Annotated[int, Field(ge=2, le=contract.PROBE_MAX_TOKENS)] = 32
    """Tokens of each answer."""
    max_time_to_first_token_ratio: Ratio | None = None
    """Largest ratio of candidate to stable for the median time to the first token."""
    max_inter_token_ratio: Ratio | None = None
    """Largest ratio of candidate to stable for the median time between two tokens."""
    min_tokens_per_second_ratio: Ratio | None = None
    """Smallest ratio of candidate to stable for the tokens per second of all requests together."""


class JudgeSpec(Section):
    """A model that marks answers, behind any address that speaks OpenAI's API."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("has(self.deployment) != has(self.url)", "write either deployment or url"),
            ("!has(self.url) || has(self.model)", "with url, write the model"),
        )
    )
    deployment: ObjectName | None = None
    """LLMDeployment of this namespace that marks the answers."""
    url: Annotated[str, Field(max_length=512, pattern=r"^https?://")] | None = None
    """Address of the API up to `/v1`, one of evaluation.judges in the operator's configuration."""
    model: Line | None = None
    """Name of the model in requests. Absent: that of the deployment."""
    key_ref: SecretKey | None = None
    """API key for the judge. Absent: it is asked without one."""
    criteria: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    """Description of a good answer. Absent: one that is correct, complete and helpful, and agrees
    with the expected answer where the record has one."""


class ScorerSpec(Section):
    """A rule that gives an answer a score from 0 to 1."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(self.type == 'Judge') == has(self.judge)",
                "write judge with the type Judge, and with no other",
            ),
            (
                "!has(self.pattern) || self.type == 'Regex' || self.type == 'Refusal'",
                "write pattern with the types Regex and Refusal only",
            ),
            (
                "!has(self.jsonSchema) || self.type == 'JsonSchema'",
                "write jsonSchema with the type JsonSchema only",
            ),
            (
                "(self.type == 'Length') == (has(self.minCharacters) || has(self.maxCharacters))",
                "write minCharacters or maxCharacters with the type Length, and with no other",
            ),
        )
    )
    type: Literal[
        "Exact", "Contains", "Regex", "JsonSchema", "Similarity", "Length", "Refusal", "Judge"
    ]
    """Exact: the answer is expected_response. Contains: the share of expected_facts that are in the
    answer. Regex: the pattern is found. JsonSchema: the answer is JSON and valid. Similarity: words
    in common with expected_response. Length: characters. Refusal: refused or not, as should_refuse
    says. Judge: a model's mark."""
    pattern: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    """RE2 pattern. Absent: the record's expectation `pattern` (Regex),
    or English words of refusal (Refusal)."""
    json_schema: Annotated[str, Field(min_length=2, max_length=16_384)] | None = None
    """JSON schema as a text of JSON. Absent: the record's expectation `json_schema`."""
    min_characters: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Fewest characters of the answer."""
    max_characters: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Most characters of the answer."""
    judge: JudgeSpec | None = None
    """The model that marks the answer."""


class EvaluationSpec(Section):
    """Records of an MLflow evaluation dataset that candidate and stable answer before the candidate
    gets traffic."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.minScore) || has(self.maxDropVsStable)",
                "write minScore, maxDropVsStable, or both",
            ),
        )
    )
    dataset: Annotated[str, Field(min_length=1, max_length=250)]
    """Name or id of the dataset."""
    connection: Short | None = None
    """MLflow server that has the dataset, by the connection's name. Absent: that of the model, or
    `default` where the model has none."""
    digest: Annotated[str, Field(max_length=71, pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    """Digest of the records, as an earlier evaluation has told it;
    records that were changed since are refused."""
    scorers: Annotated[tuple[ScorerSpec, ...], Field(min_length=1, max_length=8)]
    """Rules that score each answer; its score is their mean."""
    min_score: Annotated[float, Field(ge=0, le=1)] | None = None
    """Lowest mean score of the candidate, such as 0.9."""
    max_drop_vs_stable: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest mean difference by which the candidate's scores are below stable's,
    record by record."""
    sample: Annotated[int, Field(ge=1, le=2000)] = 500
    """Most records that are asked. Of a larger dataset it is always the same random choice."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 256
    """Most tokens of one answer."""
    deadline_seconds: Annotated[int, Field(ge=10, le=86_400)] = 900
    """Seconds after which the records answered so far are judged.
    progressDeadlineSeconds goes on meanwhile."""


class ShadowSpec(Section):
    """Copies of requests that the candidate answers behind the clients' backs,
    before it gets traffic."""

    percent: Annotated[int, Field(ge=0, le=100)] = contract.SHADOW_PERCENT
    """Share of the requests to what serves that is copied, in percent.
    0: none, as without this section."""
    max_in_flight: Annotated[int, Field(ge=1, le=256)] = contract.SHADOW_IN_FLIGHT
    """Copies that each serving pod has on their way at a time; it drops any more."""
    hold_seconds: Annotated[int, Field(ge=0, le=86_400)] = JUDGED_SECONDS
    """Seconds for which the candidate is sent copies at least, once it can answer in all pods."""


class ShadowAgreement(Section):
    """How far the candidate's answers to copies must be like stable's.
    Write exactly one bound per entry."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            one_of(
                "minExact minSimilarity minSameFinishReason minJsonValid maxTokensP95Ratio"
                " maxSecondsP95Ratio",
                "shadowAgreement",
            )
        )
    )
    min_exact: Share | None = None
    """Smallest share of greedy answers (temperature 0 or top_k 1) that are the same text."""
    min_similarity: Share | None = None
    """Smallest mean similarity of greedy answers:
    the share of pieces of three letters that both texts have."""
    min_same_finish_reason: Share | None = None
    """Smallest share of answers that end for the same reason, `stop` or `length`."""
    min_json_valid: Share | None = None
    """Smallest share of answers that are JSON, of those where stable's is."""
    max_tokens_p95_ratio: Ratio | None = None
    """Largest ratio of candidate to stable for the 95th percentile of an answer's length in
    tokens."""
    max_seconds_p95_ratio: Ratio | None = None
    """Largest ratio of candidate to stable for the 95th percentile of the time for a whole
    answer."""

    @property
    def bound(self) -> tuple[str, float]:
        """The one that is written: its name in the API, and its value."""
        return next(
            (to_camel(name), value) for name, value in dict(self).items() if value is not None
        )


class GateSpec(Section):
    """A check that the candidate must pass. Write exactly one kind of check per entry."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            one_of(
                "smokePrompts evaluation loadProbe shadowAgreement prometheusQuery maxErrorRate"
                " maxTimeToFirstTokenP95Ratio maxInterTokenP95Ratio maxTokensPerAnswerRatio"
                " minTokensPerSecondRatio maxMemoryRatio",
                "entry",
            )
        )
    )
    smoke_prompts: SmokePrompts | None = None
    """Prompts whose answers must be as expected."""
    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest share of the candidate's responses with a status of 500 or above,
    where 0.01 is one in a hundred."""
    max_time_to_first_token_p95_ratio: Ratio | None = None
    """Largest ratio of candidate to stable for the 95th percentile of the time to the first token,
    where 1.3 is 30 % slower."""
    max_inter_token_p95_ratio: Ratio | None = None
    """Largest ratio of candidate to stable for the 95th percentile of the time between two tokens,
    where 1.3 is 30 % slower."""
    max_tokens_per_answer_ratio: Ratio | None = None
    """Largest ratio of candidate to stable for the mean number of tokens of an answer, where 1.5 is
    half as many more."""
    min_tokens_per_second_ratio: Ratio | None = None
    """Smallest ratio of candidate to stable for the tokens per second of an answer while it is
    generated, where 0.8 is 20 % slower."""
    max_memory_ratio: Ratio | None = None
    """Largest ratio of candidate to stable for the memory of a pod, of the GPU where it has one:
    the largest pod of each is compared."""
    prometheus_query: PrometheusQuery | None = None
    """A number that Prometheus computes, and its upper bound."""
    evaluation: EvaluationSpec | None = None
    """Records of an evaluation dataset, answered by candidate and stable before the candidate gets
    traffic."""
    shadow_agreement: ShadowAgreement | None = None
    """A bound on how far answers to copies differ from stable's. Needs rollout.shadow."""
    load_probe: LoadProbe | None = None
    """A short load before the candidate gets traffic,
    for services that are too quiet to judge it by theirs."""
    min_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Fewest samples of each side by which the error rate and the ratios are judged."""

    @property
    def needs_traffic(self) -> bool:
        """Whether the gate judges what happens while clients reach the candidate."""
        return not (
            self.smoke_prompts or self.evaluation or self.load_probe or self.shadow_agreement
        )


class RolloutSpec(Section):
    """How a new version or a changed specification replaces what serves."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "!has(self.shadow) || !has(self.strategy) || self.strategy in ['Auto',"
                    " 'BlueGreen', 'Canary']"
                ),
                (
                    "shadow needs pods of both revisions before any traffic: write strategy"
                    " BlueGreen, Canary or Auto"
                ),
            ),
            (
                (
                    "!has(self.gates) || !self.gates.exists(gate, has(gate.shadowAgreement)) || "
                    "(has(self.shadow) && (!has(self.shadow.percent) || self.shadow.percent > 0))"
                ),
                "a gate shadowAgreement judges copies: write rollout.shadow with a percent above 0",
            ),
        )
    )

    strategy: Literal["Auto", StrategyName] = "Auto"
    """BlueGreen: all new pods start beside the old, then traffic switches. Rolling: pod by pod.
    Canary: traffic moves in steps. Recreate: the old pods go first, an interruption. Auto:
    BlueGreen where both fit, otherwise Rolling; a single pod waits for room, as Auto never
    interrupts."""
    canary: CanarySpec | None = None
    """Settings of the Canary strategy."""
    blue_green: BlueGreenSpec | None = None
    """Settings of the BlueGreen strategy, also where Auto has chosen it."""
    shadow: ShadowSpec | None = None
    """Copies of requests for the candidate before it gets traffic, with BlueGreen and Canary.
    Absent: none."""
    gates: Annotated[tuple[GateSpec, ...], Field(max_length=MAX_GATES)] | None = None
    """Checks that the candidate must pass; one that fails rolls it back at once. Absent: none."""
    on_inconclusive: Literal["Hold", "Promote", "RollBack"] = "Hold"
    """What becomes of a candidate if a gate is still inconclusive when the candidate's hold, or the
    time before its first traffic, is over. Hold: the candidate stays as it is for maxHoldSeconds at
    most, then it is rolled back. Promote: it goes on. RollBack: it is rolled back at once."""
    max_hold_seconds: Annotated[int, Field(ge=0, le=604_800)] = 3600
    """Seconds that Hold waits for inconclusive gates after the hold of a step,
    or of the switch, is over."""
    drain_seconds: Annotated[int, Field(ge=0, le=3600)] = int(contract.ServerConfig().drain_seconds)
    """Seconds that running streams may go on in a pod that is being stopped."""
    progress_deadline_seconds: Annotated[int, Field(ge=10, le=86_400)] = 1800
    """Seconds without progress after which a new revision has failed;
    the old one keeps serving. Holds do not count."""
    revision_history_limit: Annotated[int, Field(ge=0, le=20)] = 5
    """Number of old revisions that are kept, without pods, for a rollback."""

    @property
    def steps(self) -> tuple[CanaryStep, ...]:
        """The canary's steps as they apply."""
        return (self.canary.steps if self.canary else None) or DEFAULT_STEPS

    @property
    def without_effect(self) -> tuple[str, ...]:
        """A remark for each section that belongs to another strategy than the written one.

        Such a section is not refused: a Canary may be permitted to interrupt, which is a patch of
        the strategy alone.
        """
        said = f"no effect with strategy {self.strategy}: write strategy"
        found = []
        if self.canary and self.canary.steps and self.strategy not in ("Canary", "Recreate"):
            found.append(f"rollout.canary.steps have {said} Canary, or remove them")
        if self.blue_green and self.strategy not in ("BlueGreen", "Auto", "Recreate"):
            found.append(f"rollout.blueGreen has {said} BlueGreen or Auto, or remove it")
        return tuple(found)

    @property
    def switch_hold_seconds(self) -> int:
        """How long BlueGreen judges the candidate by its traffic."""
        if self.blue_green is not None and self.blue_green.hold_seconds is not None:
            return self.blue_green.hold_seconds
        return JUDGED_SECONDS if any(gate.needs_traffic for gate in self.gates or ()) else 0

    @property
    def shadows(self) -> bool:
        """Whether candidates are sent copies."""
        return self.shadow is not None and self.shadow.percent > 0

    @property
    def http_route(self) -> HttpRouteSpec | None:
        """The HTTPRoute that is asked for."""
        return self.canary.http_route if self.canary else None

    @property
    def load_probes(self) -> tuple[LoadProbe, ...]:
        """The load probes, each once."""
        return tuple(dict.fromkeys(gate.load_probe for gate in self.gates or () if gate.load_probe))

    @property
    def smoke_maps(self) -> tuple[str, ...]:
        """The ConfigMaps with smoke prompts, each once."""
        return tuple(
            dict.fromkeys(
                gate.smoke_prompts.config_map for gate in self.gates or () if gate.smoke_prompts
            )
        )

    @property
    def asks(self) -> bool:
        """Whether the operator asks the pods anything, for which it needs a key of its own."""
        return bool(self.smoke_maps or self.evaluations)

    @property
    def evaluations(self) -> tuple[GateSpec, ...]:
        """The gates of kind evaluation, each once."""
        return tuple(dict.fromkeys(gate for gate in self.gates or () if gate.evaluation))
