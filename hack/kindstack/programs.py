"""The programs of a kind cluster, built from their Go modules once and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

from devstack import golang
from devstack.cache import CACHE, workplace
from devstack.waits import locked, waiting
from kindstack.shell import ROOT, KindError, run

KUBERNETES = ROOT / "hack" / "kube"
OTHERS = ROOT / "hack" / "kind" / "programs"
POLICIES = ROOT / "hack" / "kind" / "policies"
KIND = "sigs.k8s.io/kind"
CONTAINERD = "github.com/containerd/containerd/v2/cmd"
# Snapshotters that need C libraries or file systems which no node has.
TAGS = "no_btrfs,no_devmapper,no_zfs"
# For the machine that runs kind; the rest is for its nodes, which only an image made here needs.
HERE = (KIND,)
NODE = (
    *(f"{CONTAINERD}/containerd", f"{CONTAINERD}/containerd-shim-runc-v2", f"{CONTAINERD}/ctr"),
    *("sigs.k8s.io/cri-tools/cmd/crictl", "./coredns", "./pause", "./podnet"),
)
FIREWALL = ("github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",)


def kind(progress: Callable[[str], None]) -> Path:
    """The kind program. Raises KindError where Go is missing or the build fails."""
    return build("kind", progress, (OTHERS, HERE)) / "kind"


def of_a_node(progress: Callable[[str], None]) -> Path:
    """The folder with what a node runs: containerd and its helpers, CoreDNS, Kubernetes.
    Raises KindError."""
    return build("node", progress, (OTHERS, NODE), (KUBERNETES, ("./node",)))


def of_policies(progress: Callable[[str], None]) -> Path:
    """The folder with kube-router, which enforces NetworkPolicies on a node. Raises KindError."""
    return build("policies", progress, (POLICIES, FIREWALL))


def build(name: str, progress: Callable[[str], None], *parts: tuple[Path, tuple[str, ...]]) -> Path:
    """Build packages of Go modules into a folder that is named after their content,
    unless it is there."""
    digest = hashlib.sha256(go("env", "GOVERSION").encode())
    for module, packages in parts:
        digest.update(" ".join(packages).encode())
        for file in [module / "go.mod", module / "go.sum", *sorted(module.glob("*/*.go"))]:
            digest.update(file.read_bytes())
    folder = CACHE / "kind" / "programs" / f"{name}-{digest.hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    with locked(
        folder.parent / ".lock",
        "another process is building the programs of a kind cluster",
        progress,
    ):
        if not folder.is_dir():
            _build(folder, progress, parts)
    return folder


def _build(
    folder: Path, progress: Callable[[str], None], parts: tuple[tuple[Path, tuple[str, ...]], ...]
) -> None:
    """Beside the final place, then renamed: nobody ever runs half a build."""
    with workplace(folder.parent) as partial:
        whole = partial / folder.name
        whole.mkdir()
        for module, packages in parts:
            for package in packages:
                _compile(module, package, whole, progress)
        whole.rename(folder)


def _compile(module: Path, package: str, folder: Path, progress: Callable[[str], None]) -> None:
    name = package.removeprefix("./")
    progress(f"building {name}")
    flags = ("-trimpath", "-tags", TAGS, "-ldflags", f"-s -w {stamp()}")
    with waiting(lambda: f"  still building {name}", progress):
        go("build", *flags, "-o", f"{folder}/", package, cwd=module)


def stamp() -> str:
    """The version that Kubernetes' programs say they are."""
    version = kubernetes_version()
    major, minor = version[1:].split(".")[:2]
    package = "k8s.io/component-base/version"
    return (
        f"-X {package}.gitVersion={version} -X {package}.gitMajor={major} -X"
        f" {package}.gitMinor={minor}"
    )


def kubernetes_version() -> str:
    """What hack/kube/go.mod names, like v1.36.3."""
    match = re.search(r"k8s\.io/kubernetes (v\S+)", (KUBERNETES / "go.mod").read_text())
    if match is None:
        raise KindError("hack/kube/go.mod names no k8s.io/kubernetes version; restore it with git")
    return match[1]


def sources(module: str, within: Path = OTHERS) -> Path:
    """The folder of a module's files in Go's module cache, checked against go.sum."""
    return Path(json.loads(go("mod", "download", "-json", module, cwd=within))["Dir"])


def go(*arguments: str, cwd: Path = OTHERS) -> str:
    """Run a command of Go, the pinned one where there is none on the PATH. Raises KindError."""
    try:
        environment = golang.environment()
    except golang.GoError as error:
        raise KindError(str(error)) from error
    return run("go", *arguments, cwd=cwd, env={**environment, "CGO_ENABLED": "0"})
