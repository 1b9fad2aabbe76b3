"""Models of the Hugging Face Hub, or of a mirror named by HF_ENDPOINT.

The token is the given one, else HF_TOKEN or HUGGINGFACE_TOKEN of the environment.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from llm_runtime.errors import ConfigInvalid, ModelNotFound, RegistryDenied, RegistryUnreachable
from llm_runtime.fetching import stream
from llm_runtime.fetching.part import Part

HUB = "https://huggingface.co"
COMMIT = re.compile("[0-9a-f]{40}")


class Hub:
    """`fetching.registry.Files` for locations `hf://org/name@commit`."""

    def __init__(self, token: str = "") -> None:
        self._endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        found = token or os.environ.get("HF_TOKEN") or os.environ.get("HUGGINGFACE_TOKEN", "")
        # One that was read from a file often ends with a line break, which no header may have.
        self._token = found.strip()

    @staticmethod
    def repository(uri: str) -> str:
        """`org/name` of `hf://org/name[@revision]`. Raises ConfigInvalid."""
        return _parsed(uri)[0]

    def commit(self, uri: str) -> str:
        """The commit that `uri` resolves to now;
        without a revision, that of the branch main. Raises a Fatal.

        A full commit hash is returned without a request:
        a serving container may have no token, and needs none.
        """
        repository, revision = _parsed(uri)
        return (
            revision if COMMIT.fullmatch(revision) else str(self._info(repository, revision)["sha"])
        )

    def sizes(self, location: str) -> dict[str, int | None]:
        files = self._info(*_parsed(location))["siblings"]
        return {str(file["rfilename"]): file.get("size") for file in files}

    def download(self, location: str, path: str, part: Part) -> None:
        stream.download(self.source(location, path), part)

    def source(self, location: str, path: str, size: int | None = None) -> stream.FileRequest:
        """Where a file comes from."""
        repository, commit = _parsed(location)
        url = f"{self._endpoint}/{repository}/resolve/{commit}/{quote(path)}"
        return stream.FileRequest(
            lambda headers: self._get(url, headers, stream=True), in_pieces=True
        )

    def _info(self, repository: str, revision: str) -> Any:
        url = f"{self._endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
        try:
            return self._get(url, {}).json()
        except OSError as error:  # Every error of requests is one: of the connection, or of a body that is not JSON.
            cause: BaseException = error
            while (
                cause.__context__ is not None
            ):  # The root cause, beneath what libraries made of it.
                cause = cause.__context__
            raise RegistryUnreachable(
                f"the hub at {self._endpoint} can't be asked for {repository}"
                f" ({type(cause).__name__}: {cause}): set HTTPS_PROXY, or HF_ENDPOINT to a mirror,"
                " where it can't be reached"
            ) from error

    def _get(self, url: str, headers: Mapping[str, str], **options: Any) -> Any:
        import requests

        if self._token:
            headers = {**headers, "Authorization": f"Bearer {self._token}"}
        answer = requests.get(url, headers=dict(headers), timeout=stream.TIMEOUT_SECONDS, **options)
        if answer.status_code in (401, 403):
            raise RegistryDenied(
                f"the hub refused {url} (HTTP {answer.status_code}): set HF_TOKEN to one that may"
                " read it, or send it as hf_token with /load_model"
            )
        if answer.status_code == 404:
            raise ModelNotFound(f"the hub has no {url}: correct model.uri")
        if answer.status_code >= 500:
            raise RegistryUnreachable(f"the hub answered HTTP {answer.status_code} to {url}")
        return answer


def _parsed(uri: str) -> tuple[str, str]:
    match = re.fullmatch(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>\S+))?", uri)
    if match is None:
        raise ConfigInvalid(f"model.uri {uri!r} is not of the form hf://org/name@revision")
    return match["repository"], match["revision"] or "main"
