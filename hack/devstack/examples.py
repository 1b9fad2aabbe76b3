"""config.example.yaml and .env.example from the code:
every key with its default and what it is for.

`python -m devstack.examples FOLDER` writes both into FOLDER; hack/generate calls it.
"""

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticUndefined

from llm_runtime.contract import RuntimeConfig
from llm_runtime.settings import Environment

HEAD = """\
# The runtime's configuration, for `llm-runtime serve --config FILE`. JSON works too; names may also be written in
# snake_case. What is commented out shows its default. In a pod the operator writes this file.
# Made by hack/generate from the code; do not edit.
"""
ENV_HEAD = """\
# For a stand-alone server: copy to `.env`. The environment wins over `.env`, and both win over the configuration file.
# Made by hack/generate from the code; do not edit.
"""
ENV_TAIL = """\

# Every key of the configuration file, nested with two underscores; lists with commas, lists of objects in JSON:
# ENGINE__MAX_MODEL_LENGTH=4096
# SERVER__LOG_FORMAT=console
# SERVER__CORS_ORIGINS=https://app.example.com,https://admin.example.com
# SERVER__COMPLETION_CACHE__ENABLED=false
# MODEL__SYSTEM_PROMPT=You are a helpful assistant.
# AUTHENTICATION=Disabled
# TIERS=[{"name": "free", "requestsPerMinute": 10, "tokensPerMonth": 100000}]
# DEFAULT_TIER=free
"""
EXAMPLE = {
    "model.name": "support-bot",
    "model.mlflow.trackingUri": "http://localhost:5000",
    "model.mlflow.name": "support-bot",
    "model.mlflow.version": "1",
}
"""What the example sets; a file without it would not start."""
ENV_EXAMPLE = {
    "MODEL_NAME": "support-bot",
    "MODEL_VERSION": "1",
    "MLFLOW_TRACKING_URI": "http://localhost:5000",
}
LISTS = {"adapters", "tiers", "server.filters.patterns"}
"""Lists of objects: their fields are shown, too."""


def main() -> None:
    """Write both into the folder named on the command line."""
    folder = Path(sys.argv[1])
    (folder / "config.example.yaml").write_text(
        HEAD + "\n".join(section(RuntimeConfig, "", "")) + "\n"
    )
    (folder / ".env.example").write_text(ENV_HEAD + "\n".join(variables()) + "\n" + ENV_TAIL)


def section(model: type[BaseModel], path: str, indent: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = to_camel(name)
        here = f"{path}{key}"
        inner = inner_model(field.annotation)
        live = any(known == here or known.startswith(f"{here}.") for known in EXAMPLE)
        yield from remark(field.description or "", indent)
        live = live or (not path and inner is not None and here not in LISTS)
        mark = indent if live else f"{indent}# "
        if inner and here in LISTS:
            yield f"{mark}{key}: []"
            yield from listed(inner, indent)
        elif inner:
            yield f"{mark}{key}:"
            yield from section(inner, f"{here}.", f"{indent}  ")
        else:
            default = field.get_default(call_default_factory=True)
            value = EXAMPLE.get(here, None if default is PydanticUndefined else default)
            yield f"{mark}{key}: {shown(value)}"


def listed(model: type[BaseModel], indent: str) -> Iterator[str]:
    """The fields of a list's items, to copy from."""
    yield f"{indent}## Each has:"
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        text = "required" if default is PydanticUndefined else shown(default)
        yield from remark(f"  {to_camel(name)} ({text}): {field.description or ''}", indent)


def remark(text: str, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(text, 117 - len(indent)):
        yield f"{indent}## {line}"


def inner_model(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def shown(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def variables() -> Iterator[str]:
    for name, field in Environment.model_fields.items():
        variable = name.upper()
        yield ""
        yield from (line.replace("##", "#", 1) for line in remark(field.description or "", ""))
        if variable in ENV_EXAMPLE:
            yield f"{variable}={ENV_EXAMPLE[variable]}"
        else:
            default = field.get_default()
            yield (
                f"# {variable}={'' if default is None else str(default).lower() if default is False else default}"
            )


if __name__ == "__main__":
    main()
