"""What people read of the chart before they install it:
its README, and the annotations that Artifact Hub shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from devstack import chart_values
from llm_operator import crds
from unit.chart.rendered import CHART, Chart

pytestmark = pytest.mark.timeout(20)
DESCRIBED = yaml.safe_load((CHART / "Chart.yaml").read_text())


def shown(name: str) -> list[dict[str, object]]:
    found = yaml.safe_load(DESCRIBED["annotations"][f"artifacthub.io/{name}"])
    assert isinstance(found, list)
    return found


def test_artifact_hub_is_told_the_images_that_are_installed(chart: Chart) -> None:
    operator = chart.one("Deployment")["spec"]["template"]["spec"]["containers"][0]["image"]
    runtime = yaml.safe_load(chart.one("ConfigMap")["data"]["config.yaml"])["runtimeImage"]
    assert {each["name"]: each["image"] for each in shown("images")} == {
        "llm-operator": operator,
        "llm-runtime": runtime,
    }


def test_artifact_hub_is_told_the_kinds_with_an_example_of_each() -> None:
    ours = {
        (crd["spec"]["names"]["kind"], crd["metadata"]["name"], crd["spec"]["versions"][0]["name"])
        for crd in crds.definitions().values()
    }
    assert {(each["kind"], each["name"], each["version"]) for each in shown("crds")} == ours
    for example in shown("crdsExamples"):
        spec = {"LLMDeployment": crds.LLMDeploymentSpec, "ApiKey": crds.ApiKeySpec}[
            str(example["kind"])
        ]
        assert spec.model_validate(example["spec"])
    assert len(shown("crdsExamples")) == len(ours)


def test_artifact_hub_is_told_what_changed() -> None:
    assert {each["kind"] for each in shown("changes")} <= {
        "added", "changed", "deprecated", "removed", "fixed", "security"
    }  # fmt: skip


def written(folder: Path, values: str, schema: str) -> Path:
    (folder / "values.yaml").write_text(values)
    (folder / "values.schema.json").write_text(schema)
    (folder / "README.md").write_text(f"# x\n{chart_values.BEGIN}old\n{chart_values.END}after\n")
    return folder


SCHEMA = (
    '{"properties": {"a": {"type": "object", "properties":'
    ' {"b": {"type": "integer"}, "c": {"enum": ["x", "y"]}}}}}'
)


def test_a_value_has_its_comment_or_that_of_its_section(tmp_path: Path) -> None:
    page = chart_values.page(
        written(tmp_path, "# The a.\na:\n  b: 1\n  # Two\n  # lines | wide.\n  c: x\n", SCHEMA)
    )
    assert "| `a.b` | integer | `1` | The a. |" in page
    assert '| `a.c` | `x`, `y` | `"x"` | Two lines \\| wide. |' in page
    assert page.endswith("after\n")
    assert "old" not in page


@pytest.mark.parametrize(
    ("values", "named"),
    [("a:\n  b: 1\n", "a.b has no comment"), ("# A.\na:\n  d: 1\n", "does not know d")],
)
def test_a_value_without_words_or_unknown_to_the_schema_is_named(
    tmp_path: Path, values: str, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        chart_values.page(written(tmp_path, values, SCHEMA))
