"""The route of a question for the models on offer: the short corridor without a provider at its end."""

from __future__ import annotations

from secure_llm_proxy.foundation.errors import ErrorCode, NotFound
from secure_llm_proxy.gateway import closing, steps
from secure_llm_proxy.gateway.docket import House, Reply, open_docket, reply_to
from secure_llm_proxy.vocabulary.caller import SCOPE_MODELS
from secure_llm_proxy.vocabulary.events import EventName
from secure_llm_proxy.vocabulary.inbound import Inbound


def list_models(house: House, inbound: Inbound, wanted: str | None = None) -> Reply:
    """Answer with the models that this key may use, or with the one that is `wanted`. Refusals are recorded.

    1. open the docket
    2. admit
    3. identify
    4. throttle
    5. list
    6. close once
    """
    docket = open_docket(house, inbound)
    try:
        steps.admit(house, docket)
        caller = steps.identify(house, docket, SCOPE_MODELS)
        steps.throttle(house, docket, caller)
        listed = house.routing.listed()
        models = tuple(model for model in listed if caller.models is None or model in caller.models)
        if wanted is not None:
            if wanted not in models:
                raise NotFound(  # noqa: TRY301  a refusal like every step's
                    "The requested model does not exist.", code=ErrorCode.MODEL_NOT_FOUND, param="model"
                )
            models = (wanted,)
        closing.finish(house, docket, status=200, code=None, event=EventName.MODELS_REQUEST)
        return reply_to(docket, models)
    except Exception as error:  # noqa: BLE001  as in chat(): every refusal is recorded
        return reply_to(docket, closing.close_failed(house, docket, error))
    except BaseException:
        closing.close_interrupted(house, docket)
        raise
