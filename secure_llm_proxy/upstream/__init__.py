"""The only room that speaks to providers.

For: the corridor's step "forward", the list of models, and the readiness report.

Takes: definitions of providers; a `ChatRequest` and the `Target` that it is to be written for; what was written, and the
exchange's `Cancellation`. From the settings: certificate authorities, caps, and four patiences (connect, first byte, idle,
total), which a definition may override.

Gives: a `Completion`, a `CompletionStream` whose first event has arrived, or the provider's model names. Every payload
that it gives was parsed strictly and can be written anew.

When it fails: closed. `UpstreamFailed` (unreachable, broken or unreadable answer), `UpstreamTimeout`, `UpstreamRefused`
(the provider's own 4xx) or `ClientGone`; the public texts name neither host, URL nor key, `detail` names the cause for
the operator. A connection whose answer did not end as announced is never used again, and no request is sent twice
unless a pooled connection turned out to be closed before a single byte of an answer.

Source: the vendors' API references as each format names them, RFC 9110, RFC 9112, WHATWG HTML §9.2 (server-sent
events).
"""

from __future__ import annotations

from secure_llm_proxy.upstream.provider import Provider
from secure_llm_proxy.upstream.providers import Providers

__all__ = ["Provider", "Providers"]
