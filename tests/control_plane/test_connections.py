"""The registry port against real MLflow servers: with users and passwords, and with workspaces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from devstack.registry import MlflowServer
from guarded_mlflow import ADMIN, READER, ask, guarded_mlflow
from llm_operator.ports.registry import (
    AliasNotFound,
    CachedRegistry,
    MlflowRegistry,
    ModelNotFound,
    Reference,
    RegistryDenied,
    RegistryFault,
)
from llm_operator.state import Connection

pytestmark = [pytest.mark.control_plane, pytest.mark.timeout(600)]
BOT = Reference("bot", alias="champion")


def register(
    uri: str, source: str, auth: tuple[str, str] | None = None, workspace: str = ""
) -> None:
    """Model `bot` with one version, the champion."""
    ask(uri, "2.0/mlflow/registered-models/create", auth, workspace, name="bot")
    ask(uri, "2.0/mlflow/model-versions/create", auth, workspace, name="bot", source=source)
    ask(
        uri,
        "2.0/mlflow/registered-models/alias",
        auth,
        workspace,
        name="bot",
        alias="champion",
        version="1",
    )


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that wants a name and a password."""
    with guarded_mlflow(tmp_path_factory.mktemp("guarded")) as uri:
        register(uri, "s3://models/bot", ADMIN)
        yield uri


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with workspaces; the model is in one of them."""
    server = MlflowServer(tmp_path_factory.mktemp("shared"), options=("--enable-workspaces",))
    server.start()
    ask(server.uri, "3.0/mlflow/workspaces", name="team-a")
    register(server.uri, "s3://models/team-a/bot", workspace="team-a")
    yield server.uri
    server.stop()


@pytest.fixture
def registry() -> MlflowRegistry:
    return MlflowRegistry()


def as_user(uri: str, user: tuple[str, str]) -> Connection:
    return Connection("default", uri, username=user[0], password=user[1])


async def test_a_name_and_a_password_open_a_guarded_server(
    guarded: str, registry: MlflowRegistry
) -> None:
    connection = as_user(guarded, ADMIN)
    assert (await registry.resolve(connection, BOT)).version == "1"
    assert (await registry.summary(connection))["bot"].aliases == {"champion": "1"}
    with pytest.raises(AliasNotFound):
        await registry.resolve(connection, replace(BOT, alias="challenger"))


@pytest.mark.parametrize("user", [("admin", "guessed"), ("nobody", "x"), ("", "")])
async def test_a_wrong_password_is_denied(
    guarded: str, registry: MlflowRegistry, user: tuple[str, str]
) -> None:
    with pytest.raises(RegistryDenied, match="password"):
        await registry.resolve(as_user(guarded, user), BOT)


async def test_who_may_only_read_resolves_and_writes_no_tags(
    guarded: str, registry: MlflowRegistry
) -> None:
    connection = as_user(guarded, READER)
    assert (await registry.resolve(connection, BOT)).version == "1"
    with pytest.raises(RegistryDenied):
        await registry.tag(connection, "bot", "1", "team/bot", "Promoted")
    assert await registry.tags(connection, "bot", "1") == {}


async def test_tags_are_written_by_who_may_edit(guarded: str, registry: MlflowRegistry) -> None:
    connection = as_user(guarded, ADMIN)
    key = f"{'n' * 63}/{'d' * 40}"
    await registry.tag(connection, "bot", "1", key, "Failed")
    await registry.tag(connection, "bot", "1", key, "Promoted")
    assert (await registry.tags(connection, "bot", "1"))[key] == "Promoted"
    assert await registry.tagged(connection, key) == {("bot", "1"): {key: "Promoted"}}
    await registry.untag(connection, "bot", "1", key)
    assert await registry.tagged(connection, key) == {}


@pytest.mark.parametrize(
    ("user", "reference", "said"),
    [
        (
            ADMIN,
            Reference("bto", alias="champion"),
            "push FOLDER --name bto), or correct spec.model.mlflow.name",
        ),
        (ADMIN, Reference("bto", alias="champion"), "there is: bot"),
        (
            READER,
            Reference("bto", alias="champion"),
            "there is: bot",
        ),  # MLflow denies what does not exist.
        (READER, Reference("bot", alias="champoin"), "there is: champion (version 1)"),
        (READER, Reference("bot", version="9"), "there is: 1"),
    ],
)
async def test_what_there_is_is_listed_for_what_there_is_not(
    guarded: str, registry: MlflowRegistry, user: tuple[str, str], reference: Reference, said: str
) -> None:
    with pytest.raises(RegistryFault) as raised:
        await CachedRegistry(registry, 30, 5).resolve(as_user(guarded, user), reference)
    assert said in str(raised.value)


async def test_a_workspace_goes_along_with_every_question(
    shared: str, registry: MlflowRegistry
) -> None:
    mine = Connection("default", shared, workspace="team-a")
    other = Connection("default", shared)
    assert (await registry.resolve(mine, BOT)).version == "1"
    assert "bot" in await registry.summary(mine)
    await registry.tag(mine, "bot", "1", "team/bot", "Promoted")
    assert await registry.tags(mine, "bot", "1")
    assert "bot" not in await registry.summary(other)
    with pytest.raises(ModelNotFound):
        await registry.resolve(other, BOT)
