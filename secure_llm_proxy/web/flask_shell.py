"""Between Flask and what the doors are made of: the arrival of the request at hand, and Flask's form of an answer."""

from __future__ import annotations

from flask import Response, g, request

from secure_llm_proxy.web.answers import Answer
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.house import the_house


def arrival_of_request() -> Arrival:
    """One for each request, made at its first use."""
    if "arrival" not in g:
        g.arrival = Arrival(request.environ, the_house())
    found: Arrival = g.arrival
    return found


def as_response(answer: Answer) -> Response:
    if isinstance(answer.body, bytes):
        return Response(answer.body, answer.status, answer.headers)
    # Passed through as it is, so that the server can see that it relays itself.
    return Response(answer.body, answer.status, answer.headers, direct_passthrough=True)
