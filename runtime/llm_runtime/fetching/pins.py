"""Remembers what each `model.uri` last resolved to,
so that it can be served while the registry is unreachable."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from llm_runtime.contract import ENV_MLFLOW_WORKSPACE, MlflowVersion
from llm_runtime.fetching.sources import Pinned, Reference


class Pins:
    """One small file in the models folder for each reference that may change (an alias, a stage,
    a branch)."""

    def __init__(self, models: Path) -> None:
        self._models = models

    def remember(self, reference: Reference, version: MlflowVersion | Pinned) -> None:
        """Record what `reference` resolved to. Raises OSError."""
        kind = "version" if isinstance(version, MlflowVersion) else "place"
        what = version.model_dump() if isinstance(version, MlflowVersion) else asdict(version)
        content = json.dumps({"uri": reference.uri, kind: what})
        file = self._file(reference)
        # No write without a change: the volume may be read-only.
        if file.is_file() and file.read_text(encoding="utf-8") == content:
            return
        fresh = file.with_name(f"{file.name}.{os.getpid()}")
        fresh.write_text(content, encoding="utf-8")
        fresh.replace(file)

    def last(self, reference: Reference) -> MlflowVersion | Pinned | None:
        """What `reference` last resolved to; None without a readable record."""
        try:
            record = json.loads(self._file(reference).read_text(encoding="utf-8"))
            return (
                MlflowVersion(**record["version"])
                if "version" in record
                else Pinned(**record["place"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _file(self, reference: Reference) -> Path:
        who = (
            reference.uri,
            reference.tracking_uri,
            reference.sub_path,
            os.environ.get(ENV_MLFLOW_WORKSPACE, ""),
        )
        return self._models / f".pin-{hashlib.sha256(json.dumps(who).encode()).hexdigest()[:16]}"
