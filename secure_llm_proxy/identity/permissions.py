"""What each role may do: one table, asked by every door and command that judges a person.

Everything is bounded by the actor's organisation, except for an owner. What touches the whole deployment (`DEPLOYMENT_WIDE`)
takes, beside the permission, a member of the first organisation, who runs this deployment. Source: DESIGN §5, SECURITY §2.
"""

from __future__ import annotations

from enum import StrEnum

from secure_llm_proxy.identity.names import DEFAULT_ORGANISATION_ID, Role


class Permission(StrEnum):
    """The right side of the colon is `read` where nothing changes, `manage` where something does."""

    CHAT = "chat"
    OWN_KEYS = "own_keys:manage"
    STATUS_READ = "status:read"
    ORGANISATIONS_READ = "organisations:read"
    ORGANISATIONS_MANAGE = "organisations:manage"
    PROJECTS_READ = "projects:read"
    PROJECTS_MANAGE = "projects:manage"
    USERS_READ = "users:read"
    USERS_MANAGE = "users:manage"
    SESSIONS_READ = "sessions:read"
    SESSIONS_MANAGE = "sessions:manage"
    KEYS_READ = "keys:read"
    KEYS_MANAGE = "keys:manage"
    ADDRESS_RULES_READ = "address_rules:read"
    ADDRESS_RULES_MANAGE = "address_rules:manage"
    KILL_SWITCHES_READ = "kill_switches:read"
    KILL_SWITCHES_MANAGE = "kill_switches:manage"
    AUDIT_READ = "audit:read"
    AUDIT_REVEAL = "audit:reveal"


_READS = frozenset(permission for permission in Permission if permission.endswith(":read"))
_EVERYONES = frozenset({Permission.CHAT, Permission.OWN_KEYS})

ROLE_PERMISSIONS: dict[Role, frozenset[Permission]] = {
    Role.OWNER: frozenset(Permission),
    # Administers, and still reads nobody's prompts.
    Role.ADMIN: frozenset(Permission) - {Permission.ORGANISATIONS_MANAGE, Permission.AUDIT_REVEAL},
    Role.OPERATOR: (_READS - {Permission.AUDIT_READ})
    | _EVERYONES
    | {Permission.KEYS_MANAGE, Permission.ADDRESS_RULES_MANAGE, Permission.KILL_SWITCHES_MANAGE},
    # Sees everything, changes nothing: not even a key of his own.
    Role.AUDITOR: _READS | {Permission.AUDIT_REVEAL},
    Role.VIEWER: _READS - {Permission.AUDIT_READ},
    Role.MEMBER: _EVERYONES,
}

DEPLOYMENT_WIDE = frozenset(
    {
        Permission.ADDRESS_RULES_READ,
        Permission.ADDRESS_RULES_MANAGE,
        Permission.ORGANISATIONS_MANAGE,
    }
)

# The origin's names, for `--permissions` and for its users' eyes.
ORIGIN_PERMISSIONS: dict[str, frozenset[Permission]] = {
    "chat_access": frozenset({Permission.CHAT}),
    "audit_access": frozenset({Permission.AUDIT_READ}),
    "user_management": frozenset({Permission.USERS_READ, Permission.USERS_MANAGE, Permission.SESSIONS_MANAGE}),
    "api_key_management": frozenset({Permission.KEYS_READ, Permission.KEYS_MANAGE}),
    "security_config": frozenset({Permission.ADDRESS_RULES_READ, Permission.ADDRESS_RULES_MANAGE}),
    "system_admin": frozenset(Permission) - {Permission.AUDIT_REVEAL},
}

_RANK = {Role.OWNER: 3, Role.ADMIN: 2}


def may(role: Role, organisation_id: str, permission: Permission) -> bool:
    """Whether a person of `role` in that organisation has `permission` at all; which objects it reaches is the door's question."""
    if permission not in ROLE_PERMISSIONS[role]:
        return False
    return permission not in DEPLOYMENT_WIDE or role is Role.OWNER or organisation_id == DEFAULT_ORGANISATION_ID


def may_act_on(actor: Role, subject: Role) -> bool:
    """Nobody but an owner touches an owner, and nobody below admin an admin; nor may anybody grant what he could not touch."""
    return _RANK.get(actor, 1) >= _RANK.get(subject, 0)
