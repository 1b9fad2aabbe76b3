"""helm and the chart, for all tests of this folder."""

import subprocess

import pytest

from unit.chart.rendered import ROOT, Chart


@pytest.fixture(scope="session")
def helm() -> str:
    """Built by hack/kube with the control plane; a second call returns at once."""
    built = subprocess.run(
        [ROOT / "hack" / "kube" / "build"], stdout=subprocess.PIPE, text=True, check=True
    )
    return f"{built.stdout.strip()}/helm"


@pytest.fixture
def chart(helm: str) -> Chart:
    return Chart(helm)
