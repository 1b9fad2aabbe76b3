"""Models of the Hugging Face Hub, or of a mirror in HF_ENDPOINT: a commit, its files, their bytes. Token: HF_TOKEN."""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from llm_runtime.contract import MlflowVersion
from llm_runtime.errors import ConfigInvalid, ModelNotFound, RegistryDenied, RegistryUnreachable
from llm_runtime.models import stream
from llm_runtime.models.part import Part

HUB = "https://huggingface.co"


class HubRegistry:
    """`models.registry.Registry` for locations `hf://org/name@commit`."""

    def __init__(self) -> None:
        self._endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        self._token = os.environ.get("HF_TOKEN", "")

    def commit(self, uri: str) -> tuple[str, str]:
        """Repository and commit of `hf://org/name[@revision]`; without a revision its main branch. Raises a Fatal.

        A whole commit is not asked for: a serving container may have no token, and needs none.
        """
        repository, revision = _parsed(uri)
        if re.fullmatch("[0-9a-f]{40}", revision):
            return repository, revision
        return repository, str(self._info(repository, revision)["sha"])

    def resolve(self, version: MlflowVersion) -> str:
        raise NotImplementedError("the hub has no registered versions")

    def sizes(self, location: str) -> dict[str, int | None]:
        files = self._info(*_parsed(location))["siblings"]
        return {str(file["rfilename"]): file.get("size") for file in files}

    def download(self, location: str, path: str, part: Part) -> None:
        repository, commit = _parsed(location)
        url = f"{self._endpoint}/{repository}/resolve/{commit}/{quote(path)}"
        stream.download(lambda headers: self._get(url, headers, stream=True), part)

    def _info(self, repository: str, revision: str) -> Any:
        url = f"{self._endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
        try:
            return self._get(url, {}).json()
        except OSError as error:  # All of requests' errors, of the connection and of a body that is not JSON.
            raise RegistryUnreachable(
                f"the hub at {self._endpoint} can't be asked for {repository}: {error}"
            ) from error

    def _get(self, url: str, headers: Mapping[str, str], **options: Any) -> Any:
        import requests

        if self._token:
            headers = {**headers, "Authorization": f"Bearer {self._token}"}
        answer = requests.get(url, headers=dict(headers), timeout=stream.TIMEOUT_SECONDS, **options)
        if answer.status_code in (401, 403):
            raise RegistryDenied(
                f"the hub refused {url} (HTTP {answer.status_code}): set HF_TOKEN to one that may read it"
            )
        if answer.status_code == 404:
            raise ModelNotFound(f"the hub has no {url}: correct model.uri")
        if answer.status_code >= 500:
            raise RegistryUnreachable(f"the hub answered HTTP {answer.status_code} to {url}")
        return answer


def _parsed(uri: str) -> tuple[str, str]:
    found = re.fullmatch(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>\S+))?", uri)
    if found is None:
        raise ConfigInvalid(f"model.uri {uri!r} is not of the form hf://org/name@revision")
    return found["repository"], found["revision"] or "main"
