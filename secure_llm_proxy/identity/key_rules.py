"""Rules for what a key may be bound to: scopes, models, limits, networks, agents; and which keys a user may have."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network

from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.identity.api_keys import KeyKind
from secure_llm_proxy.identity.models import ProjectRow, UserRow
from secure_llm_proxy.identity.names import Role, default_project_of, shown
from secure_llm_proxy.identity.permissions import ORIGIN_PERMISSIONS, ROLE_PERMISSIONS, Permission
from secure_llm_proxy.identity.rows import is_member
from secure_llm_proxy.vocabulary.caller import SCOPE_CHAT, SCOPE_MODELS

SCOPES = (SCOPE_CHAT, SCOPE_MODELS)
ORIGIN_SCOPES = {"chat_access": SCOPE_CHAT}
REQUESTS_PER_MINUTE_MAX = 1_000_000
_LIMIT_MAX = 1_000_000
_TOKENS_MAX = 100_000_000
_MODELS_MAX = 100
_MODEL_LENGTH_MAX = 200
_ADDRESSES_MAX = 100
_AGENTS_MAX = 50
_AGENT_LENGTH_MAX = 128
# RFC 9110 §5.6.2, the slash before a version, and the globs' ? (which is no token character; * is one).
_AGENT_CHARACTERS = frozenset("!#$%&'*+-.^_`|~/?0123456789abcdefghijklmnopqrstuvwxyz")
_MAPPED_SPACE = IPv6Network("::ffff:0:0/96")


def checked_kind(kind: str) -> KeyKind:
    try:
        return KeyKind(kind.strip().casefold())
    except ValueError:
        raise OperatorError(f"There is no kind of key {shown(kind)}; use one of: {', '.join(KeyKind)}.") from None


def checked_scopes(scopes: Iterable[str] | None, kind: KeyKind = KeyKind.LIVE, role: Role | None = None) -> list[str]:
    """The scopes in their own order, the origin's names translated; None means all that the role gives.

    A key that manages has none: it asks no models, and may do what its user's role may.
    """
    if kind is KeyKind.ADM:
        if scopes is not None:
            raise OperatorError("A key of kind adm has no scopes: it may manage what its user's role may.")
        return []
    if scopes is None:
        may_chat = role is None or Permission.CHAT in ROLE_PERMISSIONS[role]
        return [scope for scope in SCOPES if may_chat or scope != SCOPE_CHAT]
    wanted = {ORIGIN_SCOPES.get(scope, scope) for scope in scopes}
    if not wanted:
        raise OperatorError(f"A key needs at least one scope of: {', '.join(SCOPES)}.")
    if unknown := sorted(wanted.difference(SCOPES)):
        hint = "; what manages is a key of kind adm, without scopes" if unknown[0] in ORIGIN_PERMISSIONS else ""
        raise OperatorError(f"There is no scope {shown(unknown[0])}; use some of: {', '.join(SCOPES)}{hint}.")
    return [scope for scope in SCOPES if scope in wanted]


def checked_models(models: Iterable[str] | None) -> list[str] | None:
    if models is None:
        return None
    wanted = list(dict.fromkeys(model.strip() for model in models))
    if not 1 <= len(wanted) <= _MODELS_MAX:
        raise OperatorError(f"A key may name 1 to {_MODELS_MAX} models; leave them out to allow every model.")
    for model in wanted:
        if not 1 <= len(model) <= _MODEL_LENGTH_MAX or not model.isprintable():
            raise OperatorError(f"{shown(model)} is not a model's name: 1 to {_MODEL_LENGTH_MAX} printable characters.")
    return wanted


def checked_rate(requests_per_minute: int | None, *, of: str = "key") -> int | None:
    return _checked_limit(requests_per_minute, f"A {of}'s rate is", "requests per minute", REQUESTS_PER_MINUTE_MAX)


def checked_burst(burst: int | None) -> int | None:
    return _checked_limit(burst, "A key's burst is", "requests", _LIMIT_MAX)


def checked_concurrent(concurrent: int | None) -> int | None:
    return _checked_limit(concurrent, "A key may have", "requests in flight", _LIMIT_MAX)


def checked_tokens_max(tokens_max: int | None) -> int | None:
    return _checked_limit(tokens_max, "A key's ceiling is", "tokens", _TOKENS_MAX)


def checked_addresses(entries: Iterable[str] | None) -> list[str] | None:
    """Networks in their canonical CIDR form, those of IPv4-mapped addresses as IPv4; each once, in the order given."""
    if entries is None:
        return None
    networks = list(dict.fromkeys(str(_network(entry)) for entry in entries))
    if not 1 <= len(networks) <= _ADDRESSES_MAX:
        raise OperatorError(f"A key may name 1 to {_ADDRESSES_MAX} networks; leave them out to allow every address.")
    return networks


def checked_agents(entries: Iterable[str] | None) -> list[str] | None:
    """Globs of product tokens in lower case; each once, in the order given."""
    if entries is None:
        return None
    globs = list(dict.fromkeys(_agent_glob(entry) for entry in entries))
    if not 1 <= len(globs) <= _AGENTS_MAX:
        raise OperatorError(f"A key may name 1 to {_AGENTS_MAX} agents; leave them out to allow every agent.")
    return globs


def objection_to(
    session: Session, user: UserRow, *, kind: str, scopes: Iterable[str], project: ProjectRow
) -> str | None:
    """Why `user` may not have such a key; None when there is nothing against it."""
    permissions = ROLE_PERMISSIONS[Role(user.role)]
    name, role = shown(user.username), user.role
    if kind == KeyKind.ADM and not permissions - {Permission.CHAT, Permission.OWN_KEYS}:
        return f"{name} has the role {role}, which manages nothing; a key of kind adm would be of no use."
    if SCOPE_CHAT in scopes and Permission.CHAT not in permissions:
        return f"{name} has the role {role}, which may not chat; make the key without the scope {SCOPE_CHAT}."
    if project.organisation_id != user.organisation_id:
        return f"{name} belongs to another organisation than the project {shown(project.name)}."
    if needs_membership(user, project.id) and not is_member(session, project.id, user.id):
        return (
            f"{name} is not a member of the project {shown(project.name)}; add it with: manage.py projects add-member"
        )
    return None


def needs_membership(user: UserRow, project_id: str) -> bool:
    """Everybody's is the organisation's first project, and every project theirs who see all of them."""
    return (
        project_id != default_project_of(user.organisation_id)
        and Permission.PROJECTS_READ not in ROLE_PERMISSIONS[Role(user.role)]
    )


def _checked_limit(limit: int | None, what: str, unit: str, most: int) -> int | None:
    if limit is not None and not 1 <= limit <= most:
        raise OperatorError(f"{what} 1 to {most} {unit}.")
    return limit


def _network(entry: str) -> IPv4Network | IPv6Network:
    text = entry.strip()
    address, slash, prefix = text.partition("/")
    # ip_network also takes netmasks, host masks and zones: two of them can be misread, none is needed.
    if not address or "%" in text or (slash and not (prefix.isascii() and prefix.isdigit())):
        raise _no_network(entry)
    try:
        loose = ip_network(text, strict=False)
    except ValueError:
        raise _no_network(entry) from None
    try:
        network = ip_network(text)
    except ValueError:
        raise OperatorError(f"{shown(entry)} has bits set behind its prefix; write {loose} or {address}.") from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED_SPACE):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _no_network(entry: str) -> OperatorError:
    return OperatorError(f"{shown(entry)} is not an IP address or CIDR network such as 10.0.0.0/8 or fc00::/7.")


def _agent_glob(entry: str) -> str:
    text = entry.strip()
    glob = text.lower() if text.isascii() else ""
    if not 1 <= len(glob) <= _AGENT_LENGTH_MAX or not _AGENT_CHARACTERS.issuperset(glob):
        raise OperatorError(
            f"{shown(entry)} is not a glob of a product name such as curl, python-requests or *bot "
            f"(at most {_AGENT_LENGTH_MAX} characters, no spaces)."
        )
    return glob
