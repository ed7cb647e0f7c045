"""Google's Gemini API: generateContent, its stream, countTokens, embedContent and batchEmbedContents. A stream's events are answers.

Source: Gemini API reference (v1beta), read 2026-11-21.
"""

from __future__ import annotations

from secure_llm_proxy.vocabulary.text_tables.shape import (
    LABELS,
    MEDIA,
    OUTPUT_SCHEMA,
    QUIET,
    STRUCTURE,
    TOOL_SCHEMA,
    Channel,
    Shape,
    blob,
    both_spellings,
    structure,
    text,
    texts,
    variants_of,
    whole,
)


def _part(channel: Channel) -> Shape:
    named = both_spellings({"displayName": text(Channel.FILE)})
    inline, inline_snake = blob("data", "mimeType", named), blob("data", "mime_type", named)
    result = whole(Channel.TOOL_RESULT)
    return Shape(
        channel,
        both_spellings(
            {
                "text": text(channel),
                "thought": STRUCTURE,
                "thoughtSignature": MEDIA,
                "inlineData": inline,
                "fileData": Shape(
                    fields=both_spellings(
                        {
                            **structure("mimeType"),
                            "fileUri": text(Channel.URL),
                            "displayName": text(Channel.FILE),
                        }
                    )
                ),
                "functionCall": Shape(
                    Channel.TOOL_CALL,
                    both_spellings(
                        {
                            **structure("id willContinue"),
                            "name": text(Channel.TOOL_CALL),
                            "args": whole(Channel.TOOL_CALL),
                            "partialArgs": whole(Channel.TOOL_CALL),
                        }
                    ),
                ),
                "functionResponse": Shape(
                    Channel.TOOL_RESULT,
                    both_spellings(
                        {
                            **structure("id willContinue scheduling"),
                            "name": text(Channel.TOOL_RESULT),
                            "response": result,
                            "parts": Shape(
                                Channel.TOOL_RESULT,
                                {"inlineData": inline, "inline_data": inline_snake, "text": text(Channel.TOOL_RESULT)},
                            ),
                        }
                    ),
                ),
                "executableCode": Shape(fields={**structure("language id"), "code": text(Channel.TOOL_CALL)}),
                "codeExecutionResult": Shape(fields={**structure("outcome id"), "output": text(Channel.TOOL_RESULT)}),
                "videoMetadata": QUIET,
                "mediaResolution": QUIET,
                "partMetadata": whole(Channel.UNKNOWN),
            }
        )
        | {"inline_data": inline_snake},
    )


def _content(channel: Channel) -> Shape:
    """A content; a string where a caller wrote one instead of parts."""
    parts = variants_of("thought", {True: _part(Channel.REASONING)}, _part(channel))
    return Shape(channel, {"role": STRUCTURE, "parts": parts})


_CONTENTS = variants_of(
    "role",
    {
        "user": _content(Channel.USER),
        "model": _content(Channel.ASSISTANT),
        "function": _content(Channel.TOOL_RESULT),
        "system": _content(Channel.SYSTEM),
        # Without a role it is the user's.
        None: _content(Channel.USER),
    },
    _content(Channel.UNKNOWN),
)
_DECLARATION = Shape(
    fields=both_spellings(
        {
            **structure("behavior"),
            **texts(Channel.TOOL_DEFINITION, "name description"),
            "parameters": TOOL_SCHEMA,
            "parametersJsonSchema": TOOL_SCHEMA,
            "response": TOOL_SCHEMA,
            "responseJsonSchema": TOOL_SCHEMA,
        }
    ),
)
_TOOLS = Shape(
    fields=both_spellings({"functionDeclarations": _DECLARATION}),
    rest=whole(Channel.TOOL_DEFINITION),
    names=Channel.TOOL_DEFINITION,
)
_GENERATION = Shape(
    fields=both_spellings(
        {
            **structure(
                "candidateCount maxOutputTokens temperature topP topK seed presencePenalty frequencyPenalty responseLogprobs"
                " logprobs responseModalities mediaResolution enableEnhancedCivicAnswers responseMimeType"
            ),
            "stopSequences": text(Channel.PARAMETER),
            "responseSchema": OUTPUT_SCHEMA,
            "responseJsonSchema": OUTPUT_SCHEMA,
            "thinkingConfig": QUIET,
            "speechConfig": QUIET,
            "imageConfig": QUIET,
        }
    ),
)
GENERATE_REQUEST = Shape(
    fields=both_spellings(
        {
            **structure("model cachedContent serviceTier store"),
            "contents": _CONTENTS,
            "systemInstruction": _content(Channel.SYSTEM),
            "tools": _TOOLS,
            "toolConfig": Shape(
                fields=both_spellings(
                    {
                        "functionCallingConfig": Shape(
                            fields=both_spellings(
                                {**structure("mode"), "allowedFunctionNames": text(Channel.TOOL_DEFINITION)}
                            )
                        ),
                        "retrievalConfig": QUIET,
                    }
                )
            ),
            "safetySettings": QUIET,
            "generationConfig": _GENERATION,
            "labels": LABELS,
        }
    ),
)
_ERROR = Shape(
    Channel.ERROR, {**structure("code status"), "message": text(Channel.ERROR), "details": whole(Channel.ERROR)}
)
_TOKENS = Shape(fields={**structure("tokenId logProbability"), "token": text(Channel.TOKEN)})
_TOKENS.fields = {**_TOKENS.fields, "candidates": _TOKENS}
_SOURCES = Shape(
    fields={**structure("startIndex endIndex"), **texts(Channel.CITATION, "uri license title publicationDate")}
)
GENERATE_ANSWER = Shape(
    fields={
        **structure("modelVersion responseId createTime"),
        "candidates": Shape(
            fields={
                **structure("finishReason index tokenCount avgLogprobs"),
                "content": _content(Channel.ASSISTANT),
                "finishMessage": text(Channel.ERROR),
                "safetyRatings": QUIET,
                "citationMetadata": Shape(fields={"citationSources": _SOURCES, "citations": _SOURCES}),
                "groundingAttributions": whole(Channel.CITATION),
                "groundingMetadata": whole(Channel.CITATION),
                "urlContextMetadata": whole(Channel.CITATION),
                "logprobsResult": Shape(
                    fields={
                        **structure("logProbabilitySum"),
                        "topCandidates": _TOKENS,
                        "chosenCandidates": _TOKENS,
                    }
                ),
            }
        ),
        "promptFeedback": Shape(
            fields={
                **structure("blockReason"),
                "safetyRatings": QUIET,
                "blockReasonMessage": text(Channel.ERROR),
            }
        ),
        "usageMetadata": QUIET,
        "modelStatus": Shape(fields={**structure("modelStage retirementTime"), "message": text(Channel.ERROR)}),
        "error": _ERROR,
    },
)
COUNT_REQUEST = Shape(
    fields={**GENERATE_REQUEST.fields, **both_spellings({"generateContentRequest": GENERATE_REQUEST})}
)
COUNT_ANSWER = Shape(
    fields={**structure("totalTokens cachedContentTokenCount"), "promptTokensDetails": QUIET,
            "cacheTokensDetails": QUIET, "error": _ERROR}
)  # fmt: skip
_EMBED_FIELDS = both_spellings(
    {
        **structure("model taskType outputDimensionality"),
        "content": _content(Channel.USER),
        "title": text(Channel.FILE),
    }
)
EMBED_REQUEST = Shape(fields={**_EMBED_FIELDS, "requests": Shape(fields=_EMBED_FIELDS)})
_VALUES = Shape(fields={"values": STRUCTURE, "shape": STRUCTURE})
EMBED_ANSWER = Shape(fields={"embedding": _VALUES, "embeddings": _VALUES, "usageMetadata": QUIET, "error": _ERROR})
