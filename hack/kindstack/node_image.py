"""The image of kind's nodes: the one that is named,
the official one where it can be pulled, else one made here."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from kindstack import base, programs
from kindstack.engine import Engine
from kindstack.shell import ROOT, KindError

RECIPE = ROOT / "hack" / "kind" / "node"
# What hack/kind/node/manifests/default-cni.yaml calls the images of the pods' network.
NETWORK = ["localhost/podnet:1", "localhost/kube-router:1"]
TARGETS = ("kubernetes", "coredns", "pause", "node")
# containerd runs for the import only; what it keeps is in the image then.
IMPORT = """
containerd >/containerd.log 2>&1 & pid=$!
tries=0
until ctr version >/dev/null 2>&1; do
  tries=$((tries + 1)); [ $tries -lt 150 ] || { cat /containerd.log >&2; exit 1; }; sleep 0.2
done
ctr --namespace k8s.io images import --no-unpack /images.tar
kill $pid; wait $pid || true
rm -f /images.tar /containerd.log
"""


def choose(engine: Engine, named: str | None, progress: Callable[[str], None]) -> str:
    """The node image's name: `named`, else kind's own, else one of packages. Raises KindError."""
    if named:
        if not engine.pull(named, progress):
            raise KindError(
                f"the node image {named} is not in the engine and can't be pulled: check KIND_IMAGE"
            )
        return named
    defaults = programs.sources(programs.KIND) / "pkg/apis/config/defaults/image.go"
    match = re.search(r'Image = "([^"]+)"', defaults.read_text())
    if match and engine.pull(match[1], progress):
        return match[1]
    progress("kind's node image can't be pulled: making one of packages")
    return make(engine, progress)


def make(engine: Engine, progress: Callable[[str], None]) -> str:
    """A node image of Debian's packages and Go modules.
    Its name has a hash of all that goes into it."""
    built = [programs.of_a_node(progress), programs.of_policies(progress)]
    origin = base.for_building(engine, base.plain(engine, progress))
    digest = hashlib.sha256(
        " ".join(each.name for each in built).encode() + base.identity(engine, origin)
    )
    for file in [Path(__file__), *sorted(RECIPE.rglob("*"))]:
        if file.is_file():
            digest.update(file.read_bytes())
    name = f"localhost/llm-operator-kind-node:{digest.hexdigest()[:12]}"
    if engine.has(name):
        return name
    with tempfile.TemporaryDirectory(prefix="llm-operator-node-") as folder:
        context = Path(folder)
        shutil.copytree(RECIPE, context, dirs_exist_ok=True)
        for each in built:
            shutil.copytree(each, context / "programs", dirs_exist_ok=True)
        files = programs.sources(programs.KIND) / "images/base/files"
        # Go's module cache is read-only.
        shutil.copytree(files, context / "files", copy_function=shutil.copyfile)
        for each in [context / "files", *(context / "files").rglob("*")]:
            each.chmod(0o755 if each.is_dir() or "bin" in each.parent.name else 0o644)
        version = programs.kubernetes_version()
        progress("building the node image: Debian's packages")
        tags = {
            target: f"localhost/llm-operator-{target}:{digest.hexdigest()[:12]}"
            for target in TARGETS
        }
        for target, tag in tags.items():
            engine.docker(
                *("build", "--network", "host", "--target", target, "--tag", tag),
                *(
                    "--build-arg",
                    f"BASE_IMAGE={origin}",
                    "--build-arg",
                    f"VERSION={version}",
                    folder,
                ),
            )
        preload(engine, tags, name, progress)
    return name


def preload(
    engine: Engine, tags: dict[str, str], name: str, progress: Callable[[str], None]
) -> None:
    """Import the cluster's own images into the node's containerd,
    and commit the whole as `name`."""
    progress("putting the control plane's images into it")
    names = image_names(engine, tags["node"])
    every = [each for images in names.values() for each in images]
    # A person's own images of these names,
    # as those of another cluster: the names are given back to them.
    before = {each: base.identity(engine, each).decode() for each in every if engine.has(each)}
    for target, each in ((target, each) for target, images in names.items() for each in images):
        engine.docker("tag", tags[target], each)
    container = engine.docker(
        "run",
        "--detach",
        "--privileged",
        "--network",
        "none",
        "--entrypoint",
        "sleep",
        tags["node"],
        "infinity",
    ).strip()
    try:
        with tempfile.TemporaryDirectory(prefix="llm-operator-images-") as folder:
            archive = Path(folder) / "images.tar"
            engine.docker("save", "--output", archive, *every)
            engine.docker("cp", archive, f"{container}:/images.tar")
        engine.docker("exec", container, "sh", "-euc", IMPORT)
        entry = 'ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]'
        engine.docker("commit", "--change", entry, "--change", "CMD []", container, name)
    finally:
        engine.docker("rm", "--force", "--volumes", container)
        for each, image in before.items():
            engine.docker("tag", image, each)
        if made := [each for each in every if each not in before]:
            engine.docker("rmi", *made)


def image_names(engine: Engine, node: str) -> dict[str, list[str]]:
    """What kubeadm and containerd call the images: target of the Dockerfile → names."""
    listed = engine.docker(
        *(
            "run",
            "--rm",
            "--network",
            "none",
            "--entrypoint",
            "kubeadm",
            node,
            "config",
            "images",
            "list",
        ),
        *("--kubernetes-version", programs.kubernetes_version()),
    ).split()
    names: dict[str, list[str]] = {"kubernetes": [*NETWORK], "coredns": [], "pause": []}
    for image in listed:
        target = next((each for each in ("coredns", "pause") if f"/{each}:" in image), "kubernetes")
        names[target].append(image)
    config = (
        programs.sources(programs.KIND) / "images/base/files/etc/containerd/config.toml"
    ).read_text()
    sandbox = re.search(r'sandbox_image = "([^"]+)"', config)
    if sandbox and sandbox[1] not in names["pause"]:
        names["pause"].append(sandbox[1])
    return names
