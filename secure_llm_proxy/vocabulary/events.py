"""Names that operators grep for and auditors filter by. They are an interface: add, never rename."""

from __future__ import annotations

from enum import StrEnum


class EventName(StrEnum):
    """The operators' event names (the origin's), in app.log and as `ev` in the audit log."""

    CHAT_REQUEST = "CHAT_REQUEST"
    MODELS_REQUEST = "MODELS_REQUEST"
    SECURITY_EVENT = "SECURITY_EVENT"
    RATE_LIMIT_EXCEEDED = "RATE_LIMIT_EXCEEDED"
    AUTHENTICATION_FAILED = "AUTHENTICATION_FAILED"
    LOGIN = "LOGIN"
    LOGOUT = "LOGOUT"
    MFA_CHANGED = "MFA_CHANGED"
    PASSWORD_CHANGED = "PASSWORD_CHANGED"  # noqa: S105 -- an event, not a password
    SESSION_ENDED = "SESSION_ENDED"
    BLOCKED_IP = "BLOCKED_IP"
    INVALID_REQUEST = "INVALID_REQUEST"
    ADMIN_CHANGE = "ADMIN_CHANGE"
    AUDIT_REVEAL = "AUDIT_REVEAL"
    AUDIT_ACCESS = "AUDIT_ACCESS"
    PROCESSING_TIME = "PROCESSING_TIME"


class AuditType(StrEnum):
    """`ty` of an audit record."""

    LLM_PART = "llm.part"
    LLM_START = "llm.start"
    LLM_END = "llm.end"
    LLM_RETRY = "llm.retry"
    REFUSED = "llm.refused"
    ADMIN_INTENT = "admin.intent"
    ADMIN_RESULT = "admin.result"
    REVEAL = "audit.reveal"
    AUDIT_TROUBLE = "audit.trouble"
    AUTH_EVENT = "auth.event"
    SUBJECT_ERASED = "subject.erased"
    SEGMENT_RETIRED = "segment.retired"


class EndStatus(StrEnum):
    """`st` of an `llm.end` record: how an exchange that was started came to its end."""

    COMPLETE = "complete"
    CLIENT_ABORT = "client_abort"
    KILLED = "killed"
    SERVER_STOP = "server_stop"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    NOT_SENT = "not_sent"
    INTERNAL_ERROR = "internal_error"
    ORPHAN = "orphan"
