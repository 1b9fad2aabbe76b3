"""All errors by which this program refuses a request or gives up.

Refusal (an answer to one request)           Fatal (the process can't serve)
├── InvalidRequest      400                  ├── ConfigInvalid
├── Unauthorized        401                  ├── ModelNotFound
├── Forbidden           403                  ├── ModelCorrupt
├── NotFound            404                  ├── ModelUnsupported
├── BodyTimeout         408                  ├── DiskFull
├── Conflict            409                  ├── OutOfMemory
├── PayloadTooLarge     413                  ├── RegistryDenied
├── UnsupportedMedia    415                  ├── RegistryUnreachable
├── QueueFull           429                  └── Reported (any of these, in another process)
├── RateLimited         429
│   └── LimitTooSmall
├── QuotaExceeded       429                      └── EngineFailed
├── ServiceUnavailable  503
└── GenerationFailed    500
"""

from typing import ClassVar

from llm_runtime.contract import FatalReport


class Refusal(Exception):
    """A request that gets an error answer.
    `param` names the field at fault, `code` is OpenAI's error code."""

    status: ClassVar[int] = 500
    error: ClassVar[str] = "internal_server_error"
    """The `error` word of the non-OpenAI dialects."""
    openai_type: ClassVar[str] = "server_error"
    retry_after_seconds: float | None = None
    should_retry: ClassVar[bool | None] = None
    """What OpenAI's clients are told in `x-should-retry`;
    None leaves it to their rule (408, 409, 429 and 5xx)."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class InvalidRequest(Refusal):
    """The request is not one that can be answered; `message` says what to send instead."""

    status = 400
    error = "validation_error"
    openai_type = "invalid_request_error"


class Unauthorized(Refusal):
    """No key, or one that is not known here."""

    status = 401
    error = "unauthorized"
    openai_type = "authentication_error"


class Forbidden(Refusal):
    """A known key that may not do this: suspended or expired."""

    status = 403
    error = "forbidden"
    openai_type = "permission_error"


class NotFound(Refusal):
    """No such model or path."""

    status = 404
    error = "not_found"
    openai_type = "invalid_request_error"


class MethodNotAllowed(Refusal):
    """The path is there, for another method."""

    status = 405
    error = "method_not_allowed"
    openai_type = "invalid_request_error"


class Conflict(Refusal):
    """The same request is being answered already."""

    status = 409
    error = "conflict"
    openai_type = "invalid_request_error"


class PayloadTooLarge(Refusal):
    """The body is over `server.maxRequestBytes`."""

    status = 413
    error = "payload_too_large"
    openai_type = "invalid_request_error"


class BodyTimeout(Refusal):
    """The body was not complete within `server.bodyTimeoutSeconds`."""

    status = 408
    error = "request_timeout"
    openai_type = "invalid_request_error"


class UnsupportedMedia(Refusal):
    """A compressed body."""

    status = 415
    error = "unsupported_media_type"
    openai_type = "invalid_request_error"


class QueueFull(Refusal):
    """As many requests wait as may wait; the client should come back."""

    status = 429
    error = "rate_limit_exceeded"
    openai_type = "rate_limit_error"
    retry_after_seconds = 1.0


class RateLimited(Refusal):
    """A limit of this caller is used up for now.
    `code` says which one, `retry_after_seconds` when there is room."""

    status = 429
    error = "rate_limit_exceeded"
    openai_type = "rate_limit_error"

    def __init__(
        self, message: str, *, code: str, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_seconds = retry_after_seconds


class LimitTooSmall(RateLimited):
    """One request wants more than its caller's limit ever holds: it will be refused every time."""

    should_retry = False


class QuotaExceeded(Refusal):
    """What a caller may use in this month is used up.
    `retry_after_seconds` leads to the month's end."""

    status = 429
    error = "quota_exceeded"
    openai_type = "insufficient_quota"
    should_retry = False

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message, code="insufficient_quota")
        self.retry_after_seconds = retry_after_seconds


class ServiceUnavailable(Refusal):
    """Loading, draining or dead."""

    status = 503
    error = "service_unavailable"
    openai_type = "server_error"
    retry_after_seconds = 2.0


class RequestTimeout(ServiceUnavailable):
    """Not done within `server.requestTimeoutSeconds`.
    Sent again at once, the same request would take as long."""

    should_retry = False


class GenerationFailed(Refusal):
    """The engine gave up on this request after it was admitted."""


class Fatal(Exception):
    """The process cannot do its work.
    Its class name is the `reason` that reaches the LLMDeployment's conditions."""

    @property
    def reason(self) -> str:
        """CamelCase reason, as conditions and FatalReport carry it."""
        return type(self).__name__

    def to_report(self) -> FatalReport:
        """The error as another process, a log's last line or a status carries it."""
        return FatalReport(reason=self.reason, message=str(self))


class ConfigInvalid(Fatal):
    """A configuration file that can't be read or holds a wrong field."""


class ModelNotFound(Fatal):
    """The pinned version, or the folder named in it, is not there."""


class ModelCorrupt(Fatal):
    """Files are there but are not whole: short, wrong headers,
    missing shards, missing or unexpected weights."""


class ModelUnsupported(Fatal):
    """Whole files that this runtime does not load:
    pickle weights, remote code, an unknown architecture."""


class DiskFull(Fatal):
    """Not enough room for the model."""


class OutOfMemory(Fatal):
    """Not enough memory for the model, or for the keys and values of even one sequence."""


class RegistryDenied(Fatal):
    """The registry answered 401 or 403."""


class RegistryUnreachable(Fatal):
    """The registry did not answer, or not sensibly, after all retries."""


class Reported(Fatal):
    """Another process could not do what it was asked; it has said why."""

    def __init__(self, report: FatalReport) -> None:
        super().__init__(report.message)
        self.report = report

    @property
    def reason(self) -> str:
        """The reason that the other process gave."""
        return self.report.reason


class EngineFailed(Reported):
    """The other process is the engine's.
    `adapters`: those that are left, where room was made for one in vain."""

    def __init__(self, report: FatalReport, adapters: tuple[str, ...] | None = None) -> None:
        super().__init__(report)
        self.adapters = adapters
