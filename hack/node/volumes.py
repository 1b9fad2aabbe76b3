"""A pod's volumes as folders, updated atomically as by the kubelet:
readers see either the old or the new files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.api import Json
from node.expand import field, resource
from node.resolve import ConfigError, Sources

# relative path → (content, mode)
Payload = dict[str, tuple[bytes, int]]
TokenSource = Callable[[Json], Awaitable[str]]
CONTENT = ("configMap", "secret", "projected", "downwardAPI")


@dataclass
class Volumes:
    """The volumes of one pod below `root`;
    `places` has the folder of each by name after `mount`."""

    root: Path
    token: TokenSource
    capacity: dict[str, str]

    async def mount(self, pod: Json, sources: Sources) -> dict[str, Path]:
        """Create or refresh every volume. Raises ConfigError if a referenced object is missing."""
        return {
            volume["name"]: await self._one(volume, pod, sources)
            for volume in pod["spec"].get("volumes") or []
        }

    async def _one(self, volume: Json, pod: Json, sources: Sources) -> Path:
        if "hostPath" in volume:
            return host_path(volume["hostPath"])
        if "persistentVolumeClaim" in volume:
            return await claimed(volume["persistentVolumeClaim"]["claimName"], sources)
        folder = made(self.root / str(volume["name"]))
        if kind := next((kind for kind in CONTENT if kind in volume), None):
            write_atomically(folder, await self._payload(kind, volume[kind], pod, sources))
        return folder

    async def _payload(self, kind: str, source: Json, pod: Json, sources: Sources) -> Payload:
        mode = int(source.get("defaultMode", 0o644))
        if kind == "projected":
            payload: Payload = {}
            for part in source.get("sources") or []:
                for name, entry in part.items():
                    payload.update(
                        await self._payload(name, {"defaultMode": mode, **entry}, pod, sources)
                    )
            return payload
        if kind == "serviceAccountToken":
            return {source["path"]: ((await self.token(source)).encode(), mode)}
        if kind == "downwardAPI":
            return {
                item["path"]: (self._downward(item, pod), int(item.get("mode", mode)))
                for item in items(source)
            }
        name = source.get("secretName") or source["name"]
        data = await sources.data(
            "secrets" if kind == "secret" else "configmaps", name, bool(source.get("optional"))
        )
        return select(data or {}, source, mode, f"{kind} {name!r}")

    def _downward(self, item: Json, pod: Json) -> bytes:
        if "fieldRef" in item:
            return field(pod, item["fieldRef"]["fieldPath"]).encode()
        reference = item["resourceFieldRef"]
        owner = next(
            each for each in pod["spec"]["containers"] if each["name"] == reference["containerName"]
        )
        return resource(owner, reference, self.capacity).encode()


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def items(source: Json) -> list[Json]:
    found: list[Json] = source.get("items") or []
    return found


def select(data: dict[str, bytes], source: Json, mode: int, what: str) -> Payload:
    """All keys, or those that `items` names under the paths it gives."""
    if not items(source):
        return {key: (value, mode) for key, value in data.items()}
    missing = [item["key"] for item in items(source) if item["key"] not in data]
    if missing and not source.get("optional"):
        raise ConfigError(f"{what} references non-existent key: {missing[0]}")
    chosen = [item for item in items(source) if item["key"] in data]
    return {item["path"]: (data[item["key"]], int(item.get("mode") or mode)) for item in chosen}


def host_path(source: Json) -> Path:
    path = Path(source["path"])
    kind = source.get("type", "")
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch()
    if not path.exists() or (kind == "Directory" and not path.is_dir()):
        raise ConfigError(
            f"hostPath type check failed: {path} is not"
            f" {'a directory' if kind == 'Directory' else 'there'}"
        )
    return path


async def claimed(name: str, sources: Sources) -> Path:
    """The folder of a claim that is bound to a hostPath or local volume.
    Others would need a storage driver."""
    claim = await sources._get(
        f"/api/v1/namespaces/{sources.namespace}/persistentvolumeclaims/{name}"
    )
    if claim is None or not claim["spec"].get("volumeName"):
        raise ConfigError(
            f"persistentvolumeclaim {name!r} is not bound: create a PersistentVolume with a"
            " hostPath for it"
        )
    volume = await sources._get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
    spec: dict[str, Any] = (volume or {}).get("spec") or {}
    if "hostPath" not in spec and "local" not in spec:
        raise ConfigError(
            f"persistentvolumeclaim {name!r}: the process node has no storage drivers, use a"
            " hostPath volume"
        )
    return host_path(spec.get("hostPath") or {"path": spec["local"]["path"], "type": "Directory"})


def write_atomically(folder: Path, payload: Payload) -> None:
    """Swap `..data` to a folder with the new content, as the kubelet does;
    unchanged content is not touched."""
    link = folder / "..data"
    if link.exists() and same(link, payload):
        return
    old = link.resolve() if link.is_symlink() else None
    fresh = Path(tempfile.mkdtemp(prefix=time.strftime("..%Y_%m_%d_%H_%M_%S."), dir=folder))
    fresh.chmod(0o755)
    for path, (content, mode) in payload.items():
        file = fresh / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)
    swap(folder / "..data_tmp", link, fresh.name)
    show(folder, {Path(path).parts[0] for path in payload})
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def swap(temporary: Path, link: Path, target: str) -> None:
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(link)


def show(folder: Path, names: set[str]) -> None:
    """One link per top-level name, through ..data, and none for names that are gone."""
    for entry in os.scandir(folder):
        if not entry.name.startswith("..") and entry.is_symlink() and entry.name not in names:
            Path(entry.path).unlink()
    for name in names:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")


def same(data: Path, payload: Payload) -> bool:
    found = {str(file.relative_to(data)): file for file in data.rglob("*") if file.is_file()}
    return found.keys() == payload.keys() and all(
        found[path].read_bytes() == content and found[path].stat().st_mode & 0o7777 == mode
        for path, (content, mode) in payload.items()
    )


def client_config(server: str, account: Path) -> str:
    """A kubeconfig for a pod. KUBECONFIG names it, because /var/run/secrets can't exist here."""
    cluster = {"server": server, "certificate-authority": str(account / "ca.crt")}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "pod", "cluster": cluster}],
            "users": [{"name": "pod", "user": {"tokenFile": str(account / "token")}}],
            "contexts": [
                {
                    "name": "pod",
                    "context": {
                        "cluster": "pod",
                        "user": "pod",
                        "namespace": read(account / "namespace"),
                    },
                }
            ],
            "current-context": "pod",
        }
    )


def read(file: Path) -> str:
    return file.read_text() if file.exists() else "default"
