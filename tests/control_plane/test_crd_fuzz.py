"""What the API server accepts, the operator carries:
wild specifications of the unit tests' fuzz, asked for real."""

from __future__ import annotations

import json

import pytest

from control_plane.operator_fixtures import Api, Refusal
from control_plane.test_crds import GOOD, KEY, create
from crd_fuzz import specification
from llm_operator.crds import ApiKeySpec, LLMDeploymentSpec

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
SEEDS = range(120)


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize(
    ("manifest", "model"), [(GOOD, LLMDeploymentSpec), (KEY, ApiKeySpec)], ids=["llmd", "key"]
)
def test_the_api_server_and_the_models_take_the_same(
    api: Api, manifest: dict[str, object], model: type[LLMDeploymentSpec | ApiKeySpec], block: int
) -> None:
    for seed in SEEDS[block::4]:
        spec = specification(str(manifest["kind"]), seed)
        try:
            model.model_validate(create(api, {**manifest, "spec": spec})["spec"])
        except (Refusal, ValueError) as error:
            if "is not a regular expression" not in str(
                error
            ) and "matches the empty text" not in str(error):
                raise AssertionError(f"seed {seed}: {json.dumps(spec)[:3000]}") from error
