"""Who asked and where from, as records hold it: a readable part of identifiers, and a sealed part of what a person is
known by.
"""

from __future__ import annotations

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.secret_values import pseudonym
from secure_llm_proxy.gateway.docket import Docket, House
from secure_llm_proxy.vocabulary.audit import ClearValue, indexed_values
from secure_llm_proxy.vocabulary.caller import KIND_LIVE
from secure_llm_proxy.vocabulary.chat import UpstreamRequest
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

_AGENT_KEPT = 1024
_PERSON_KEPT = 256
_ANTHROPIC = frozenset({WireFormat.ANTHROPIC_MESSAGES, WireFormat.ANTHROPIC_COUNT_TOKENS})


def clear_identity(house: House, docket: Docket) -> dict[str, ClearValue]:
    """The part of a record that stays readable: who (as identifiers and a pseudonym), through which door, to which model.

    The same for every record of an exchange from its intent on, so it is made once for those.
    """
    if docket.clear_identity is not None:
        return docket.clear_identity
    clear: dict[str, ClearValue] = {"rt": docket.inbound.door}
    if docket.caller is not None:
        person = person_of(docket) or docket.caller.user_id
        clear["ak"] = docket.caller.key_id
        clear["usr"] = docket.caller.user_id
        if docket.caller.kind != KIND_LIVE:
            clear["kind"] = docket.caller.kind
        clear["sub"] = pseudonym(house.person_key, person)
        if docket.caller.project_id:
            clear["prj"] = docket.caller.project_id
    if docket.route is not None:
        clear["mdl"] = docket.route.model
    if docket.target is not None:
        clear["up"] = docket.target.provider
    return clear


def person_of(docket: Docket) -> str | None:
    """Who the application says is asking: `X-User-ID`, else what the body says: OpenAI's `safety_identifier` or `user`,
    Anthropic's `metadata.user_id`.
    """
    if docket.inbound.person:
        return docket.inbound.person
    request = docket.request
    if request is None:
        return None
    if request.format in _ANTHROPIC:
        metadata = request.payload.get("metadata")
        named = [metadata.get("user_id")] if isinstance(metadata, dict) else []
    else:
        named = [request.payload.get("safety_identifier"), request.payload.get("user")]
    return next((value[:_PERSON_KEPT] for value in named if isinstance(value, str) and value), None)


def origin_of(docket: Docket) -> dict[str, str]:
    """The sealed part: what a person is known by."""
    inbound = docket.inbound
    named = {
        "address": inbound.address,
        "agent": inbound.user_agent[:_AGENT_KEPT],
        "person": person_of(docket),
        "session": inbound.session,
        "correlation_id": inbound.correlation_id,
    }
    return {name: value for name, value in named.items() if value}


def recorded(written: UpstreamRequest) -> bytes:
    """What leaves, as fields of a record's body: the bytes, the client's headers that go along, and what was left out."""
    told = b'"request":%b' % written.body
    if written.headers:
        told = b'%b,"headers":%b' % (told, strict_json.dumps(dict(written.headers)))
    if written.dropped:
        told = b'%b,"dropped":%b' % (told, strict_json.dumps(list(written.dropped)))
    return told


def indexed_origin(docket: Docket) -> dict[str, str]:
    """What the record can be found by, although it is sealed."""
    return indexed_values(address=docket.inbound.address, agent=docket.inbound.user_agent)
