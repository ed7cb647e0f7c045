"""The route of a chat request."""

from __future__ import annotations

import time
from collections.abc import Callable

from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.gateway import closing, steps
from secure_llm_proxy.gateway.dispatch import ask_providers
from secure_llm_proxy.gateway.docket import House, Reply, open_docket, reply_to
from secure_llm_proxy.gateway.streaming import RelayedStream
from secure_llm_proxy.vocabulary.caller import SCOPE_CHAT
from secure_llm_proxy.vocabulary.chat import ChatRequest, Completion
from secure_llm_proxy.vocabulary.inbound import Inbound

ReadRequest = Callable[[JsonObject], ChatRequest]


def chat(house: House, inbound: Inbound, read_request: ReadRequest) -> Reply:
    """Answer one chat request, plain or streamed, and leave a record of it whatever happens.

    1. open the docket
    2. admit
    3. identify
    4. throttle
    5. read
    6. plan the route
    7. write for the provider
    8. audit the intent
    9. forward
    10. close once

    Values only flow right: a step reads what earlier steps returned and never asks a room to look back. `read_request`
    is the door's own reading of its wire format. A refusal at any step closes the docket too, and is recorded.
    """
    docket = open_docket(house, inbound)
    try:
        steps.admit(house, docket)
        caller = steps.identify(house, docket, SCOPE_CHAT)
        steps.throttle(house, docket, caller)
        request = steps.read(house, docket, read_request)
        route = steps.plan_route(house, docket, caller, request)
        written = steps.write(house, docket, route, request)
        steps.audit_intent(house, docket, written)
        started_s = time.monotonic()
        outcome = ask_providers(house, docket, written)
        if not isinstance(outcome, Completion):
            translated = docket.written is not None and docket.written.translated
            return reply_to(docket, RelayedStream(house, docket, outcome, started_s, translated=translated))
        closing.close_completed(house, docket, outcome)
        return reply_to(docket, outcome)
    except Exception as error:  # noqa: BLE001  nothing may leave the corridor unrecorded, a defect of ours least of all
        return reply_to(docket, closing.close_failed(house, docket, error))
    except BaseException:
        # The worker is being stopped in mid-request: record it on the way out.
        closing.close_interrupted(house, docket)
        raise
