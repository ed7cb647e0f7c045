"""Every error a client can meet, in one tree.

    ProxyError
    ├── InvalidRequest           400  invalid_request_error
    │   ├── UnsupportedMedia     415
    │   ├── RequestTooLarge      413
    │   └── Misdirected          421
    ├── RequestTimeout           408  invalid_request_error
    ├── AuthenticationFailed     401  authentication_error
    ├── PermissionDenied         403  permission_error
    ├── NotFound                 404  invalid_request_error
    ├── MethodNotAllowed         405  invalid_request_error
    ├── Conflict                 409  invalid_request_error
    ├── PreconditionFailed       412  invalid_request_error
    ├── RateLimited              429  rate_limit_error
    ├── UpstreamFailed           502  upstream_error
    │   ├── UpstreamTimeout      504
    │   └── UpstreamRefused      4xx as the provider answered
    ├── Unavailable              503  service_unavailable
    │   └── NotQueued            503  (the record is not even queued)
    ├── ClientGone               499  (never rendered: nobody is there to read it)
    ├── EvidenceBroken           500  internal_error
    └── InternalError            500  internal_error

    OperatorError                (commands print its sentence and exit with 1)
    ├── NotFoundError            404  not_found
    └── ConflictError            409  conflict
        └── StaleError           412  stale_version

Rooms that are asked by commands and by the management API raise `OperatorError` and its kin; the API renders what
`client_error_of` makes of them, with the same sentence.

`public` is for the client and `detail` for the operator's log; neither ever holds prompt text or a secret.
`code` comes from `ErrorCode`, which is closed and documented in docs/api.md; metrics label by it.
Rendering to a wire shape happens once, in `web/errors.py`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ErrorCode(StrEnum):
    """The closed set of `error.code` values. A test holds docs/api.md to it."""

    INVALID_JSON = "invalid_json"
    DUPLICATE_KEY = "duplicate_key"
    NESTED_TOO_DEEPLY = "nested_too_deeply"
    INVALID_ENCODING = "invalid_encoding"
    INVALID_NUMBER = "invalid_number"
    EMPTY_BODY = "empty_body"
    MISSING_PARAMETER = "missing_parameter"
    INVALID_TYPE = "invalid_type"
    INVALID_VALUE = "invalid_value"
    PROMPT_TOO_LONG = "prompt_too_long"
    MAX_TOKENS_EXCEEDED = "max_tokens_exceeded"
    MALFORMED_REQUEST = "malformed_request"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    UNSUPPORTED_CONTENT_ENCODING = "unsupported_content_encoding"
    REQUEST_TOO_LARGE = "request_too_large"
    REQUEST_TIMEOUT = "request_timeout"
    MISSING_API_KEY = "missing_api_key"
    INVALID_API_KEY = "invalid_api_key"
    API_KEY_EXPIRED = "api_key_expired"
    API_KEY_REVOKED = "api_key_revoked"
    API_KEY_QUARANTINED = "api_key_quarantined"
    API_KEY_IN_URL = "api_key_in_url"
    API_KEY_IN_BODY = "api_key_in_body"
    ACCOUNT_LOCKED = "account_locked"
    KILLED = "killed"
    PROJECT_INACTIVE = "project_inactive"
    WRONG_KEY_KIND = "wrong_key_kind"
    ADDRESS_NOT_ALLOWED = "address_not_allowed"
    AGENT_NOT_ALLOWED = "agent_not_allowed"
    LOGIN_FAILED = "login_failed"
    SESSION_INVALID = "session_invalid"
    SECOND_FACTOR_REQUIRED = "second_factor_required"
    SECOND_FACTOR_EXISTS = "second_factor_exists"
    SECOND_FACTOR_MISSING = "second_factor_missing"
    STEP_UP_REQUIRED = "step_up_required"
    SETUP_TOKEN_INVALID = "setup_token_invalid"  # noqa: S105 -- a code, not a token
    PASSWORD_REFUSED = "password_refused"  # noqa: S105 -- a code, not a password
    SCOPE_MISSING = "scope_missing"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    ADDRESS_BLOCKED = "address_blocked"
    AGENT_BLOCKED = "agent_blocked"
    FORBIDDEN = "forbidden"
    MISSING_SESSION = "missing_session"
    KEY_NOT_FOR_MANAGEMENT = "key_not_for_management"
    CSRF_FAILED = "csrf_failed"
    UNKNOWN_HOST = "unknown_host"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    STALE_VERSION = "stale_version"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    CONCURRENCY_LIMIT_EXCEEDED = "concurrency_limit_exceeded"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_REJECTED = "upstream_rejected"
    UPSTREAM_RATE_LIMITED = "upstream_rate_limited"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    CONTENT_POLICY_VIOLATION = "content_policy_violation"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    NO_ROUTE = "no_route"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    AUDIT_UNAVAILABLE = "audit_unavailable"
    AUDIT_BROKEN = "audit_broken"
    READER_CODE_REFUSED = "reader_code_refused"
    DATABASE_UNAVAILABLE = "database_unavailable"
    MODELS_UNAVAILABLE = "models_unavailable"
    SERVICE_UNAVAILABLE = "service_unavailable"
    SERVER_STOP = "server_stop"
    CLIENT_GONE = "client_gone"
    INTERNAL_ERROR = "internal_error"


class FailureKind(StrEnum):
    """How an exchange with a provider failed: what may be tried instead depends on it."""

    UNREACHABLE = "unreachable"
    """No connection: nothing was sent."""
    BROKE_OFF = "broke_off"
    """The connection broke after the request was sent."""
    UNREADABLE = "unreadable"
    """An answer that is not what was asked for."""
    TIMEOUT = "timeout"
    OVERLOADED = "overloaded"
    """The provider answered 5xx."""
    RATE_LIMITED = "rate_limited"
    CREDENTIALS = "credentials"
    """The provider refuses our key, or its account has run dry."""
    CONTEXT_LENGTH = "context_length"
    CONTENT_POLICY = "content_policy"
    REJECTED = "rejected"
    """The provider understood the request and refuses it: it would again."""
    TOO_LARGE = "too_large"
    STOPPED = "stopped"
    """We ended it ourselves."""


class ProxyError(Exception):
    """An error with a public face. Raise a subclass where the fact is known; it is rendered once, at the door."""

    status: int = 500
    type: ClassVar[str] = "internal_error"
    default_code: ClassVar[ErrorCode] = ErrorCode.INTERNAL_ERROR

    def __init__(
        self,
        public: str,
        *,
        code: ErrorCode | None = None,
        param: str | None = None,
        detail: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(public)
        self.public = public
        self.code = code or self.default_code
        self.param = param
        self.detail = detail
        self.retry_after_s = retry_after_s


class InvalidRequest(ProxyError):
    status = 400
    type = "invalid_request_error"
    default_code = ErrorCode.INVALID_VALUE


class UnsupportedMedia(InvalidRequest):
    status = 415
    default_code = ErrorCode.UNSUPPORTED_MEDIA_TYPE


class RequestTooLarge(InvalidRequest):
    status = 413
    default_code = ErrorCode.REQUEST_TOO_LARGE


class Misdirected(InvalidRequest):
    status = 421
    default_code = ErrorCode.UNKNOWN_HOST


class RequestTimeout(ProxyError):
    status = 408
    type = "invalid_request_error"
    default_code = ErrorCode.REQUEST_TIMEOUT


class AuthenticationFailed(ProxyError):
    status = 401
    type = "authentication_error"
    default_code = ErrorCode.INVALID_API_KEY


class PermissionDenied(ProxyError):
    status = 403
    type = "permission_error"
    default_code = ErrorCode.FORBIDDEN


class NotFound(ProxyError):
    status = 404
    type = "invalid_request_error"
    default_code = ErrorCode.NOT_FOUND


class MethodNotAllowed(ProxyError):
    status = 405
    type = "invalid_request_error"
    default_code = ErrorCode.METHOD_NOT_ALLOWED


class Conflict(ProxyError):
    status = 409
    type = "invalid_request_error"
    default_code = ErrorCode.CONFLICT


class PreconditionFailed(ProxyError):
    status = 412
    type = "invalid_request_error"
    default_code = ErrorCode.STALE_VERSION


class RateLimited(ProxyError):
    """`retry_after_s` is whole seconds, at least 1."""

    status = 429
    type = "rate_limit_error"
    default_code = ErrorCode.RATE_LIMIT_EXCEEDED


class UpstreamFailed(ProxyError):
    """The provider could not be reached or answered nonsense. Never names its host."""

    status = 502
    type = "upstream_error"
    default_code = ErrorCode.UPSTREAM_ERROR
    failure = FailureKind.UNREADABLE

    def __init__(
        self,
        public: str,
        *,
        failure: FailureKind | None = None,
        code: ErrorCode | None = None,
        detail: str | None = None,
        retry_after_s: int | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(public, code=code, param=param, detail=detail, retry_after_s=retry_after_s)
        if failure is not None:
            self.failure = failure


class UpstreamTimeout(UpstreamFailed):
    status = 504
    default_code = ErrorCode.UPSTREAM_TIMEOUT
    failure = FailureKind.TIMEOUT


class UpstreamRefused(UpstreamFailed):
    """The provider understood the request and refused it; `status` is the client-facing 4xx."""

    default_code = ErrorCode.UPSTREAM_REJECTED
    failure = FailureKind.REJECTED

    def __init__(
        self,
        public: str,
        *,
        status: int,
        failure: FailureKind | None = None,
        code: ErrorCode | None = None,
        param: str | None = None,
        detail: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(public, failure=failure, code=code, param=param, detail=detail, retry_after_s=retry_after_s)
        self.status = status


class Unavailable(ProxyError):
    """A part that the route cannot do without is away. The client may retry."""

    status = 503
    type = "service_unavailable"
    default_code = ErrorCode.AUDIT_UNAVAILABLE


class NotQueued(Unavailable):
    """The audit journal keeps nothing of a record: too much is unacknowledged already, or the disk has no room."""


class ClientGone(ProxyError):
    """The client closed its connection before the answer was whole."""

    status = 499
    type = "client_gone"
    default_code = ErrorCode.CLIENT_GONE


class EvidenceBroken(ProxyError):
    """A part of the audit log is not what was written, so it is not shown."""

    default_code = ErrorCode.AUDIT_BROKEN


class InternalError(ProxyError):
    """A defect of ours. The public text is always the same."""

    def __init__(self, *, detail: str) -> None:
        super().__init__("The proxy failed to handle this request.", detail=detail)


class OperatorError(Exception):
    """Something an operator must put right. Its text says what is wrong, where, and what to do."""


class NotFoundError(OperatorError):
    """What an operator named does not exist."""


class ConflictError(OperatorError):
    """What was asked for contradicts what is there: a name is taken, a limit is reached, it is revoked already."""


class StaleError(ConflictError):
    """Somebody else has changed it since the version that the operator saw."""


def client_error_of(error: OperatorError) -> ProxyError:
    """The same sentence for a client of the management API, with the status that fits: 404, 409, 412, else 400."""
    sentence = str(error)
    match error:
        case NotFoundError():
            return NotFound(sentence)
        case StaleError():
            return PreconditionFailed(sentence)
        case ConflictError():
            return Conflict(sentence)
        case _:
            return InvalidRequest(sentence)
