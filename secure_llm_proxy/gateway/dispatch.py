"""Asking providers until one answers, or until nothing is left that may be tried.

A further attempt is made only while nothing of an answer has been given to the client, only for failures that another
attempt may mend (the routing room decides), and only after it stands on record with the bytes that it sends. A request that
can't be put to a fallback's provider passes it over.
"""

from __future__ import annotations

import time

from gevent.event import Event

from secure_llm_proxy.foundation.errors import ClientGone, InvalidRequest, UpstreamFailed
from secure_llm_proxy.foundation.identifiers import new_record_id
from secure_llm_proxy.gateway.docket import Docket, House
from secure_llm_proxy.gateway.provenance import clear_identity, recorded
from secure_llm_proxy.vocabulary.audit import AuditEvent, ClearValue
from secure_llm_proxy.vocabulary.chat import Attempt, Completion, CompletionStream, Failure, UpstreamRequest
from secure_llm_proxy.vocabulary.events import AuditType


def ask_providers(house: House, docket: Docket, written: UpstreamRequest) -> Completion | CompletionStream:
    """The answer, or the beginning of the stream. Raises what the last provider failed with, or `ClientGone`."""
    cancellation = docket.inbound.cancellation
    upstream, routing = house.upstream, house.routing
    if written.answered is not None:
        # Nobody is asked, so nobody's standing changes by it.
        return upstream.complete(written, cancellation)
    while True:
        target = written.target
        docket.target = target
        docket.written = written
        began_s = time.monotonic()
        docket.sent = True
        routing.began(target)
        outcome: Completion | CompletionStream
        try:
            outcome = (
                upstream.stream(written, cancellation) if written.stream else upstream.complete(written, cancellation)
            )
        except UpstreamFailed as error:
            docket.add_upstream_s(time.monotonic() - began_s)
            docket.failures.append(Failure(target, error.failure, error.retry_after_s))
            routing.failed(target, error.failure)
            further = _next(house, docket)
            if further is None:
                raise
            routing.ended(target)
            written = further
            continue
        except BaseException:
            docket.add_upstream_s(time.monotonic() - began_s)
            raise
        docket.add_upstream_s(time.monotonic() - began_s)
        routing.answered(target)
        return outcome


def _next(house: House, docket: Docket) -> UpstreamRequest | None:
    """What is sent next, on record already; None when the failure stands."""
    request, route = docket.request, docket.route
    assert request is not None
    assert route is not None
    while (attempt := house.routing.next_attempt(route, docket.failures)) is not None:
        if not docket.may_ask(attempt.target):
            docket.failures.append(Failure(attempt.target, docket.failures[-1].kind, passed_over=True))
            continue
        try:
            written = house.upstream.write(attempt.target, request, docket.inbound.passed_headers)
        except InvalidRequest:
            docket.failures.append(Failure(attempt.target, docket.failures[-1].kind, passed_over=True))
            continue
        _pause(docket, attempt)
        _record(house, docket, written)
        return written
    return None


def _pause(docket: Docket, attempt: Attempt) -> None:
    """Wait as long as the attempt should; the client's leaving ends it."""
    cancellation = docket.inbound.cancellation
    if attempt.pause_s > 0 and not cancellation.raised:
        woken = Event()
        cancellation.listen(woken.set)
        try:
            woken.wait(attempt.pause_s)
        finally:
            cancellation.unlisten(woken.set)
    if cancellation.reason == "client_gone":
        raise ClientGone("The client closed the connection.")
    if docket.stopped is not None:
        raise docket.stopped


def _record(house: House, docket: Docket, written: UpstreamRequest) -> None:
    """The further attempt, durably: where to, why, and the bytes. Raises `Unavailable`: then it is not made."""
    failure = docket.failures[-1]
    clear: dict[str, ClearValue] = {
        **clear_identity(house, docket),
        "sid": docket.started_record,
        "up": written.target.provider,
        "why": failure.kind.value,
        "try": docket.attempts + 1,
        "n_in": len(written.body),
    }
    docket.attempts += 1
    body = b"{%b}" % recorded(written)
    exchange = docket.inbound.exchange_id
    house.journal.record(AuditEvent(new_record_id(), AuditType.LLM_RETRY, exchange, None, clear, body))
