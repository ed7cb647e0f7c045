"""The demo upstream: a small server that really speaks the OpenAI protocol over loopback HTTP, without any model.

For: whoever starts the proxy with no provider configured and wants to see the whole route work.

Takes: `python -m secure_llm_proxy.demo --port N`; chat completions (plain and streamed) and the list of models.

Gives: the same answer to the same question, which says that it is a demo. It logs nothing and keeps nothing.

When it fails: OpenAI's error shape for every refusal. It binds to loopback only, so it can't be reached from outside.

Source: OpenAI API reference, chat completions and models, 2026-11. Nobody imports this package; it is a program.
"""

from __future__ import annotations
