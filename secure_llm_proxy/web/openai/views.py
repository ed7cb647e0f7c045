"""OpenAI's doors as Flask views; those of the busy ones are the reference of their hot doors."""

from __future__ import annotations

from flask import Blueprint, Response

from secure_llm_proxy.web.flask_shell import arrival_of_request, as_response
from secure_llm_proxy.web.openai import completions_door, door, embeddings_door, responses_door


def make_openai_doors() -> Blueprint:
    doors = Blueprint("openai", __name__)

    @doors.post("/v1/chat/completions")
    def create_chat_completion() -> Response:
        return as_response(door.create_chat_completion(arrival_of_request()))

    @doors.post("/v1/completions")
    def create_completion() -> Response:
        return as_response(completions_door.create_completion(arrival_of_request()))

    @doors.post("/v1/embeddings")
    def create_embeddings() -> Response:
        return as_response(embeddings_door.create_embeddings(arrival_of_request()))

    @doors.post("/v1/responses")
    def create_response() -> Response:
        return as_response(responses_door.create_response(arrival_of_request()))

    @doors.get("/v1/responses/<response>")
    def retrieve_response(response: str) -> Response:
        del response  # none is kept under any name
        return as_response(responses_door.retrieve_response(arrival_of_request()))

    @doors.get("/v1/models")
    def list_models() -> Response:
        return as_response(door.answer_models(arrival_of_request()))

    @doors.get("/v1/models/<path:model>")
    def retrieve_model(model: str) -> Response:
        return as_response(door.answer_models(arrival_of_request(), model))

    return doors
