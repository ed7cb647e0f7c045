"""Where could a request go? Models and the provider behind each.

For: the corridor's step "plan the route", and the model lists. Takes: a model's name. Gives: `Route`.
When it fails: an unknown model is refused; a provider that won't tell its list leaves the last known one in force, and
without any the answer is 503 with the advice to set LLM_MODELS. Source: OpenAI API reference, "Models" (2026-11).
"""

from secure_llm_proxy.routing.model_directory import ModelDirectory

__all__ = ["ModelDirectory"]
