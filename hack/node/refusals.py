"""Says what of a pod the process node can't do, so that nothing is dropped silently.
Pure: a pod in, a sentence out."""

from __future__ import annotations

from collections.abc import Iterator

from node.api import Json

VOLUMES = {
    "emptyDir",
    "configMap",
    "secret",
    "projected",
    "hostPath",
    "persistentVolumeClaim",
    "downwardAPI",
}
SOURCES = {"configMap", "secret", "downwardAPI", "serviceAccountToken"}
HOST_PATHS = {"", "Directory", "DirectoryOrCreate", "File", "FileOrCreate"}


def refusal(pod: Json) -> str | None:
    """Why this pod cannot run here, as one sentence with a way out; None when it can."""
    found = [*pod_faults(pod["spec"]), *volume_faults(pod["spec"]), *container_faults(pod["spec"])]
    return f"the process node runs pods as local processes: {'; '.join(found)}" if found else None


def pod_faults(spec: Json) -> Iterator[str]:
    for name in ("hostPID", "hostIPC", "shareProcessNamespace"):
        if spec.get(name):
            yield f"spec.{name} is not possible here, remove it"


def container_faults(spec: Json) -> Iterator[str]:
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        name = container["name"]
        if not container.get("command"):
            yield f"container {name!r} has no command, and its image is not run: set command"
        if (container.get("securityContext") or {}).get("privileged"):
            yield f"container {name!r} wants to be privileged: remove securityContext.privileged"
        if container.get("volumeDevices"):
            yield f"container {name!r} wants block devices: use volumeMounts"
        if "postStart" in (container.get("lifecycle") or {}):
            yield (
                f"container {name!r} has a postStart hook: do it in the command or in an init"
                " container"
            )
        if any(
            "grpc" in (container.get(f"{kind}Probe") or {})
            for kind in ("startup", "readiness", "liveness")
        ):
            yield f"container {name!r} has a grpc probe: use httpGet, tcpSocket or exec"
        if any(mount.get("subPathExpr") for mount in container.get("volumeMounts") or []):
            yield f"container {name!r} uses subPathExpr: use subPath"


def volume_faults(spec: Json) -> Iterator[str]:
    for volume in spec.get("volumes") or []:
        kind = next((key for key in volume if key != "name"), "emptyDir")
        if kind not in VOLUMES:
            yield (
                f"volume {volume['name']!r} is of kind {kind}: use one of"
                f" {', '.join(sorted(VOLUMES))}"
            )
        if kind == "hostPath" and volume[kind].get("type", "") not in HOST_PATHS:
            yield (
                f"volume {volume['name']!r} has hostPath type {volume[kind]['type']}: use"
                " DirectoryOrCreate"
            )
        for source in (volume.get("projected") or {}).get("sources") or []:
            if not SOURCES.intersection(source):
                yield (
                    f"volume {volume['name']!r} projects {', '.join(source)}: use one of"
                    f" {', '.join(sorted(SOURCES))}"
                )


def ignored(pod: Json) -> list[str]:
    """Fields that are accepted but can't be enforced. Logged once for each pod."""
    containers = [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]
    found = {f"securityContext.{key}" for key in pod["spec"].get("securityContext") or {}}
    found |= {
        key
        for key in ("activeDeadlineSeconds", "hostNetwork", "hostAliases", "dnsConfig")
        if key in pod["spec"]
    }
    for container in containers:
        found |= {f"securityContext.{key}" for key in container.get("securityContext") or {}}
        found |= {f"resources.{key}" for key in container.get("resources") or {}}
    for volume in pod["spec"].get("volumes") or []:
        found |= {f"emptyDir.{key}" for key in volume.get("emptyDir") or {}}
    return sorted(found)
