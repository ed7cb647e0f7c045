"""The route of a question for an answer that was given earlier: the short corridor, and there is none."""

from __future__ import annotations

from secure_llm_proxy.foundation.errors import NotFound
from secure_llm_proxy.gateway import closing, steps
from secure_llm_proxy.gateway.docket import House, Reply, open_docket, reply_to
from secure_llm_proxy.vocabulary.caller import SCOPE_CHAT
from secure_llm_proxy.vocabulary.inbound import Inbound


def fetch_response(house: House, inbound: Inbound) -> Reply:
    """Answer that no response is kept, to whom the door is open at all. Recorded like every refusal.

    1. open the docket
    2. admit
    3. identify
    4. throttle
    5. close once
    """
    docket = open_docket(house, inbound)
    try:
        steps.admit(house, docket)
        caller = steps.identify(house, docket, SCOPE_CHAT)
        steps.throttle(house, docket, caller)
        raise NotFound(  # noqa: TRY301  a refusal like every step's
            "Responses are not kept here, so none can be fetched, continued or deleted by its id. Send the whole conversation "
            "as `input`.",
        )
    except Exception as error:  # noqa: BLE001  as in chat(): every refusal is recorded
        return reply_to(docket, closing.close_failed(house, docket, error))
    except BaseException:
        closing.close_interrupted(house, docket)
        raise
