"""The chart as the real helm renders it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "llm-operator"
Json = dict[str, Any]


class Chart:
    """Renders the chart with some values, under the release's usual name."""

    def __init__(self, helm: str) -> None:
        self.helm = helm

    def template(self, *flags: str, **values: Any) -> subprocess.CompletedProcess[str]:
        place = ("llm-operator", str(CHART), "--namespace", "llm-operator-system")
        command = [self.helm, "template", *place, *flags, "--values", "-"]
        return subprocess.run(
            command, input=json.dumps(values), capture_output=True, text=True, check=False
        )

    def objects(self, **values: Any) -> list[Json]:
        """Without the pod of `helm test`."""
        rendered = self.template("--skip-tests", **values)
        assert rendered.returncode == 0, rendered.stderr
        return [found for found in yaml.safe_load_all(rendered.stdout) if found]

    def all(self, kind: str, **values: Any) -> list[Json]:
        return [each for each in self.objects(**values) if each["kind"] == kind]

    def one(self, kind: str, **values: Any) -> Json:
        (found,) = self.all(kind, **values)
        return found

    def test_pod(self, **values: Any) -> Json:
        """The pod of `helm test`."""
        rendered = self.template("--show-only", "templates/tests/installed.yaml", **values)
        assert rendered.returncode == 0, rendered.stderr
        return dict(yaml.safe_load(rendered.stdout))
