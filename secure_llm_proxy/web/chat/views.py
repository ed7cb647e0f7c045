"""`POST /chat` as a Flask view: the reference of the hot door."""

from __future__ import annotations

from flask import Blueprint, Response

from secure_llm_proxy.web.chat.door import answer_prompt
from secure_llm_proxy.web.flask_shell import arrival_of_request, as_response


def make_chat_door() -> Blueprint:
    door = Blueprint("chat", __name__)

    @door.post("/chat")
    def answer() -> Response:
        return as_response(answer_prompt(arrival_of_request()))

    return door
