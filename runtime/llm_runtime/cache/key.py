"""Cache keys: a digest of everything that decides an answer,
which are the model's setup, the tenant and the request.

It is computed before a prompt is tokenized, so that a cache hit costs no tokenizing.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from uuid import uuid4

from llm_runtime.contract import RuntimeConfig
from llm_runtime.job import Job
from llm_runtime.request import Sampling

NOT_THE_ANSWER = frozenset(
    {
        "id",
        "endpoint",
        "request_id",
        "caller",
        "stream",
        "user",
        "prompt_field",
        "constraint_field",
        "idempotency_key",
    }
)
"""Fields of a job that its answer does not depend on. `caller` is in the key by its id."""
APART = frozenset({"sampling"})

_asked = attrgetter(
    *(field.name for field in fields(Job) if field.name not in NOT_THE_ANSWER | APART)
)
_sampling = attrgetter(
    *(field.name for field in fields(Sampling) if field.name != "stop_token_ids")
)


def job_digest(model: str, job: Job) -> str:
    """The key of a job's answer by `model`: SHA-256 in hexadecimal."""
    sampling = job.sampling
    # Sorted, because a set has no fixed order.
    # `repr` is unambiguous: it distinguishes 1, True and "1".
    parts = (
        model,
        job.caller.id,
        _asked(job),
        _sampling(sampling),
        sorted(sampling.stop_token_ids),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def model_digest(config: RuntimeConfig, version: str = "") -> str:
    """Digest of everything about a model that decides its answers.
    A swap changes it, and so invalidates all of them.

    `version` is what a `uri` resolved to.
    An unknown version must never match, so a random value takes its place.
    """
    folders = [
        path for path in (config.model.path, *(adapter.path for adapter in config.adapters)) if path
    ]
    parts = (
        config.model.model_dump_json(),
        [adapter.model_dump_json() for adapter in config.adapters],
        config.engine.model_dump_json(),
        config.server.filters.model_dump_json(),
        config.server.max_prompt_characters,
        [_files(Path(folder)) for folder in folders],
        *([version or uuid4().hex] if config.model.uri else []),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a folder's files.
    Unlike a version in a registry, a folder may change."""
    return sorted(_look(folder, folder.rglob("*"))) if folder.is_dir() else []


def _look(folder: Path, paths: Iterable[Path]) -> Iterable[tuple[str, int, int]]:
    for path in paths:
        if path.is_file():
            stat = path.stat()
            yield str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns
