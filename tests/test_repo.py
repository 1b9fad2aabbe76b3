"""The repository agrees with itself: what is generated is current,
what is promised exists, what must not be is not."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
# Put together here, so that this file does not find itself.
FORBIDDEN = {
    "a package registry's host": re.compile(
        "|".join(
            re.escape(name + end)
            for name, end in [
                ("pypi", ".org"), ("pythonhosted", ".org"), ("proxy.golang", ".org"), ("npmjs", ".org"),
                ("npmjs", ".com"), ("crates", ".io"), ("deb.debian", ".org"), ("repo1.maven", ".org"),
            ]
        )
    ),
    "a path of somebody's machine": re.compile(r"(?<![\w.$}/-])/" + r"(?:root|work|home)/\w"),
}  # fmt: skip


def tracked() -> list[Path]:
    """Files that are or would be committed."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("what would be committed is asked of git: install git, and use a clone")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def test_requirements_belong_to_pyproject() -> None:
    subprocess.run([ROOT / "hack" / "lock", "--check"], check=True)


def test_images_get_the_versions_that_were_tested() -> None:
    def pins(name: str) -> set[str]:
        return set(
            re.findall(
                r"^[\w.\[\]-]+==[^ ]+", (ROOT / "requirements" / f"{name}.txt").read_text(), re.M
            )
        )

    assert pins("operator") < pins("dev")
    assert pins("runtime") < pins("dev")
    assert pins("bootstrap") < pins("dev")


def test_operator_image_has_no_torch_and_runtime_image_no_kopf() -> None:
    assert not re.search(
        r"^(torch|fastapi|mlflow.*)==", (ROOT / "requirements/operator.txt").read_text(), re.M
    )
    assert not re.search(
        r"^(kopf|kubernetes|pytest|mlflow)==", (ROOT / "requirements/runtime.txt").read_text(), re.M
    )


@pytest.mark.parametrize("part", ["operator", "runtime"])
def test_an_image_has_what_its_code_imports(part: str) -> None:
    """Here all is installed, so that an import of what an image lacks fails there alone."""
    wanted = (ROOT / "requirements" / f"{part}.txt").read_text()
    there = {name.replace("_", "-").lower() for name in re.findall(r"^([\w.-]+)==", wanted, re.M)}
    known = metadata.packages_distributions()
    files = [*(ROOT / part / f"llm_{part}").rglob("*.py"), ROOT / "runtime/llm_runtime/contract.py"]
    missing = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in imported(ast.parse(file.read_text()))
        if not there & {each.replace("_", "-").lower() for each in known.get(name, ())}
    }
    assert not missing


def imported(tree: ast.Module) -> set[str]:
    """Top-level names of other people's packages."""
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"llm_operator", "llm_runtime"}


def test_every_requirement_has_a_hash() -> None:
    for file in (ROOT / "requirements").glob("*.txt"):
        for entry in re.split(r"\n(?=[a-z0-9])", file.read_text(), flags=re.I)[1:]:
            assert "--hash=sha256:" in entry, f"{file.name}: {entry.splitlines()[0]}"


def test_chart_carries_the_crds_of_this_repository() -> None:
    ours = {file.name: file.read_text() for file in (ROOT / "crds").glob("*.yaml")}
    charts = {
        file.name: file.read_text()
        for file in (ROOT / "charts/llm-operator/files/crds").glob("*.yaml")
    }
    assert ours == charts
    assert len(ours) == 2


def test_versions_agree() -> None:
    chart = yaml.safe_load((ROOT / "charts/llm-operator/Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == project()["version"]
    for name in ("operator", "runtime"):
        assert f"ARG VERSION={project()['version']}" in (ROOT / f"Dockerfile.{name}").read_text()


def test_every_make_target_says_what_it_does() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", text, re.M)) - {"engine"}
    wanted = "demo test check generate run lint format type-check check-all bench build-docker run-docker logs help"
    wanted += " audit test-images sbom e2e-kind e2e-compose"
    assert targets == set(wanted.split())
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[0] for line in shown.splitlines()} == targets


def test_the_scripts_that_make_calls_exist_and_run() -> None:
    for name in sorted(
        set(re.findall(r"\bhack/[\w/-]+", (ROOT / "Makefile").read_text())) | {".ci/run"}
    ):
        file = ROOT / name
        assert file.is_file(), f"the Makefile calls {name}, which is not there"
        assert file.stat().st_mode & 0o111, f"{name} is not executable"


def test_readme_and_docs_lead_to_files_that_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_changelog_tells_of_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[?({re.escape(str(project()['version']))}|Unreleased)\b", text, re.M)


def test_operator_folder_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_no_forbidden_string_in_any_file() -> None:
    for file in tracked():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        for what, pattern in FORBIDDEN.items():
            found = pattern.search(text)
            assert found is None, (
                f"{file.relative_to(ROOT)} names {what}: {found[0] if found else ''}"
            )


def test_no_large_or_binary_file_is_committed() -> None:
    programs = (b"\x7fELF", b"MZ", b"PK\x03\x04", b"\x1f\x8b", b"GGUF")
    for file in tracked():
        with file.open("rb") as opened:
            assert not opened.read(4).startswith(programs), f"{file.relative_to(ROOT)} is a binary"
        assert file.stat().st_size < 1 << 20, f"{file.relative_to(ROOT)} is larger than 1 MiB"


@pytest.mark.parametrize("name", ["operator", "runtime"])
def test_dockerfile(name: str) -> None:
    """What can be said by reading;
    tests/images builds and runs them where a Docker engine answers."""
    text = (ROOT / f"Dockerfile.{name}").read_text()
    lines = [
        line.split(maxsplit=1)
        for line in text.replace("\\\n", " ").splitlines()
        if line and not line.startswith("#")
    ]
    starts = [number for number, (word, _) in enumerate(lines) if word == "FROM"]
    last = lines[starts[-1] :]

    assert lines[:2] == [
        ["ARG", "BASE_IMAGE=python:3.11-slim-bookworm"],
        ["ARG", "BUILD_IMAGE=${BASE_IMAGE}"],
    ]
    assert "--require-hashes --no-deps -r requirements/" in text
    assert ["USER", "65532:65532"] in last
    assert not [rest for word, rest in last if word == "RUN"], (
        "the last stage only copies: its layers are shared and small"
    )
    assert last[-1] == ["COPY", "--from=app /opt/app /opt/app"], (
        "the code is the last layer, so that a change is small"
    )
    assert "PYTHONUNBUFFERED=1" in dict(last)["ENV"]
    assert json.loads(dict(last)["ENTRYPOINT"]) == ["python", "-m", f"llm_{name}"]
    assert isinstance(json.loads(dict(last)["CMD"]), list)
    assert "org.opencontainers.image.licenses" in dict(last)["LABEL"]
    for rest in (rest for word, rest in lines if word == "COPY" and not rest.startswith("--from")):
        for source in rest.split()[:-1]:
            assert (ROOT / source).exists(), f"{source} is not there to copy"
            top = "hack/image" if source.startswith("hack/image/") else source.split("/")[0]
            assert f"!{top}" in (ROOT / ".dockerignore").read_text().splitlines()


@pytest.mark.parametrize("name", ["operator", "runtime"])
def test_a_dockerfile_builds_where_no_registry_is_reachable(name: str) -> None:
    """A `syntax` line has BuildKit fetch a frontend;
    a here-document or a mount would need a newer one than 20.10's."""
    text = (ROOT / f"Dockerfile.{name}").read_text()
    assert not re.search(r"^#\s*syntax\s*=", text, re.M | re.I)
    assert "<<" not in text
    assert not re.search(r"^(RUN|COPY|ADD)\s+--(?!from=)", text, re.M)
    images = {line.split()[1] for line in text.splitlines() if line.startswith("FROM ")}
    stages = set(re.findall(r"^FROM \S+ AS (\w+)", text, re.M))
    assert images - stages == {"${BASE_IMAGE}", "${BUILD_IMAGE}", "scratch"}


def test_the_runtime_for_cpus_has_the_same_torch_and_none_of_nvidias_kernels() -> None:
    def pins(name: str) -> set[str]:
        return set(
            re.findall(
                r"^[\w.\[\]-]+==[^ ]+", (ROOT / "requirements" / f"{name}.txt").read_text(), re.M
            )
        )

    left_out = {pin.partition("==")[0] for pin in pins("runtime") - pins("runtime-cpu")}
    assert pins("runtime-cpu") < pins("runtime")
    assert all(name.startswith(("nvidia-", "cuda-", "triton")) for name in left_out)


def test_the_workflow_builds_every_image_and_runs_no_action_of_a_moving_version() -> None:
    """It runs on GitHub only, so what can be said by reading is said here."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/images.yaml").read_text())
    job = workflow["jobs"]["publish"]
    images = {(one["file"], one["accelerator"]) for one in job["strategy"]["matrix"]["include"]}
    assert images == {
        ("Dockerfile.operator", ""),
        ("Dockerfile.runtime", "cuda"),
        ("Dockerfile.runtime", "cpu"),
    }
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"[\w/-]+@v\d+\.\d+\.\d+", action) for action in used), used
    build = next(
        step["with"] for step in job["steps"] if "build-push-action" in step.get("uses", "")
    )
    assert (build["push"], build["sbom"], build["provenance"]) == (True, True, "mode=max")
