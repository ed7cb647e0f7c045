"""Anthropic's doors as Flask views; that of messages is the reference of the hot door."""

from __future__ import annotations

from flask import Blueprint, Response

from secure_llm_proxy.web.anthropic import door
from secure_llm_proxy.web.flask_shell import arrival_of_request, as_response


def make_anthropic_doors() -> Blueprint:
    doors = Blueprint("anthropic", __name__)

    @doors.post("/v1/messages")
    def create_message() -> Response:
        return as_response(door.create_message(arrival_of_request()))

    @doors.post("/v1/messages/count_tokens")
    def count_tokens() -> Response:
        return as_response(door.count_tokens(arrival_of_request()))

    return doors
