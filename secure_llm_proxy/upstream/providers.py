"""All configured providers, and the writing of requests for them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.clock import Clock, SystemClock
from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest, Unavailable
from secure_llm_proxy.upstream.formats import FORMATS
from secure_llm_proxy.upstream.formats.face import unreadable
from secure_llm_proxy.upstream.provider import Provider
from secure_llm_proxy.upstream.token_estimate import estimate_tokens
from secure_llm_proxy.vocabulary.chat import Completion, UpstreamRequest, Usage
from secure_llm_proxy.vocabulary.conversation import (
    Conversation,
    EmbeddingRequest,
    Embeddings,
    TokenCount,
    TokenCountRequest,
)
from secure_llm_proxy.vocabulary.wire_formats import OPERATION_OF, Operation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from secure_llm_proxy.foundation.cancellation import Cancellation
    from secure_llm_proxy.foundation.strict_json import JsonObject
    from secure_llm_proxy.settings import UpstreamSettings
    from secure_llm_proxy.vocabulary.chat import ChatRequest, CompletionStream, Target
    from secure_llm_proxy.vocabulary.conversation import NeutralAnswer
    from secure_llm_proxy.vocabulary.providers import ProviderDefinition

# Versions and names of betas, alone or in a list: no place for words of a conversation.
_PASSED = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PASSED_MAX = 32


class Providers:
    """The providers of the definitions that were given last. One worker's; any greenlet may use it."""

    def __init__(
        self, settings: UpstreamSettings, definitions: Iterable[ProviderDefinition] = (), *, clock: Clock | None = None
    ) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._providers: dict[str, Provider] = {}
        self.configure(definitions)

    def configure(self, definitions: Iterable[ProviderDefinition]) -> None:
        """Take these from now on. One whose definition did not change keeps its connections; exchanges that run with one
        that is gone end undisturbed. Raises `OperatorError`, and then nothing has changed.
        """
        before = self._providers
        made: dict[str, Provider] = {}
        for definition in definitions:
            known = before.get(definition.name)
            same = known is not None and known.definition == definition
            made[definition.name] = known if same and known else Provider(definition, self._settings, clock=self._clock)
        self._providers = made
        for name, provider in before.items():
            if made.get(name) is not provider:
                provider.close()

    @property
    def all(self) -> Mapping[str, Provider]:
        return self._providers

    def can_answer(self, target: Target, request: ChatRequest) -> bool:
        """True when this provider speaks a format into which the request can be put, or we answer in its place."""
        provider = self._providers.get(target.provider)
        return provider is not None and (
            provider.format_for(request.format) is not None or OPERATION_OF[request.format] is Operation.COUNT_TOKENS
        )

    def write(self, target: Target, request: ChatRequest, headers: tuple[tuple[str, str], ...] = ()) -> UpstreamRequest:
        """The request as `target` will get it, to the byte. `headers` are the client's own that may be of use to it.

        Tokens are estimated here where the provider counts none; then nothing will be sent.

        Raises `InvalidRequest` for what can't be said to this provider, `Unavailable` when it is not configured any more.
        """
        provider = self._of(target)
        kind, ask_usage = provider.kind, provider.definition.usage_in_streams
        known = provider.format_for(request.format)
        if known is None and OPERATION_OF[request.format] is Operation.COUNT_TOKENS:
            return _estimated(target, request)
        if known is None:
            raise InvalidRequest(
                "The provider behind this model offers nothing of this kind.",
                code=ErrorCode.UNSUPPORTED_PARAMETER,
                param="model",
            )
        provider.require_model(known, target.model)
        wire_format = FORMATS[known]
        translated = known is not request.format
        vectors = None
        if not translated:
            written = wire_format.adapt(request.payload, target.model, kind, stream=request.stream, ask_usage=ask_usage)
        else:
            if request.read is None:
                raise AssertionError("the door has no reading of its format")
            neutral = request.read(request.payload)
            if (
                target.max_output_tokens is not None
                and isinstance(neutral, Conversation)
                and neutral.max_tokens is None
            ):
                # Some formats demand a number: the operator's is better than one of ours.
                neutral = replace(neutral, max_tokens=target.max_output_tokens)
            if isinstance(neutral, EmbeddingRequest):
                vectors = len(neutral.inputs)
            written = wire_format.write(neutral, target.model, kind, ask_usage=ask_usage)
        body = strict_json.dumps(written.payload)
        return UpstreamRequest(
            target,
            known,
            body,
            request.stream,
            translated,
            written.dropped,
            written.shows_usage,
            tuple((name, value) for name, value in headers if name in kind.passes and _may_pass(value))
            if headers
            else (),
            written_for=provider.definition,
            vectors=vectors,
        )

    def complete(self, request: UpstreamRequest, cancellation: Cancellation) -> Completion:
        """See `Provider.complete`."""
        if request.answered is not None:
            return _own_answer(request, request.answered)
        completion = self._speaking(request).complete(request, cancellation)
        answer = completion.answer
        if request.vectors is not None and isinstance(answer, Embeddings) and len(answer.vectors) != request.vectors:
            # One short, and every vector behind it would stand for another text.
            raise unreadable(f"{len(answer.vectors)} vectors came for {request.vectors} texts")
        return completion

    def stream(self, request: UpstreamRequest, cancellation: Cancellation) -> CompletionStream:
        """See `Provider.stream`."""
        return self._speaking(request).stream(request, cancellation)

    def list_models(self, name: str, cancellation: Cancellation) -> tuple[str, ...]:
        """The models of the provider `name`. Raises `UpstreamFailed`, or `Unavailable` when it is not configured."""
        return self._named(name).list_models(cancellation)

    def troubles(self) -> dict[str, str]:
        """A sentence for each provider that is in trouble."""
        return {name: told for name, provider in self._providers.items() if (told := provider.trouble())}

    def trouble(self) -> str | None:
        """One sentence for all of them; None when all is well."""
        troubles = self.troubles()
        if len(self._providers) == 1:
            return next(iter(troubles.values()), None)
        return " ".join(f"{name}: {told}" for name, told in troubles.items()) or None

    def close(self) -> None:
        for provider in self._providers.values():
            provider.close()

    def _speaking(self, request: UpstreamRequest) -> Provider:
        """Its provider, unless that has changed since the request was written: what was planned for the tags, and recorded
        for the place, that it had then goes to no other.
        """
        provider = self._of(request.target)
        written_for = request.written_for
        if written_for is not None and provider.definition is not written_for and provider.definition != written_for:
            raise _gone(request.target.provider)
        return provider

    def _of(self, target: Target) -> Provider:
        return self._named(target.provider)

    def _named(self, name: str) -> Provider:
        try:
            return self._providers[name]
        except KeyError:
            raise _gone(name) from None


def _gone(name: str) -> Unavailable:
    return Unavailable(
        "The provider of this model is not configured any more.",
        code=ErrorCode.PROVIDER_UNAVAILABLE,
        detail=f"no provider {name} as it was",
        retry_after_s=1,
    )


def _estimated(target: Target, request: ChatRequest) -> UpstreamRequest:
    """Our own count of the tokens, with what it is made of as the body."""
    if request.read is None:
        raise AssertionError("the door has no reading of its format")
    asked = request.read(request.payload)
    if not isinstance(asked, TokenCountRequest):
        raise TypeError("a count was asked for")
    count = TokenCount(estimate_tokens(asked.conversation), estimated=True)
    body = strict_json.dumps({**request.payload, "model": target.model})
    return UpstreamRequest(target, request.format, body, stream=False, translated=True, answered=count)


def _own_answer(request: UpstreamRequest, answer: NeutralAnswer) -> Completion:
    told: JsonObject = {"input_tokens": answer.tokens, "estimated": True} if isinstance(answer, TokenCount) else {}
    return Completion(told, "", Usage(), request.target.model, request.format, answer)


def _may_pass(value: str) -> bool:
    names = value.split(",")
    return len(names) <= _PASSED_MAX and all(_PASSED.fullmatch(name.strip(" ")) for name in names)
