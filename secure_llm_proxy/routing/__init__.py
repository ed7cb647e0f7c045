"""Where could a request go? Models, the providers behind each, and what stands in when one fails.

For: the corridor's steps "plan the route" and "forward", and the model lists. Takes: a request, and the tags that its
client asks for; what became of each attempt. From the operator: providers and models, from the environment, `config/models.yaml`
and the database. Gives: `Route`, and `Attempt` after a failure.

When it fails: an unknown model is refused, and so is what no provider may or can take; a provider that won't tell its list
leaves the last known one in force, and without any the answer is 503 with the advice to set LLM_MODELS. What keeps failing
is left alone (circuits); when nothing else is left the answer is 503 with the time to come back. Workers tell each other through
Redis; without it each knows what it met itself.

Source: OpenAI API reference, "Models" (2026-11).
"""

from secure_llm_proxy.routing.circuits import CircuitView
from secure_llm_proxy.routing.definitions import DEMO, configured_providers, models_file_of
from secure_llm_proxy.routing.models import ModelDefinition, ModelsFile
from secure_llm_proxy.routing.planning import Routing, Verdict, Wish

__all__ = [
    "DEMO",
    "CircuitView",
    "ModelDefinition",
    "ModelsFile",
    "Routing",
    "Verdict",
    "Wish",
    "configured_providers",
    "models_file_of",
]
