"""$(VAR), the downward API and quantities."""

from __future__ import annotations

import pytest

from node.expand import expand, field, quantity, resource

POD = {
    "metadata": {
        "name": "web",
        "namespace": "team",
        "uid": "1",
        "labels": {"app": "web", "llm-operator.dev/revision": "abc"},
        "annotations": {"note": 'say "hi"'},
    },
    "spec": {"nodeName": "process-node"},
    "status": {"podIP": "127.10.0.1", "hostIP": "127.0.0.1"},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--port=$(PORT)", "--port=8000"),
        ("$(UNKNOWN) stays", "$(UNKNOWN) stays"),
        ("$$(PORT)", "$(PORT)"),
        ("$PORT ${PORT}", "$PORT ${PORT}"),
        ("$(HOST):$(PORT)", "h:8000"),
    ],
)
def test_references_expand_as_the_kubelet_does(text: str, expected: str) -> None:
    assert expand(text, {"PORT": "8000", "HOST": "h"}) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("metadata.name", "web"),
        ("metadata.labels['llm-operator.dev/revision']", "abc"),
        ("metadata.annotations['none']", ""),
        ("metadata.annotations", 'note="say \\"hi\\""'),
        ("metadata.labels", 'app="web"\nllm-operator.dev/revision="abc"'),
        ("spec.serviceAccountName", "default"),
        ("status.podIP", "127.10.0.1"),
    ],
)
def test_field_of_the_downward_api(path: str, expected: str) -> None:
    assert field(POD, path) == expected


def test_unknown_field_names_itself() -> None:
    with pytest.raises(KeyError, match=r"spec\.hostname"):
        field(POD, "spec.hostname")


@pytest.mark.parametrize(
    ("text", "number"), [("100m", 0.1), ("2", 2), ("1.5Gi", 1.5 * 2**30), ("3k", 3000)]
)
def test_quantities(text: str, number: float) -> None:
    assert quantity(text) == number


def test_resource_rounds_up_and_falls_back_to_the_node() -> None:
    container = {"resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}}}
    assert resource(container, {"resource": "limits.cpu"}, {}) == "2"
    assert resource(container, {"resource": "limits.memory", "divisor": "1Mi"}, {}) == "1024"
    assert resource({}, {"resource": "limits.cpu"}, {"cpu": "4"}) == "4"
