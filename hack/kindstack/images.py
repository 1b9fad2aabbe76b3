"""Our two images, built by the repository's own Dockerfiles on the base that can be had here."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable

from kindstack import base
from kindstack.engine import Engine
from kindstack.shell import ROOT

OPERATOR = "llm-operator:kind"
RUNTIME = "llm-runtime:kind"
ALL = (OPERATOR, RUNTIME)
# What `docker build` of the runtime gets, as a shell writes it:
# E2E_KIND_BUILD_ARGS="--build-arg TORCH_INDEX=…".
OPTIONS = "E2E_KIND_BUILD_ARGS"
# The nodes have no GPU, and the image for them is four times as large to build and to load.
FOR_CPUS = "--build-arg ACCELERATOR=cpu"


def build(engine: Engine, name: str, progress: Callable[[str], None]) -> None:
    """Build `llm-operator:kind` or `llm-runtime:kind`;
    the engine's cache makes an unchanged one quick."""
    program = name.partition(":")[0].removeprefix("llm-")
    origin = base.plain(engine, progress)
    more = shlex.split(os.environ.get(OPTIONS, FOR_CPUS)) if name == RUNTIME else []
    engine.docker(
        *("build", "--network", "host", "--file", ROOT / f"Dockerfile.{program}", "--tag", name),
        *(
            "--build-arg",
            f"BASE_IMAGE={origin}",
            "--build-arg",
            f"BUILD_IMAGE={base.for_building(engine, origin)}",
        ),
        *more,
        ROOT,
    )
