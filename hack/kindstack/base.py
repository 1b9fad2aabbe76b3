"""The image that everything is built on:
Python's where it can be pulled, else one of Debian's packages."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from devstack.cache import home
from kindstack.engine import Engine
from kindstack.shell import KindError, run

OFFICIAL = "python:3.11-slim-bookworm"
SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "ca-certificates")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# Installers' settings that name where packages come from, if this machine has them: (here, in the
# image). Of one target the later wins: a person's own over the machine's.
SETTINGS = (
    (Path("/etc/pip.conf"), "/etc/pip.conf"),
    (home() / ".config/pip/pip.conf", "/etc/pip.conf"),
    (Path("/etc/uv/uv.toml"), "/etc/uv/uv.toml"),
    (home() / ".config/uv/uv.toml", "/etc/uv/uv.toml"),
)
VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX")


def plain(engine: Engine, progress: Callable[[str], None]) -> str:
    """The base image's name;
    made of Debian's packages where the official one can't be pulled. Raises KindError."""
    if engine.pull(OFFICIAL, progress):
        return OFFICIAL
    recipe = hashlib.sha256(" ".join((SUITE, *PACKAGES)).encode()).hexdigest()[:12]
    name = f"localhost/llm-operator-base:{recipe}"
    if engine.has(name):
        return name
    need_mmdebstrap(progress)
    progress(f"{OFFICIAL} can't be pulled: making a base image of Debian's packages")
    with tempfile.TemporaryDirectory(prefix="llm-operator-base-") as folder:
        archive = Path(folder) / "base.tar"
        link = 'ln -s python3 "$1/usr/bin/python"'
        run(
            *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            *("--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"),
            *(f"--customize-hook={link}", SUITE, archive),
        )
        engine.docker("import", "--change", 'CMD ["python3"]', archive, name)
    return name


def need_mmdebstrap(progress: Callable[[str], None]) -> None:
    if shutil.which("mmdebstrap"):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise KindError(
            f"{OFFICIAL} can't be pulled, and mmdebstrap, which makes a base image of packages, is"
            " not installed: install it, or make the registry reachable"
        )
    progress("installing mmdebstrap")
    run("apt-get", "update", "-qq")
    run(
        "apt-get",
        "install",
        "-qq",
        "--no-install-recommends",
        "mmdebstrap",
        env={"DEBIAN_FRONTEND": "noninteractive"},
    )


def for_building(engine: Engine, base: str) -> str:
    """The base with this machine's certificates and installers' settings,
    for stages whose result is copied on.

    Nothing of it is in a finished image: that one starts from `base`.
    """
    with tempfile.TemporaryDirectory(prefix="llm-operator-build-") as folder:
        lines = [f"FROM {base}"]
        context = Path(folder)
        for number, (source, target) in enumerate(((CERTIFICATES, str(CERTIFICATES)), *SETTINGS)):
            if source.is_file():
                shutil.copyfile(source, context / str(number))
                lines.append(f"COPY {number} {target}")
        lines.append(
            f"ENV PIP_CERT={CERTIFICATES} SSL_CERT_FILE={CERTIFICATES}"
            f" REQUESTS_CA_BUNDLE={CERTIFICATES}"
        )
        lines += [
            f"ENV {name}={quoted(os.environ[name])}" for name in VARIABLES if os.environ.get(name)
        ]
        (context / "Dockerfile").write_text("\n".join(lines) + "\n")
        files = sorted(context.iterdir())
        content = hashlib.sha256(
            b"".join(file.read_bytes() for file in files) + identity(engine, base)
        ).hexdigest()[:12]
        name = f"localhost/llm-operator-build:{content}"
        if not engine.has(name):
            engine.docker("build", "--network", "host", "--tag", name, folder)
    return name


def quoted(value: str) -> str:
    """A value as a Dockerfile's ENV takes it:
    a blank would end it, and a $ would stand for a variable."""
    if re.fullmatch(r"[\w./:@%+=,?&~-]+", value):
        return value
    # Whitespace of any kind separates indexes, and a line's end would end the instruction.
    return json.dumps(" ".join(value.split()), ensure_ascii=False).replace("$", "\\$")


def identity(engine: Engine, image: str) -> bytes:
    """The content's own name of an image: the tag may come to mean another."""
    return engine.docker("image", "inspect", "--format", "{{.Id}}", image).strip().encode()
