"""The corridor: the order in which rooms are asked, and nothing else. It knows no web framework.

For: the data plane's doors. Takes: an `Inbound`. Gives: a `Reply`, never an exception for what a client did wrong.
When it fails: closed. What cannot be recorded, identified or limited is not sent. Source: DESIGN, the route.
"""

from secure_llm_proxy.gateway.chat import chat
from secure_llm_proxy.gateway.docket import House, Reply, ReplyFacts
from secure_llm_proxy.gateway.fetching import fetch_response
from secure_llm_proxy.gateway.models import list_models
from secure_llm_proxy.gateway.stopping import Watch
from secure_llm_proxy.gateway.streaming import RelayedStream

__all__ = ["House", "RelayedStream", "Reply", "ReplyFacts", "Watch", "chat", "fetch_response", "list_models"]
