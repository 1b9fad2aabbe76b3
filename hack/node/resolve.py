"""Resolves a container's spec to the environment and command of a process."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from node.api import Api, ApiError, Json
from node.expand import expand, resource
from node.expand import field as pod_field
from node.paths import rewrite

VALID_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")


class ConfigError(RuntimeError):
    """Something that the spec refers to is missing. Worth a retry."""


@dataclass
class Sources:
    """Reads ConfigMaps and Secrets of one namespace, each at most once per container start."""

    api: Api
    namespace: str
    _seen: dict[str, Json | None] = field(default_factory=dict)

    async def data(self, kind: str, name: str, optional: bool) -> dict[str, bytes] | None:
        """All keys of `configmaps` or `secrets`/`name`;
        None when it is optional and missing. Raises ConfigError."""
        path = f"/api/v1/namespaces/{self.namespace}/{kind}/{name}"
        if path not in self._seen:
            self._seen[path] = await self._get(path)
        found = self._seen[path]
        if found is None and not optional:
            raise ConfigError(f'{kind[:-1]} "{name}" not found')
        return None if found is None else contents(kind, found)

    async def _get(self, path: str) -> Json | None:
        try:
            return await self.api.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise ConfigError(str(error)) from error

    async def key(self, kind: str, reference: Json) -> str | None:
        optional = bool(reference.get("optional"))
        data = await self.data(kind, reference["name"], optional)
        if data is None or reference["key"] not in data:
            if optional:
                return None
            raise ConfigError(
                f"couldn't find key {reference['key']} in {kind[:-1]}"
                f" {self.namespace}/{reference['name']}"
            )
        return data[reference["key"]].decode(errors="replace")


def contents(kind: str, item: Json) -> dict[str, bytes]:
    if kind == "secrets":
        return {key: base64.b64decode(value) for key, value in (item.get("data") or {}).items()}
    binary = {key: base64.b64decode(value) for key, value in (item.get("binaryData") or {}).items()}
    return {**{key: value.encode() for key, value in (item.get("data") or {}).items()}, **binary}


async def environment(
    container: Json, pod: Json, sources: Sources, capacity: Mapping[str, str]
) -> dict[str, str]:
    """envFrom and env of one container, expanded. Raises ConfigError."""
    found: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        found.update(await whole(source, sources))
    for entry in container.get("env") or []:
        value = await one(entry, container, pod, sources, capacity, found)
        if value is not None:
            found[entry["name"]] = value
    return found


async def whole(source: Json, sources: Sources) -> dict[str, str]:
    kind, reference = (
        ("configmaps", source["configMapRef"])
        if "configMapRef" in source
        else ("secrets", source["secretRef"])
    )
    data = await sources.data(kind, reference["name"], bool(reference.get("optional"))) or {}
    prefix = source.get("prefix", "")
    return {
        prefix + key: value.decode(errors="replace")
        for key, value in data.items()
        if VALID_NAME.fullmatch(key)
    }


async def one(
    entry: Json,
    container: Json,
    pod: Json,
    sources: Sources,
    capacity: Mapping[str, str],
    so_far: Mapping[str, str],
) -> str | None:
    reference = entry.get("valueFrom")
    if not reference:
        return expand(entry.get("value", ""), so_far)
    if "fieldRef" in reference:
        return one_field(pod, reference["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in reference:
        named = reference["resourceFieldRef"].get("containerName", container["name"])
        owner = next(
            each for each in pod["spec"]["containers"] + [container] if each["name"] == named
        )
        return resource(owner, reference["resourceFieldRef"], capacity)
    if "secretKeyRef" in reference:
        return await sources.key("secrets", reference["secretKeyRef"])
    if "configMapKeyRef" in reference:
        return await sources.key("configmaps", reference["configMapKeyRef"])
    raise ConfigError(f"env {entry['name']}: the process node does not know {', '.join(reference)}")


def one_field(pod: Json, path: str) -> str:
    try:
        return pod_field(pod, path)
    except KeyError as error:
        raise ConfigError(f"unsupported fieldPath: {path}") from error


def command_line(
    container: Json, variables: Mapping[str, str], mounts: Mapping[str, str]
) -> list[str]:
    words = [*container["command"], *(container.get("args") or [])]
    return [rewrite(expand(word, variables), mounts) for word in words]
