"""The Gateway API's CRD, out of the Go module that hack/gateway/go.mod names:
fetched once into Go's module cache."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from devstack import golang
from devstack.waits import complain, waiting

SOURCE = Path(__file__).resolve().parents[2] / "hack" / "gateway"
MODULE = "sigs.k8s.io/gateway-api"


class GatewayError(RuntimeError):
    """The CRDs can't be had; the message has what Go said."""


def http_route_crd() -> dict[str, Any]:
    """The CRD of HTTPRoute, standard channel. Raises GatewayError."""
    file = _module() / "config" / "crd" / "standard" / "gateway.networking.k8s.io_httproutes.yaml"
    return dict(yaml.safe_load(file.read_text()))


def _module() -> Path:
    """The folder of the module's files, checked against hack/gateway/go.sum."""
    command = ["go", "mod", "download", "-json", MODULE]
    try:
        environment = golang.environment()
    except golang.GoError as error:
        raise GatewayError(str(error)) from error
    with waiting(lambda: f"  fetching {MODULE}", complain):
        done = subprocess.run(
            command, cwd=SOURCE, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise GatewayError(
            f"{MODULE} can't be fetched: {golang.reason((done.stderr or done.stdout).splitlines())}"
        )
    return Path(json.loads(done.stdout)["Dir"])
