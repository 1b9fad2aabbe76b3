"""What a deployer of the runtime must know: its configuration file, key file, paths, ports and metric names.

The runtime owns this module because it reads what is written here; the operator imports it, and nothing else of the
runtime, to write it. Standard library and Pydantic only.
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
MODEL_FOLDER = "current"
"""`fetch` leaves a symbolic link of this name in the models folder; `serve` loads what it points to."""

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
CONFIG_FLAG, KEYS_FLAG, ADAPTERS_FLAG, MODELS_FLAG = "--config", "--keys", "--adapters", "--models"
REGISTRIES_FLAG, FETCHED_FLAG = "--registries", "--fetched"
"""Paths travel as arguments only, never inside the configuration, so that a mount may lie anywhere."""

LIVE_PATH, READY_PATH, METRICS_PATH = "/livez", "/readyz", "/metrics"
NO_CHAT_TEMPLATE = "no_chat_template"
"""Code of the error that a chat gets from a model that has none."""

ENV_MLFLOW_TRACKING_URI = "MLFLOW_TRACKING_URI"
ENV_MLFLOW_USERNAME = "MLFLOW_TRACKING_USERNAME"
ENV_MLFLOW_PASSWORD = "MLFLOW_TRACKING_PASSWORD"
ENV_MLFLOW_TOKEN = "MLFLOW_TRACKING_TOKEN"
ENV_MLFLOW_WORKSPACE = "MLFLOW_WORKSPACE"
ENV_MLFLOW_CA_FILE = "MLFLOW_TRACKING_SERVER_CERT_PATH"
ENV_ARTIFACT_HOSTS = "LLM_ARTIFACT_HOSTS"
"""Hosts, with commas between, that serve artifacts beside the MLflow server: credentials go to no other."""

ENV_MODEL_PATH = "MODEL_PATH"
"""A local folder, in the place of whatever model the configuration names."""
ENV_DATABASE_URL = "DATABASE_URL"
ENV_REDIS_URL = "REDIS_URL"
ENV_KEY_PEPPER = "KEY_PEPPER"

METRIC_REQUESTS_RUNNING = "llm_requests_running"
METRIC_REQUESTS_WAITING = "llm_requests_waiting"
METRIC_TOKENS_PER_SECOND = "tokens_per_second"
METRIC_API_REQUESTS = "api_requests"
"""A counter by endpoint and status, `_total` in the text."""
METRIC_FIRST_TOKEN = "llm_time_to_first_token_seconds"
METRIC_INTER_TOKEN = "llm_inter_token_seconds"
METRIC_FIRST_TOKEN_FINE = "llm_time_to_first_token_fine"
METRIC_INTER_TOKEN_FINE = "llm_inter_token_fine"
"""Counters by upper bound `le`, one of FINE_BOUNDS_SECONDS: samples of that bucket alone, and only of buckets that were
hit. An older runtime has the histograms alone."""
FINE_BOUNDS_SECONDS = tuple(float(f"{0.001 * 1.05**step:.4g}") for step in range(227))
"""1 ms to 61 s in steps of 5 %: finer than a version gets slower unnoticed. What is above has the bound +Inf."""
METRIC_ADAPTER_LOADED = "llm_adapter_loaded"
"""By adapter and version: 1 where it answers."""
METRIC_ADAPTER_FAILED = "llm_adapter_failed"
"""By adapter, version and reason: 1 for a wanted version that could not be loaded."""
METRIC_DOWNLOADED_BYTES = "llm_download_bytes"
METRIC_DOWNLOAD_SIZE_BYTES = "llm_download_size_bytes"
METRIC_DOWNLOAD_RATE = "llm_download_bytes_per_second"
"""Of the model, told by `fetch` on the port that `serve` takes afterwards."""

ADAPTER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""What an adapter may be called."""

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
    """One pinned version of a registered model; an alias never gets this far."""

    tracking_uri: str
    """Address of the MLflow server."""
    name: str
    """The registered model."""
    version: str
    """Its version, a number."""
    sub_path: str = ""
    """Folder inside the version's artifacts, where they hold several candidates."""
    anew: str | None = None
    """Tells it from an earlier version of the same number, which was deleted: a volume may still hold that one."""


class ModelConfig(_Section):
    """What to load and under which name to serve it."""

    name: str
    """The model id that clients send: the LLMDeployment's name."""
    mlflow: MlflowVersion | None = None
    """A version from MLflow; exactly one of this, `path` and `uri`."""
    path: str | None = None
    """A local folder instead of MLflow (stand-alone use)."""
    uri: str | None = None
    """`models:/name/3`, `models:/name@alias`, `models:/name/Stage` (also `Production|latest`: the first that there is),
    `models:/m-…`, `runs:/…`, `mlflow-artifacts:/…`,
    `hf://org/name@revision`, `file:///folder`, or `s3://`, `gs://`, `abfss://` where that client is installed.
    What may move is resolved once, when the model is fetched (stand-alone use)."""
    tracking_uri: str | None = None
    """Address of the MLflow server for `uri`; none: MLFLOW_TRACKING_URI."""
    sub_path: str | None = None
    """Folder inside what `uri` or `path` names, where it holds several candidates."""
    system_prompt: str = ""
    """Put before every conversation that brings no system message of its own."""
    chat_template: str = ""
    """A Jinja template that takes the place of the tokenizer's own."""


class AdapterConfig(_Section):
    """A LoRA adapter to load beside the model."""

    name: str
    """Clients ask for it as `<model>:<name>`."""
    path: str
    """Folder in PEFT's format: adapter_config.json and adapter_model.safetensors."""


class EngineConfig(_Section):
    """How to run the model. Lengths are in tokens."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto keeps the model's own on a GPU and takes float32 on a CPU."""
    max_model_length: Annotated[int, Field(ge=16)] = 4096
    """Prompt and answer together, at most."""
    max_batch_size: Annotated[int, Field(ge=1)] = 64
    """Sequences that run together, at most; fewer where memory does not hold their caches."""
    max_batch_tokens: Annotated[int, Field(ge=16)] = 2048
    """Tokens of one forward pass, at most."""
    max_queue_length: Annotated[int, Field(ge=1)] = 1024
    """Requests that may wait for a place in the batch; one more gets 429."""
    kv_cache_bytes: Annotated[int, Field(ge=1)] | None = None
    """Memory for keys and values; None: four fifths of what is free after loading; on an unlimited CPU, up to 4 GiB."""
    prefix_caching: bool = True
    """Keep keys and values of prompt beginnings, so that the next prompt that begins alike need not compute them."""
    quantization: Literal["none", "int8"] = "none"
    """int8 keeps linear weights as 8-bit integers with a scale for each output: less memory, small quality loss."""
    inter_token_goal_seconds: Annotated[float, Field(gt=0)] = 0.1
    """Prompts are read in chunks sized so that running streams rarely wait longer for their next token."""
    max_adapters: Annotated[int, Field(ge=1)] = 16
    """LoRA adapters in memory, at most; the one not used for longest makes room."""
    max_adapter_rank: Annotated[int, Field(ge=1)] = 64
    """Adapters of a higher rank are refused."""
    step_trace: str = ""
    """A file that gets a line of JSON for each step: how long its parts took and what was in it. Empty: none."""


class FilterPattern(_Section):
    """A pattern of your own for the filters."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
    """What a match is called in its place: `[NAME]`."""
    regex: Annotated[str, Field(min_length=1, max_length=1000)]
    """What to find, in Python's syntax without look-around and back-references."""


class FiltersConfig(_Section):
    """What must not pass in prompts, and not in answers: e-mail addresses, phone, card and account numbers, …"""

    pii: Literal["Disabled", "Mask", "Reject"] = "Disabled"
    """Personal data in prompts. Mask: the model sees `[EMAIL]` instead; Reject: the request gets 400."""
    output: Literal["Disabled", "Mask"] = "Disabled"
    """Personal data and control characters in answers."""
    patterns: Annotated[tuple[FilterPattern, ...], Field(max_length=32)] = ()
    """What else counts as such data."""


class CompletionCacheConfig(_Section):
    """Answers that were given before, for requests that are equal. Each key has its own."""

    enabled: bool = True
    """Whether to keep any."""
    entries: Annotated[int, Field(ge=1)] = 10_000
    """How many to keep in memory; the one not asked for longest goes."""
    ttl_seconds: Annotated[int, Field(ge=1)] = 3600
    """For how long."""
    # Left out while it is off: operators write the file for older runtimes, too, which refuse what they do not know.
    sampled: Annotated[bool, Field(exclude_if=lambda sampled: not sampled)] = False
    """Keep also what was sampled, not only what can have but one answer (greedy, seeded): an equal prompt then gets the
    answer that the first one got, for `ttlSeconds`."""
    database: bool = False
    """Keep them in the database, too, for other replicas and later starts. Their texts are stored there."""


class SessionsConfig(_Section):
    """Conversations that `/v1/chat` continues by `session_id`."""

    enabled: bool = True
    """Whether a `session_id` is taken."""
    ttl_seconds: Annotated[int, Field(ge=1)] = 7200
    """How long after its last message a conversation is kept."""
    max_sessions: Annotated[int, Field(ge=1)] = 10_000
    """In memory, at most; the one not used for longest goes."""
    max_messages: Annotated[int, Field(ge=2)] = 200
    """Of one conversation, at most; the oldest go."""


class ServerConfig(_Section):
    """How to answer HTTP."""

    max_request_bytes: Annotated[int, Field(ge=1024)] = 1 << 20
    """Largest request body; a larger one gets 413."""
    max_prompt_characters: Annotated[int, Field(ge=1)] = 32_000
    """Longest prompt."""
    request_timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Longest time that one request may take."""
    lazy_load: bool = False
    """Load the model with the first request instead of at the start; whoever comes meanwhile waits for it."""
    body_timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Longest time that a client may take to send its body; then it gets 408."""
    keep_alive_seconds: Annotated[int, Field(ge=1)] = 120
    """How long an idle connection is kept: longer than what stands in front keeps its own, which else answers 502."""
    slot_timeout_seconds: Annotated[float, Field(ge=0)] = 30.0
    """Longest time that a request waits for one of its key's concurrent places; then it gets 429."""
    filters: FiltersConfig = FiltersConfig()
    """What must not pass in prompts and answers."""
    completion_cache: CompletionCacheConfig = CompletionCacheConfig()
    """Answers to repeated deterministic requests."""
    sessions: SessionsConfig = SessionsConfig()
    """Conversations of `/v1/chat`."""
    trusted_proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    """Addresses or networks of proxies whose `X-Forwarded-For` is believed; `*`: all."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose browsers may call."""
    trusted_hosts: tuple[str, ...] = ()
    """Host headers that are answered; empty: any."""
    log_format: Literal["json", "console"] = "json"
    """How to log. A terminal gets `console` where nothing is said."""
    log_file: str = ""
    """A file to log to as well; empty: standard output only."""
    log_file_bytes: Annotated[int, Field(ge=4096)] = 10 << 20
    """Size at which it is put aside and a new one begun."""
    log_file_backups: Annotated[int, Field(ge=0, le=100)] = 5
    """How many of those put aside are kept."""
    drain_seconds: Annotated[float, Field(ge=0)] = 120.0
    """How long running streams may go on after SIGTERM."""


class Tier(_Section):
    """What its keys may use. An absent limit limits nothing. Months are UTC's."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    """Keys name it."""
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Requests within a minute."""
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Tokens of prompts and answers within a minute."""
    requests_per_month: Annotated[int, Field(ge=1)] | None = None
    """Requests within a month."""
    tokens_per_month: Annotated[int, Field(ge=1)] | None = None
    """Tokens of prompts and answers within a month."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = 5
    """Requests at the same time; more wait for their turn."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Of two requests that wait for the model, the one with the higher number goes first."""


STANDARD_TIER = Tier(name="standard")
"""The tier of keys that name none, where the configuration has none of that name."""


class DatabaseConfig(_Section):
    """Usage, and what else is kept. The address comes from DATABASE_URL or from here."""

    url: str = ""
    """`postgresql://…` or `sqlite:///file`; empty: `sqlite:///llm-runtime.db`; `none`: keep nothing."""
    flush_seconds: Annotated[float, Field(gt=0)] = 1.0
    """How long a usage row may wait to be written: what a kill -9 can lose."""
    max_pending_rows: Annotated[int, Field(ge=1)] = 100_000
    """Rows kept while the database is away; then the oldest are dropped, and counted."""
    retention_days: Annotated[int, Field(ge=0)] = 90
    """Rows of single requests are deleted after so many days, and daily sums of callers without a key; other sums stay.
    0: never."""
    store_prompts: bool = False
    """Store prompts and answers beside the usage."""


class RuntimeConfig(_Section):
    """The configuration file: everything a pod needs to know but its secrets."""

    model: ModelConfig
    adapters: tuple[AdapterConfig, ...] = ()
    default_adapter: str | None = None
    """The adapter that answers for the bare name of the model; `<model>:base` then is the model itself.
    None: the bare name is the model."""
    engine: EngineConfig = EngineConfig()
    server: ServerConfig = ServerConfig()
    authentication: Literal["Required", "Disabled"] = "Required"
    """Required: only holders of a key. Disabled: everybody who reaches the port."""
    tiers: tuple[Tier, ...] = ()
    """What the keys may use, by tier."""
    default_tier: str = STANDARD_TIER.name
    """The tier of keys that name none, and of clients without a key, each by its address."""
    database: DatabaseConfig = DatabaseConfig()
    """What is kept."""
    model_cache_bytes: Annotated[int, Field(ge=1)] | None = None
    """How much all fetched versions may take together. For a new one, those not used for longest are removed, never one
    in use. None: all are kept."""

    @model_validator(mode="after")
    def _default_tier_exists(self) -> "RuntimeConfig":
        names = [STANDARD_TIER.name, *(tier.name for tier in self.tiers)]
        if self.default_tier not in names:
            raise ValueError(f"defaultTier is {self.default_tier!r}; the tiers are {', '.join(names)}")
        return self


class _Additive(_Section):
    """A part of the key file. Unknown fields are skipped: a newer operator writes for older pods too, as its own

    update restarts none of them, and a pod that refused the whole file would no longer hear of revoked keys.
    """

    model_config = ConfigDict(extra="ignore")


class Limits(_Additive):
    """What a key may use beyond or below its tier; what is absent is the tier's."""

    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    requests_per_month: Annotated[int, Field(ge=1)] | None = None
    tokens_per_month: Annotated[int, Field(ge=1)] | None = None
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None


class KeyRecord(_Additive):
    """One API key as the runtime knows it: never the key, only its digest."""

    id: str
    """The public part of the key."""
    digest: str
    """`hash_key(key, salt)`, hexadecimal."""
    name: str
    """`namespace/name` of the ApiKey, for logs."""
    owner: str = ""
    """Who holds it, for the usage log."""
    expires_at: datetime | None = None
    """From then on the key is refused with 403."""
    suspended: bool = False
    """The key is refused with 403 while this is true."""
    tier: str = ""
    """Name of its tier; "" is the default one."""
    limits: Limits = Limits()
    """Of its own, over the tier's."""
    adapters: tuple[str, ...] = ()
    """Adapters that it may use beside the model itself; none named: all."""
    admin: bool = False
    """It may manage models and keys. Of no effect in a key file: the operator manages there."""


class FileTier(Tier):
    """A tier in the key file."""

    model_config = _Additive.model_config


class KeyFile(_Additive):
    """The mounted key file. `salt` makes the digests useless to any other deployment.

    Tiers come with it so that changed limits reach running pods as keys do: the configuration of a pod never changes.
    """

    salt: str
    """Key of the digests: the LLMDeployment's uid."""
    keys: tuple[KeyRecord, ...] = ()
    """All keys that open this deployment."""
    tiers: tuple[FileTier, ...] = ()
    """What the keys may use, by tier; with `defaultTier` they take the place of the configuration's."""
    default_tier: str = ""
    """The tier of keys that name none, and of clients without a key. Empty: the configuration says which and what."""


class RegistryAccess(_Additive):
    """An MLflow server and what it asks of those who fetch from it."""

    tracking_uri: str
    """Its address."""
    workspace: str = ""
    """MLflow's workspace; empty: the default one."""
    username: str = ""
    """For basic authentication."""
    password: Annotated[str, Field(repr=False)] = ""
    """For basic authentication."""
    token: Annotated[str, Field(repr=False)] = ""
    """A bearer token."""
    ca: str = ""
    """Certificate authority as PEM text; empty: those that Python trusts."""
    artifact_hosts: tuple[str, ...] = ()
    """Hosts, as `host` or `host:port`, that serve artifacts beside the server: credentials go to no other."""


class PinnedAdapter(_Additive):
    """A LoRA adapter as a version of a registered model; an alias never gets this far."""

    name: Annotated[str, Field(pattern=ADAPTER_NAME)]
    """Clients ask for it as `<model>:<name>`."""
    connection: str = "default"
    """The MLflow server, one of `connections`."""
    model: str
    """The registered model."""
    version: str
    """Its version, a number."""
    sub_path: str = ""
    """Folder inside the version's artifacts, where they hold several adapters."""


class AdapterFile(_Additive):
    """The adapters that a server has loaded beside its model. Changed while it serves, nothing restarts.

    Where another container fetches them, the credentials are in its `RegistriesFile` and not here.
    """

    connections: dict[str, RegistryAccess] = {}
    """The servers that the adapters come from, by name. What is loaded stays when its server is not here any more."""
    adapters: tuple[PinnedAdapter, ...] = ()
    """In the order of the specification; over `engine.maxAdapters` the first are loaded."""
    default_adapter: str = ""
    """The one that answers for the bare name of the model, over the configuration's; empty: as configured there."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> "AdapterFile":
        names = [adapter.name for adapter in self.adapters]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the adapter {min(twice)!r} is named twice")
        return self


class RegistriesFile(_Additive):
    """What it takes to fetch adapters: for the container that fetches them, and for no other."""

    connections: dict[str, RegistryAccess] = {}
    """As in the list of adapters, with credentials."""


class FatalReport(_Section):
    """The last log line of a `fetch` or `serve` that gave up: the kubelet carries it into the pod's status.

    Pods set `terminationMessagePolicy: FallbackToLogsOnError`, so no path has to be agreed on.
    """

    reason: str
    """CamelCase, from `errors.Fatal` subclasses: ModelNotFound, ModelCorrupt, DiskFull, RegistryDenied, …"""
    message: str
    """What happened, to what, what to do next."""


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

    A slow hash would add nothing: the secret part has 256 random bits (RFC 2104 for the construction).
    """
    return hmac.new(salt.encode(), key.encode(), hashlib.sha256).hexdigest()


def report_from_termination_message(text: str) -> FatalReport | None:
    """Find the FatalReport in a container's termination message (the tail of its log), newest first."""
    for line in reversed(text.strip().splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("reason"), str) and "message" in record:
            return FatalReport(reason=record["reason"], message=str(record["message"]))
    return None
