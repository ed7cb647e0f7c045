"""The only room that speaks to providers.

For: the corridor's step "forward", the list of models, and the readiness report.

Takes: a `Route`, the request as bytes that were written anew by us, and the exchange's `Cancellation`. From the
settings: where the provider lives, its key, its certificate authorities, and four patiences (connect, first byte,
idle, total).

Gives: a `Completion`, a `CompletionStream` whose first event has arrived, or the provider's model names. Every payload
that it gives was parsed strictly and can be written anew.

When it fails: closed. `UpstreamFailed` (unreachable, broken or unreadable answer), `UpstreamTimeout`, `UpstreamRefused`
(the provider's own 4xx) or `ClientGone`; the public texts name neither host, URL nor key, `detail` names the cause for
the operator. A connection whose answer did not end as announced is never used again, and no request is sent twice
unless a pooled connection turned out to be closed before a single byte of an answer.

Source: OpenAI API reference (chat completions, models; 2026-11), RFC 9110, RFC 9112, WHATWG HTML §9.2 (server-sent
events).
"""

from __future__ import annotations

from secure_llm_proxy.upstream.provider import OpenAiCompatibleProvider

__all__ = ["OpenAiCompatibleProvider"]
