"""A model in a local folder: verified,
and collected by links if its parts lie in different folders."""

import hashlib
from pathlib import Path

from llm_runtime.errors import ModelNotFound
from llm_runtime.fetching.disk import disk_errors, point_to
from llm_runtime.files.locate import check_links, local_artifacts, locate
from llm_runtime.files.sentence_files import is_of_module
from llm_runtime.files.template_files import FLAT_PREFIX
from llm_runtime.files.verify import verify_weights


def local_model(path: Path, models: Path, sub_path: str = "") -> Path:
    """Verify a local folder.
    If model and tokenizer lie apart, collect them by links in a folder under `models`."""
    if not path.is_dir():
        raise ModelNotFound(f"model.path {path} is not a folder")
    check_links(path)
    located = locate(local_artifacts(path), sub_path)
    home = path / located.folder
    verify_weights(home)
    if all(
        (home / name).is_file()
        or name.startswith(FLAT_PREFIX)
        or is_of_module(home, path / source, name)
        for name, source in located.files.items()
    ):
        return home
    with disk_errors(f"linking the files of {path}"):
        overlay = models / f"local-{hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:12]}"
        overlay.mkdir(parents=True, exist_ok=True)
        for name, source in located.files.items():
            point_to(overlay / name, (path / source).resolve())
    return overlay
