"""The compose stack on a real engine: `hack/e2e-compose` has prepared images and settings,
and removes all of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from compose.site import Site
from kindstack.compose import Stack
from kindstack.shell import KindError
from unit.runtime import tiny_model
from waiting import eventually

ORDER = ("stack", "watching", "failures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a newcomer does comes first, what breaks the stack last."""
    ours = [item for item in items if item.path.parent == Path(__file__).parent]
    ours.sort(key=lambda item: ORDER.index(item.path.stem.removeprefix("test_")))
    items[:] = [item for item in items if item not in ours] + ours


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    try:
        stack = Stack.attach()
    except KindError as error:
        pytest.skip(str(error))
    models = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("first", "second")):
        tiny_model.make(models / name, seed=seed)
    made = Site(stack, models)
    stack("up", "--detach", "--wait", *(name for name in stack.services if name != "runtime"))
    assert "version: 1" in made.push("first")
    stack("up", "--detach", "--wait", *stack.services)
    eventually(made.serves)
    yield made
    made.runtime.close()
    made.prometheus.close()
