"""What decides an answer, as one digest: the model with everything around it, the tenant, and what was asked.

Computed before a prompt is encoded, so that a hit costs no tokenizing.
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
    {"id", "endpoint", "request_id", "caller", "stream", "user", "prompt_field", "constraint_field", "idempotency_key"}
)
"""Fields of a job that its answer does not depend on; `caller` is in the key by its id."""
APART = frozenset({"sampling"})

_asked = attrgetter(*(each.name for each in fields(Job) if each.name not in NOT_THE_ANSWER | APART))
_sampling = attrgetter(*(each.name for each in fields(Sampling) if each.name != "stop_token_ids"))


def job_digest(model: str, job: Job) -> str:
    """SHA-256, hexadecimal."""
    sampling = job.sampling
    # A set has no order of its own. `repr` tells 1 from True and from "1", and quotes what it quotes.
    parts = (model, job.caller.id, _asked(job), _sampling(sampling), sorted(sampling.stop_token_ids))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def model_digest(config: RuntimeConfig, version: str = "") -> str:
    """Of everything that stands fixed around a model's answers. A swap changes it, and so invalidates all of them.

    `version`: what a `uri` stands for; one of which that is not known is another model each time.
    """
    folders = [path for path in (config.model.path, *(adapter.path for adapter in config.adapters)) if path]
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
    """A folder, unlike a version in a registry, may hold something else tomorrow."""
    return sorted(_look(folder, folder.rglob("*"))) if folder.is_dir() else []


def _look(folder: Path, paths: Iterable[Path]) -> Iterable[tuple[str, int, int]]:
    for path in paths:
        if path.is_file():
            found = path.stat()
            yield str(path.relative_to(folder)), found.st_size, found.st_mtime_ns
