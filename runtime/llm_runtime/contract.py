"""What operator and runtime agree on: settings with their defaults and bounds, key file, paths,
ports and metric names.

The runtime owns this module, because it reads the files. The operator, which writes them, imports
it and nothing else of the runtime. Standard library and Pydantic only.
"""

import hashlib
import hmac
import json
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

PORT = 8000
"""The one HTTP port: API, probes and metrics."""

CONFIG_FILE = "config.json"
KEYS_FILE = "keys.json"
ADAPTERS_FILE = "adapters.json"
"""Beside the key file, and followed as it is: an `AdapterFile`."""
REGISTRIES_FILE = "registries.json"
"""What it takes to fetch adapters, for the container that does: a `RegistriesFile`."""
SHADOW_FILE = "shadow.json"
"""Beside the key file while a candidate is shadowed, and followed as it is: a `ShadowFile`."""
MODEL_FOLDER = "current"
"""`fetch` leaves a symbolic link of this name in the models folder;
`serve` loads what it points to."""

CONFIG_MOUNT = "/etc/llm-runtime/config"
KEYS_MOUNT = "/etc/llm-runtime/keys"
ADAPTERS_MOUNT = "/etc/llm-runtime/adapters"
FETCHED_MOUNT = "/var/lib/llm-runtime/fetched"
"""There the container that fetches adapters tells the server what it has brought."""
MODELS_MOUNT = "/models"
SCRATCH_MOUNT = "/tmp"

FETCH_COMMAND = ("python", "-m", "llm_runtime", "fetch")
SERVE_COMMAND = ("python", "-m", "llm_runtime", "serve")
FETCH_ADAPTERS_COMMAND = ("python", "-m", "llm_runtime.fetcher")
CONFIG_FLAG = "--config"
KEYS_FLAG = "--keys"
ADAPTERS_FLAG = "--adapters"
MODELS_FLAG = "--models"
REGISTRIES_FLAG = "--registries"
FETCHED_FLAG = "--fetched"
"""Paths travel as arguments only, never inside the configuration,
so that a mount may lie anywhere."""

SHADOW_HEADER = "x-llm-shadow"
"""Marks a copy of a request, with the token of the `ShadowFile`."""
LIVE_PATH = "/livez"
READY_PATH = "/readyz"
METRICS_PATH = "/metrics"
CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
MESSAGES_PATH = "/v1/messages"
COUNT_PATH = f"{MESSAGES_PATH}/count_tokens"
RESPONSES_PATH = "/v1/responses"
EMBEDDINGS_PATH = "/v1/embeddings"
TOKENIZE_PATH = "/tokenize"
DETOKENIZE_PATH = "/detokenize"
TOKENIZER_PATH = "/tokenizer_info"
LOAD_PROBE_PATH = "/load-probe"
"""A short load on the server's own engine;
answers `LoadFigures` to the operator's own key alone."""
PROBE_MAX_CONCURRENCY = 16
PROBE_MAX_SECONDS = 120
PROBE_MAX_PROMPT_TOKENS = 32_768
PROBE_MAX_TOKENS = 4096
"""The largest load that a probe may ask for."""
NO_CHAT_TEMPLATE = "no_chat_template"
"""Code of the error that a chat gets from a model that has none."""

ENV_MLFLOW_TRACKING_URI = "MLFLOW_TRACKING_URI"
ENV_MLFLOW_USERNAME = "MLFLOW_TRACKING_USERNAME"
ENV_MLFLOW_PASSWORD = "MLFLOW_TRACKING_PASSWORD"
ENV_MLFLOW_TOKEN = "MLFLOW_TRACKING_TOKEN"
ENV_MLFLOW_WORKSPACE = "MLFLOW_WORKSPACE"
ENV_MLFLOW_CA_FILE = "MLFLOW_TRACKING_SERVER_CERT_PATH"
ENV_ARTIFACT_HOSTS = "LLM_ARTIFACT_HOSTS"
"""Hosts, with commas between, that serve artifacts beside the MLflow server:
credentials go to no other."""

ENV_MODEL_PATH = "MODEL_PATH"
"""A local folder, in the place of whatever model the configuration names."""
ENV_DATABASE_URL = "DATABASE_URL"
ENV_REDIS_URL = "REDIS_URL"
ENV_KEY_PEPPER = "KEY_PEPPER"
ENV_FREE_SETTINGS = (
    "ENGINE__INTER_TOKEN_GOAL_SECONDS", "ENGINE__MAX_ADAPTERS", "ENGINE__MAX_ADAPTER_RANK", "ENGINE__MAX_QUEUE_LENGTH",
    "ENGINE__STEP_TRACE", "SERVER__LOG_FILE", "SERVER__LOG_FILE_BYTES", "SERVER__LOG_FILE_BACKUPS",
    "DATABASE__FLUSH_SECONDS", "DATABASE__MAX_PENDING_ROWS", "LOG_LEVEL", "DEBUG",
)  # fmt: skip
"""Settings that no field of an LLMDeployment has. In an operator's pod they come from the
environment, which is `spec.pod.env`; the file decides all others. `server.lazyLoad` is none of
them: a roll-out would count a version as ready that nobody has loaded."""

METRIC_REQUESTS_RUNNING = "llm_requests_running"
METRIC_REQUESTS_WAITING = "llm_requests_waiting"
METRIC_TOKENS_PER_SECOND = "tokens_per_second"
TOKENS_PER_SECOND_WINDOW = 10
"""Seconds over which it is counted."""
METRIC_KV_CACHE_USAGE = "llm_kv_cache_usage_ratio"
"""From 0 to 1."""
METRIC_API_REQUESTS = "api_requests"
"""A counter by endpoint and status, `_total` in the text."""
METRIC_FIRST_TOKEN = "llm_time_to_first_token_seconds"
METRIC_INTER_TOKEN = "llm_inter_token_seconds"
METRIC_FIRST_TOKEN_FINE = "llm_time_to_first_token_fine"
METRIC_INTER_TOKEN_FINE = "llm_inter_token_fine"
"""Counters by upper bound `le`, one of FINE_BOUNDS_SECONDS: samples of that bucket alone, and only
of buckets that were hit. An older runtime has the histograms alone."""
FINE_BOUNDS_SECONDS = tuple(float(f"{0.001 * 1.05**step:.4g}") for step in range(227))
"""1 ms to 61 s in steps of 5 %: finer than a version gets slower unnoticed.
What is above has the bound +Inf."""
METRIC_SHADOW_COPIES = "llm_shadow_copies"
"""A counter by candidate and result: how many copies of requests ended how."""
METRIC_SHADOW_COMPARED = "llm_shadow_compared"
METRIC_SHADOW_DIFFERENCE = "llm_shadow_difference"
"""Counters by candidate and what (exact, similarity, finishReason or json): answers that were
compared, and the sum of their differences, each from 0 (as stable's) to 1."""
METRIC_SHADOW_FINE = "llm_shadow_fine"
"""A counter by candidate, side (stable or candidate), what (seconds or tokens) and upper bound
`le`, as the other fine ones: whole answers that were compared. Tokens are in thousands."""
METRIC_ANSWER_TOKENS_FINE = "llm_answer_tokens_fine"
"""As the others, by one of FINE_BOUNDS_TOKENS."""
FINE_BOUNDS_TOKENS = (
    *map(float, range(1, 21)),
    *(float(round(20 * 1.05**step)) for step in range(1, 200)),
)
"""1 to 20 one by one, then in steps of 5 % to some 330,000 tokens."""
METRIC_GPU_MEMORY = "gpu_memory_usage_bytes"
METRIC_MEMORY = "llm_resident_memory_bytes"
METRIC_ADAPTER_LOADED = "llm_adapter_loaded"
"""By adapter and version: 1 where it answers."""
METRIC_ADAPTER_FAILED = "llm_adapter_failed"
"""By adapter, version and reason: 1 for a wanted version that could not be loaded."""
METRIC_DOWNLOADED_BYTES = "llm_download_bytes"
METRIC_DOWNLOAD_SIZE_BYTES = "llm_download_size_bytes"
METRIC_DOWNLOAD_RATE = "llm_download_bytes_per_second"
"""Progress of the model's download, reported by `fetch` on the port that `serve` takes
afterwards."""

ADAPTER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""What an adapter may be called."""
CANDIDATE_MARK = "@"
"""Stands in the name of every adapter's candidate, and in that of no adapter."""
CANDIDATE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}@[A-Za-z0-9._-]{1,64}$"
"""What an adapter's candidate is called: the adapter's name, and a mark of exactly this version."""

SHADOW_PERCENT = 100
"""Share of the requests that is copied to a candidate, where nobody says another."""
SHADOW_IN_FLIGHT = 4
"""Copies of one pod that may be on their way at a time, where nobody says another number."""

KEY_PREFIX = "llmk"
KEY_SECRET_LENGTH = 43


class _Section(BaseModel):
    """A part of a configuration file: camelCase in JSON, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )


class MlflowVersion(_Section):
    """One pinned version of a registered model. Aliases are resolved before they get here."""

    tracking_uri: str
    """Address of the MLflow server."""
    name: str
    """Name of the registered model."""
    version: str
    """Number of the version, such as `3`."""
    sub_path: str = ""
    """Folder inside the version's artifacts, such as `model/final`,
    where they hold several models."""
    anew: str | None = None
    """Mark of a version whose number was deleted and registered anew;
    a volume may still hold the earlier one."""


class ModelConfig(_Section):
    """The model to load, and the name to serve it under."""

    name: str
    """Model id that clients send: the LLMDeployment's name."""
    mlflow: MlflowVersion | None = None
    """Version from MLflow. Write exactly one of `mlflow`, `path` and `uri`."""
    path: str | None = None
    """Local folder of the model, without MLflow (stand-alone use)."""
    uri: str | None = None
    """Address of the model: `models:/name/3`, `models:/name@alias`, `models:/name/Stage` (also
    `Production|latest`: the first that exists), `models:/m-…`, `runs:/…`, `mlflow-artifacts:/…`,
    `hf://org/name@revision`, `file:///folder`, or `s3://`, `gs://`, `abfss://` where that client is
    installed. An address that may move is resolved once, when the model is fetched (stand-alone
    use)."""
    tracking_uri: str | None = None
    """Address of the MLflow server for `uri`. Absent: MLFLOW_TRACKING_URI."""
    sub_path: str | None = None
    """Folder inside what `uri` or `path` names, such as `model/final`,
    where it holds several models."""
    system_prompt: str = ""
    """System message put before every conversation that brings none of its own."""
    chat_template: str = ""
    """Jinja template for chats, in the place of the tokenizer's own."""


class AdapterConfig(_Section):
    """A LoRA adapter to load beside the model."""

    name: str
    """Name of the adapter, which clients ask for as `<model>:<name>`."""
    path: str
    """Folder of the adapter in PEFT's format: adapter_config.json and adapter_model.safetensors."""


class EngineConfig(_Section):
    """How the engine runs the model. Lengths are in tokens."""

    # Left out while it is as ever: older runtimes do not know it.
    task: Annotated[
        Literal["auto", "generate", "embed"], Field(exclude_if=lambda task: task == "auto")
    ] = "auto"
    """What the model is for. generate: it continues texts. embed: it makes embeddings of texts. auto:
    embed for a folder of sentence-transformers and for an encoder without a head, otherwise
    generate."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on. auto: a GPU where there is one, otherwise the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights. auto: the model's own on a GPU, float32 on a CPU."""
    max_model_length: Annotated[int, Field(ge=16)] = 4096
    """Longest sequence in tokens, prompt and answer together."""
    max_batch_size: Annotated[int, Field(ge=1)] = 64
    """Largest number of sequences that run together;
    fewer where memory does not hold their KV caches."""
    max_batch_tokens: Annotated[int, Field(ge=16)] = 2048
    """Largest number of tokens in one forward pass."""
    max_queue_length: Annotated[int, Field(ge=1)] = 1024
    """Largest number of requests that wait for a place in the batch; one more gets 429."""
    kv_cache_bytes: Annotated[int, Field(ge=1)] | None = None
    """Memory for the KV cache in bytes. Absent: four fifths of what is free after loading; on a CPU
    without a memory limit, at most 4 GiB."""
    # Left out while it is as ever: older runtimes do not know it.
    kv_cache_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(exclude_if=lambda dtype: dtype == "auto"),
    ] = "auto"
    """Number format of keys and values in the KV cache. auto: the one that the model computes in.
    bfloat16 halves the cache of a model in float32, and rounds what is in it."""
    prefix_caching: bool = True
    """Whether to keep the keys and values of prompt prefixes, so that the next prompt that begins
    alike need not compute them."""
    quantization: Literal["none", "int8", "int4"] = "none"
    """Quantization of the linear weights, which saves memory, and time on CPUs. int8: 8-bit
    integers, at a small loss of quality. int4: 4-bit integers in groups of 32, at a larger one."""
    inter_token_goal_seconds: Annotated[float, Field(gt=0)] = 0.1
    """Longest time in seconds that running streams should wait for their next token; prompts are
    computed in chunks of a size that rarely exceeds it."""
    # Left out while it is as ever: older runtimes do not know it.
    speculation: Annotated[
        Literal["promptLookup", "none"], Field(exclude_if=lambda way: way == "promptLookup")
    ] = "promptLookup"
    """Whether a step may check guesses of several next tokens, which changes no answer. promptLookup:
    what followed the last few tokens where they stood before, while that pays."""
    max_adapters: Annotated[int, Field(ge=1)] = 16
    """Largest number of LoRA adapters in memory; the least recently used makes room."""
    max_adapter_rank: Annotated[int, Field(ge=1)] = 64
    """Largest rank of a LoRA adapter; a higher one is refused."""
    step_trace: str = ""
    """File that gets a line of JSON for each step: how long its parts took and what was in it.
    Empty: none."""


class FilterPattern(_Section):
    """A further pattern that the filters look for."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
    """Name of the pattern; a match is replaced by `[NAME]`."""
    regex: Annotated[str, Field(min_length=1, max_length=1000)]
    """Regular expression to find, such as `EMP-[0-9]{6}`, in RE2 syntax: no look-around, no
    back-references."""


class FiltersConfig(_Section):
    """Filters for personal data in prompts and answers:
    e-mail addresses, phone, card and account numbers and more."""

    pii: Literal["Disabled", "Mask", "Reject"] = "Disabled"
    """Personal data in prompts. Mask: the model sees a placeholder such as `[EMAIL]` instead.
    Reject: the request gets 400."""
    output: Literal["Disabled", "Mask"] = "Disabled"
    """Personal data and control characters in answers. Mask: data become placeholders such as
    `[EMAIL]`, characters are removed."""
    patterns: Annotated[tuple[FilterPattern, ...], Field(max_length=32)] = ()
    """Further patterns that count as personal data, in prompts and answers."""


class CompletionCacheConfig(_Section):
    """Cache of answers to equal requests. Each key has its own."""

    enabled: bool = True
    """Whether answers are cached at all."""
    entries: Annotated[int, Field(ge=1)] = 10_000
    """Number of answers that each server keeps in memory; the least recently used makes room."""
    ttl_seconds: Annotated[int, Field(ge=1)] = 3600
    """Seconds for which an answer is kept."""
    # Left out while it is off: operators write the file for older runtimes, too,
    # which refuse what they do not know.
    sampled: Annotated[bool, Field(exclude_if=lambda sampled: not sampled)] = False
    """Whether to cache sampled answers too, not only deterministic ones (greedy or with a seed): an
    equal prompt then gets the answer of the first one, for `ttlSeconds`."""
    database: bool = False
    """Whether to keep answers in the database too, for other replicas and later starts. Their texts
    are stored there."""


class SessionsConfig(_Section):
    """Conversations that `/v1/chat` continues by `session_id`, and responses that `/v1/responses`
    continues by `previous_response_id`."""

    enabled: bool = True
    """Whether requests may name a `session_id`, and responses are kept."""
    ttl_seconds: Annotated[int, Field(ge=1)] = 7200
    """Seconds for which a conversation is kept after its last message, and a response after it was
    made or continued."""
    max_sessions: Annotated[int, Field(ge=1)] = 10_000
    """Largest number of conversations in memory, and of responses; the least recently used makes
    room."""
    max_messages: Annotated[int, Field(ge=2)] = 200
    """Largest number of messages of one conversation; the oldest make room."""


class ServerConfig(_Section):
    """How the server answers HTTP."""

    max_request_bytes: Annotated[int, Field(ge=1024)] = 1 << 20
    """Largest request body in bytes; a larger one gets 413."""
    max_prompt_characters: Annotated[int, Field(ge=1)] = 32_000
    """Longest prompt in characters; a longer one gets 400."""
    request_timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Longest time in seconds that one request may take."""
    lazy_load: bool = False
    """Whether to load the model with the first request instead of at the start; requests that come
    meanwhile wait for it."""
    body_timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Longest time in seconds that a client may take to send its body; then it gets 408."""
    keep_alive_seconds: Annotated[int, Field(ge=1)] = 120
    """Seconds for which an idle connection is kept. Must be longer than a load balancer in front
    keeps its own, which otherwise answers 502."""
    slot_timeout_seconds: Annotated[float, Field(ge=0)] = 30.0
    """Longest time in seconds that a request waits for one of its key's concurrent places;
    then it gets 429."""
    filters: FiltersConfig = FiltersConfig()
    """Filters for personal data in prompts and answers."""
    completion_cache: CompletionCacheConfig = CompletionCacheConfig()
    """Cache of answers to repeated deterministic requests."""
    sessions: SessionsConfig = SessionsConfig()
    """Conversations that `/v1/chat` continues by `session_id`."""
    trusted_proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    """Addresses or networks of proxies whose `X-Forwarded-For` is trusted, such as `10.0.0.0/8`;
    `*` is all."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose browsers may call the endpoint, such as `https://chat.example.com`.
    None by default."""
    trusted_hosts: tuple[str, ...] = ()
    """Host headers that are answered, such as `chat.example.com`. All by default."""
    log_format: Literal["json", "console"] = "json"
    """Format of the log: a JSON object per line, or text for people. A terminal gets `console`
    unless a format is set."""
    log_file: str = ""
    """File to log to beside standard output. Empty: none."""
    log_file_bytes: Annotated[int, Field(ge=4096)] = 10 << 20
    """Size in bytes at which the log file is put aside and a new one begun."""
    log_file_backups: Annotated[int, Field(ge=0, le=100)] = 5
    """Number of log files put aside that are kept."""
    drain_seconds: Annotated[float, Field(ge=0)] = 120.0
    """Seconds that running streams may go on after SIGTERM."""


TIER_CONCURRENT = 5
"""Requests of one key that may run at the same time, where its tier gives no number."""


class Tier(_Section):
    """Limits for each of the tier's keys. An absent limit is unlimited."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    """Name of the tier, such as `gold`, by which keys choose it."""
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Requests allowed in a minute. Absent: unlimited."""
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Tokens of prompts and answers allowed in a minute. Absent: unlimited."""
    requests_per_month: Annotated[int, Field(ge=1)] | None = None
    """Requests allowed in a month of UTC. Absent: unlimited."""
    tokens_per_month: Annotated[int, Field(ge=1)] | None = None
    """Tokens of prompts and answers allowed in a month of UTC. Absent: unlimited."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = TIER_CONCURRENT
    """Requests that may run at the same time; more wait for their turn."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Priority among requests that wait for the model, from -100 to 100:
    the higher number goes first."""


STANDARD_TIER = Tier(name="standard")
"""The tier of keys that name none, where the configuration has none of that name."""


class DatabaseConfig(_Section):
    """Where usage, budgets and conversations are stored.
    The address comes from DATABASE_URL or from here."""

    url: str = ""
    """Address of the database, `postgresql://…` or `sqlite:///file`; `none` keeps nothing. Empty:
    `sqlite:///llm-runtime.db`."""
    flush_seconds: Annotated[float, Field(gt=0)] = 1.0
    """Longest time in seconds that a usage row waits to be written,
    which is what a kill -9 can lose."""
    max_pending_rows: Annotated[int, Field(ge=1)] = 100_000
    """Largest number of rows kept while the database is down;
    then the oldest are dropped, and counted."""
    retention_days: Annotated[int, Field(ge=0)] = 90
    """Days after which rows of single requests, and daily sums of callers without a key, are
    deleted; other sums stay. 0: never."""
    store_prompts: bool = False
    """Whether to store prompts and answers beside the usage."""


class RuntimeConfig(_Section):
    """The configuration file: everything a pod needs to know but its secrets."""

    model: ModelConfig
    """The model to load, and the name to serve it under."""
    adapters: tuple[AdapterConfig, ...] = ()
    """LoRA adapters to load beside the model."""
    default_adapter: str | None = None
    """Adapter that answers for the bare name of the model; `<model>:base` then is the model itself.
    Absent: the bare name is the model."""
    engine: EngineConfig = EngineConfig()
    """How the engine runs the model."""
    server: ServerConfig = ServerConfig()
    """How the server answers HTTP."""
    authentication: Literal["Required", "Disabled"] = "Required"
    """Required: only callers with a valid key are served.
    Disabled: everybody who reaches the port is served."""
    tiers: tuple[Tier, ...] = ()
    """Limits by tier, which keys choose by its name."""
    default_tier: str = STANDARD_TIER.name
    """Tier of keys that name none, and of callers without a key,
    who are told apart by their address."""
    database: DatabaseConfig = DatabaseConfig()
    """Where usage, budgets and conversations are stored."""
    model_cache_bytes: Annotated[int, Field(ge=1)] | None = None
    """Size in bytes of all fetched versions together. A new version removes those least recently
    used, never one in use. Absent: all versions are kept."""

    @model_validator(mode="after")
    def _default_tier_exists(self) -> "RuntimeConfig":
        names = [STANDARD_TIER.name, *(tier.name for tier in self.tiers)]
        if self.default_tier not in names:
            raise ValueError(
                f"defaultTier is {self.default_tier!r}; the tiers are {', '.join(names)}"
            )
        return self


class _Additive(_Section):
    """A part of the key file, in which unknown fields are skipped.

    A newer operator writes for older pods too, as its own update restarts none of them. A pod that
    refused the whole file would no longer hear of revoked keys.
    """

    model_config = ConfigDict(extra="ignore")


class Limits(_Additive):
    """Limits of one key that override those of its tier."""

    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Requests allowed in a minute. Absent: as the tier says."""
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Tokens of prompts and answers allowed in a minute. Absent: as the tier says."""
    requests_per_month: Annotated[int, Field(ge=1)] | None = None
    """Requests allowed in a month of UTC. Absent: as the tier says."""
    tokens_per_month: Annotated[int, Field(ge=1)] | None = None
    """Tokens of prompts and answers allowed in a month of UTC. Absent: as the tier says."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Requests that may run at the same time;
    more wait for their turn. Absent: as the tier says."""
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    """Priority among requests that wait for the model, from -100 to 100: the higher number goes
    first. Absent: as the tier says."""


class KeyRecord(_Additive):
    """One API key as the runtime knows it: never the key, only its digest."""

    id: str
    """Public part of the key, which logs show."""
    digest: str
    """Digest of the key, `hash_key(key, salt)`, in hexadecimal."""
    name: str
    """Name of the ApiKey, `namespace/name`, for logs."""
    owner: str = ""
    """Person or team that holds the key, for the usage log."""
    expires_at: datetime | None = None
    """Time from which the key is refused with 403. Absent: the key never expires."""
    suspended: bool = False
    """Whether the key is refused with 403 for the time being."""
    tier: str = ""
    """Name of the key's tier. Empty: the default one."""
    limits: Limits = Limits()
    """Limits of this key alone; each one overrides that of its tier."""
    adapters: tuple[str, ...] = ()
    """Names of the adapters that the key may use beside the model itself. Empty: all."""
    admin: bool = False
    """Whether the key may manage models and keys.
    Ignored in a key file: the operator manages there."""
    operator: bool = False
    """Whether it is the operator's own key, which alone may ask for load probes."""


class FileTier(Tier):
    """A tier in the key file."""

    model_config = _Additive.model_config


class KeyFile(_Additive):
    """The mounted key file. `salt` makes the digests useless to any other deployment.

    Tiers come with it so that changed limits reach running pods as keys do:
    the configuration of a pod never changes.
    """

    salt: str
    """Key of the digests: the LLMDeployment's uid."""
    keys: tuple[KeyRecord, ...] = ()
    """Keys that this deployment accepts."""
    tiers: tuple[FileTier, ...] = ()
    """Limits by tier; with `defaultTier` they take the place of the configuration's."""
    default_tier: str = ""
    """Tier of keys that name none, and of callers without a key, who are told apart by their
    address. Empty: the configuration's tiers count."""


class RegistryAccess(_Additive):
    """An MLflow server, and the credentials for fetching from it."""

    tracking_uri: str
    """Address of the MLflow server."""
    workspace: str = ""
    """Name of MLflow's workspace. Empty: the default one."""
    username: str = ""
    """User name for basic authentication."""
    password: Annotated[str, Field(repr=False)] = ""
    """Password for basic authentication."""
    token: Annotated[str, Field(repr=False)] = ""
    """Bearer token, instead of basic authentication."""
    ca: str = ""
    """Certificate authority of the server as PEM text. Empty: those that Python trusts."""
    artifact_hosts: tuple[str, ...] = ()
    """Hosts, as `host` or `host:port`, that serve artifacts beside the server:
    credentials go to no other."""


class PinnedAdapter(_Additive):
    """A LoRA adapter as a version of a registered model.
    Aliases are resolved before they get here."""

    name: Annotated[str, Field(pattern=ADAPTER_NAME)]
    """Name of the adapter, which clients ask for as `<model>:<name>`."""
    connection: str = "default"
    """MLflow server of the adapter, one of `connections`."""
    model: str
    """Name of the registered model."""
    version: str
    """Number of the version, such as `3`."""
    sub_path: str = ""
    """Folder inside the version's artifacts, where they hold several adapters."""
    anew: str = ""
    """Mark of a version whose number was deleted and registered anew.
    Empty: the first of its number."""


class CandidateAdapter(PinnedAdapter):
    """A version of an adapter that has still to show what it is worth:
    only the operator's own key reaches it."""

    name: Annotated[str, Field(pattern=CANDIDATE_NAME)]
    """Name under which the operator asks for it."""


class ShadowedAdapter(_Additive):
    """A candidate of an adapter that is sent copies of its adapter's requests,
    by the pods that answer these and have both loaded."""

    candidate: Annotated[str, Field(pattern=CANDIDATE_NAME)]
    """Name of the candidate."""
    pods: str
    """Beginning of the names of the pods that copy."""
    percent: Annotated[float, Field(ge=0, le=100)] = 100
    """Share of the requests that is copied."""
    max_in_flight: Annotated[int, Field(ge=1)] = 4
    """Copies of one pod that may be on their way; others are dropped."""

    @property
    def adapter(self) -> str:
        """Name of the adapter."""
        return self.candidate.partition(CANDIDATE_MARK)[0]


class AdapterFile(_Additive):
    """The adapters that a server has loaded beside its model.
    Changed while it serves, nothing restarts.

    Where another container fetches them, the credentials are in its `RegistriesFile` and not here.
    """

    connections: dict[str, RegistryAccess] = {}
    """MLflow servers that the adapters come from, by name.
    A loaded adapter stays when its server is removed here."""
    adapters: tuple[PinnedAdapter, ...] = ()
    """Adapters in the order of the specification;
    beyond `engine.maxAdapters` only the first are loaded."""
    candidates: tuple[CandidateAdapter, ...] = ()
    """Versions that are loaded beside the adapters, for the operator's own key alone. A list of
    their own: a server that does not know it must not show them to clients."""
    shadowed: tuple[ShadowedAdapter, ...] = ()
    """Candidates that are sent copies. Apart from `candidates`: none is loaded anew for it."""
    default_adapter: str = ""
    """Adapter that answers for the bare name of the model, over the configuration's.
    Empty: the configuration's."""

    @property
    def with_candidates(self) -> tuple[PinnedAdapter, ...]:
        """All that are to be loaded.
        Candidates come last: where there is not room for all, they have none."""
        return (*self.adapters, *self.candidates)

    @model_validator(mode="after")
    def _names_are_unique(self) -> "AdapterFile":
        names = [adapter.name for adapter in self.with_candidates]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the adapter {min(twice)!r} is named twice")
        return self


class RegistriesFile(_Additive):
    """What it takes to fetch adapters: for the container that fetches them, and for no other."""

    connections: dict[str, RegistryAccess] = {}
    """As in the list of adapters, with credentials."""


class ShadowFile(_Additive):
    """Which pods copy requests to which, while a candidate is shadowed.
    Changed while they serve, nothing restarts.

    All pods of a deployment read it.
    A pod finds its part by its name, which begins with its revision's.
    """

    stable: str
    """Beginning of the names of the pods that copy."""
    candidate: str
    """Beginning of the names of the pods that are sent copies, and nothing else."""
    url: str
    """Address that copies are sent to."""
    token: Annotated[str, Field(repr=False, min_length=32)]
    """What a copy carries in the header SHADOW_HEADER.
    No client knows it, and each roll-out has another."""
    percent: Annotated[float, Field(ge=0, le=100)] = SHADOW_PERCENT
    """Share of the requests that is copied."""
    max_in_flight: Annotated[int, Field(ge=1)] = SHADOW_IN_FLIGHT
    """Copies of one pod that may be on their way; others are dropped."""


_Seconds = Annotated[float, Field(ge=0, le=1e6)]


class LoadFigures(_Additive):
    """What a load probe measured. Pairs are the median and the 95th percentile;
    None: too few samples for them."""

    answers: Annotated[int, Field(ge=0, le=1_000_000_000)]
    """Number of requests that were answered."""
    tokens_per_second: Annotated[float, Field(ge=0, le=1e9)]
    """Tokens of all answers together, per second."""
    first_token_seconds: tuple[_Seconds, _Seconds] | None = None
    """Time to the first token."""
    inter_token_seconds: tuple[_Seconds, _Seconds] | None = None
    """Time between two tokens of one answer."""
    memory_bytes: Annotated[int, Field(ge=0, le=10**15)] = 0
    """Memory afterwards, of the GPU where there is one."""
    busy: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the time, 0 to 1, in which clients' requests ran as well."""
    dropped: bool = False
    """Whether the probe was ended early because clients queued."""


class FatalReport(_Section):
    """The last log line of a `fetch` or `serve` that gave up:
    the kubelet carries it into the pod's status.

    Pods set `terminationMessagePolicy: FallbackToLogsOnError`, so no path has to be agreed on.
    """

    reason: str
    """Cause in one CamelCase word, from `errors.Fatal` subclasses: ModelNotFound, ModelCorrupt,
    DiskFull, RegistryDenied and others."""
    message: str
    """Explanation for people: what happened, to what, and what to do next."""


def format_key(key_id: str, secret: str) -> str:
    """The key as its holder sends it: `llmk_<id>_<43 base62 characters>`."""
    return f"{KEY_PREFIX}_{key_id}_{secret}"


def key_id_of(key: str) -> str | None:
    """The public id inside a key, or None when `key` does not have a key's form."""
    prefix, _, rest = key.partition("_")
    key_id, _, secret = rest.partition("_")
    return key_id if prefix == KEY_PREFIX and key_id and secret else None


def hash_key(key: str, salt: str) -> str:
    """Digest of a key for one deployment: HMAC-SHA256, hexadecimal.

    A slow hash would add nothing: the secret part has 256 random bits (RFC 2104 for the
    construction).
    """
    return hmac.new(salt.encode(), key.encode(), hashlib.sha256).hexdigest()


def is_candidate(name: str) -> bool:
    """Whether a name in a server's list of adapters is that of a candidate."""
    return CANDIDATE_MARK in name


def report_from_termination_message(text: str) -> FatalReport | None:
    """Find the FatalReport in a container's termination message (the tail of its log),
    newest first.

    Log lines may give a reason, too. They name their logger, which a report does not.
    """
    for line in reversed(text.strip().splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or "logger" in record:
            continue
        if isinstance(record.get("reason"), str) and "message" in record:
            return FatalReport(reason=record["reason"], message=str(record["message"]))
    return None
