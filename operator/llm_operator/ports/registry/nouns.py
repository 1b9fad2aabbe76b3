"""The port to model registries (`RegistryClient`), and the types of its questions and answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from llm_operator.state import Connection, ModelVersion


@dataclass(frozen=True)
class Reference:
    """What the specification asks for: exactly one of alias, version, stage."""

    name: str
    alias: str | None = None
    version: str | None = None
    stage: str | None = None
    field: str = field(default="spec.model.mlflow", compare=False)
    """Where it is written, for messages."""

    def __str__(self) -> str:
        return (
            f"{self.name}@{self.alias}"
            if self.alias
            else f"{self.name}/{self.version or self.stage}"
        )


@dataclass(frozen=True)
class Choices:
    """The names that exist where a reference names something that does not."""

    names: Mapping[str, str]
    """Names, versions, aliases or stages,
    and for the latter two the version that each stands for."""
    more: bool = False
    """Whether more names exist than these."""


@dataclass(frozen=True)
class ModelSummary:
    """The moving parts of one registered model: alias → version and stage → newest version."""

    aliases: dict[str, str]
    stages: dict[str, str]
    registered_at: str = ""
    """When the registry says that the model was registered."""


class Registry(Protocol):
    """What the operator asks MLflow."""

    async def resolve(self, connection: Connection, reference: Reference) -> ModelVersion:
        """The version that the reference stands for now. Raises RegistryFault."""

    async def summary(self, connection: Connection) -> dict[str, ModelSummary]:
        """All registered models of one server, by name. Raises RegistryFault."""

    async def tags(self, connection: Connection, name: str, version: str) -> dict[str, str]:
        """The tags of a model version. Raises RegistryFault."""

    async def tag(
        self, connection: Connection, name: str, version: str, key: str, value: str
    ) -> None:
        """Set a tag on a model version. Raises RegistryFault."""

    async def untag(self, connection: Connection, name: str, version: str, key: str) -> None:
        """Take a tag from a model version. Raises RegistryFault."""

    async def tagged(
        self, connection: Connection, key: str
    ) -> dict[tuple[str, str], dict[str, str]]:
        """All tags of the model versions that have one of this key, by name and version.
        Raises RegistryFault."""


class RegistryClient(Registry, Protocol):
    """A registry that can also list what exists when a reference matches nothing."""

    async def choices(
        self, connection: Connection, reference: Reference, *, model: bool
    ) -> Choices:
        """What a reference that stands for nothing could name:
        another `model`, else another alias, version or stage.

        One request. Raises RegistryFault.
        """
