"""Names of settings in other servers of this kind,
and their names here, for hints and for conversion. Never guessed.

One table for YAML keys and for the environment: `security.api_key` is `SECURITY__API_KEY` there.
"""

ONE_PROCESS = "gone: one process serves each model; run more replicas instead"
SAMPLING = "a field of each request"
STAGE = "part of model.uri: models:/name/Production"

RENAMED = {
    "api.host": "API_HOST in the environment, or --host",
    "api.port": "API_PORT in the environment, or --port",
    "api.workers": ONE_PROCESS,
    "app.name": "model.name",
    "app.host": "API_HOST in the environment, or --host",
    "app.port": "API_PORT in the environment, or --port",
    "app.workers": ONE_PROCESS,
    "app.debug": "DEBUG in the environment",
    "model.source": (
        "model.path for a folder, model.uri for the rest: hf://org/name@revision,"
        " models:/name/Production"
    ),
    "model.stage": STAGE,
    "model.device": "engine.device",
    "model.max_tokens": "engine.maxModelLength, for prompt and answer together",
    "model.default_max_length": f"max_length or max_tokens, {SAMPLING}",
    "model.temperature": f"temperature, {SAMPLING}",
    "model.top_p": f"top_p, {SAMPLING}",
    "model.batch_size": "engine.maxBatchSize",
    "mlflow.tracking_uri": "model.mlflow.trackingUri",
    "mlflow.model_name": "model.mlflow.name",
    "mlflow.model_version": "model.mlflow.version",
    "mlflow.model_stage": STAGE,
    "security.api_key": "API_KEY in the environment",
    "security.max_prompt_chars": "server.maxPromptCharacters",
    "rate_limit.enabled": "tiers[].requestsPerMinute: a tier without it has no such limit",
    "rate_limit.requests_per_minute": "tiers[].requestsPerMinute",
    "rate_limit.burst_size": (
        "tiers[].requestsPerMinute: a whole minute's requests may come at once"
    ),
    "cache.enabled": "server.completionCache.enabled",
    "cache.size": "server.completionCache.entries",
    "cache.ttl_seconds": "server.completionCache.ttlSeconds",
    "chat_history.enabled": "server.sessions.enabled",
    "chat_history.ttl_seconds": "server.sessions.ttlSeconds",
    "logging.level": "LOG_LEVEL in the environment",
    "logging.format": "server.logFormat",
    "logging.file": "server.logFile",
}
"""New names by old ones, in snake case.
A section that does not exist here is renamed with all its unlisted keys."""

VARIABLES = {
    "API_WORKERS": ONE_PROCESS,
    "MODEL_STAGE": (
        "part of an address: MODEL__URI=models:/name/Production, beside MLFLOW_TRACKING_URI"
    ),
    "MODEL_ID": "MODEL__URI=hf://org/name@revision, or MODEL_PATH for a folder",
    "MODEL_DEVICE": "ENGINE__DEVICE",
}
"""Environment variables that are not part of a section."""

HARMLESS = {"API_WORKERS": "1"}
"""Settings without effect, because they state what is always the case here."""

FOREIGN = frozenset(name.partition(".")[0] for name in RENAMED) - {"model"}
"""Sections of other servers that do not exist here."""


def now_called(path: tuple[str, ...]) -> str | None:
    """The name here of another server's key, given as its path in snake case;
    None if it is not a known one."""
    if name := RENAMED.get(".".join(path)):
        return name
    return (
        f"not known here; docs/reference.md has what replaces `{path[0]}`"
        if path[0] in FOREIGN
        else None
    )
