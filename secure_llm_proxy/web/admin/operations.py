"""Every operation of the management API, one line each: doors, views and the OpenAPI document are made of this table.

It names permissions and no code, so that the guard's table costs no import. `name` is a key of `catalogue.ENDPOINTS`, which is
loaded when the management API is asked for the first time.
"""

from __future__ import annotations

from dataclasses import dataclass

from secure_llm_proxy.identity import Permission

PREFIX = "/api/v1"


@dataclass(frozen=True, slots=True)
class Operation:
    """`path` stands below `PREFIX`, as Flask writes it. `permission` None: whoever has logged in.

    `step_up`: the second factor must have been shown in the last five minutes.
    """

    method: str
    path: str
    resource: str
    name: str
    permission: Permission | None
    summary: str
    step_up: bool = False

    @property
    def endpoint(self) -> str:
        """Flask's name of the view."""
        return f"management.{self.name}"


_O = Operation
_P = Permission

# fmt: off
OPERATIONS: tuple[Operation, ...] = (
    _O("GET", "/openapi.json", "document", "read_document", None, "This document"),
    _O("GET", "/me", "me", "read_me", None, "Who is asking, and what they may do"),
    _O("GET", "/me/keys", "keys", "list_own_keys", None, "One's own API keys"),
    _O("POST", "/me/keys", "keys", "create_own_key", _P.OWN_KEYS, "Make an API key for oneself", step_up=True),
    _O("POST", "/me/keys/<key_id>/rotate", "keys", "rotate_own_key", _P.OWN_KEYS, "Replace one's own key", step_up=True),
    _O("DELETE", "/me/keys/<key_id>", "keys", "revoke_own_key", _P.OWN_KEYS, "Revoke one's own key", step_up=True),
    _O("GET", "/users", "users", "list_users", _P.USERS_READ, "Users, oldest first"),
    _O("POST", "/users", "users", "create_user", _P.USERS_MANAGE, "Make a user, with a one-time token", step_up=True),
    _O("GET", "/users/<user_id>", "users", "read_user", _P.USERS_READ, "One user"),
    _O("PATCH", "/users/<user_id>", "users", "update_user", _P.USERS_MANAGE, "Change a user", step_up=True),
    _O("DELETE", "/users/<user_id>", "users", "disable_user", _P.USERS_MANAGE, "A user leaves, for good", step_up=True),
    _O("POST", "/users/<user_id>/lock", "users", "lock_user", _P.USERS_MANAGE, "Refuse a user", step_up=True),
    _O("POST", "/users/<user_id>/unlock", "users", "unlock_user", _P.USERS_MANAGE, "Let a user in again", step_up=True),
    _O("POST", "/users/<user_id>/password-reset", "users", "reset_password", _P.USERS_MANAGE,
       "Start a password reset, with a one-time token", step_up=True),
    _O("GET", "/keys", "keys", "list_keys", _P.KEYS_READ, "API keys, oldest first"),
    _O("POST", "/keys", "keys", "create_key", _P.KEYS_MANAGE, "Make an API key for a user", step_up=True),
    _O("GET", "/keys/<key_id>", "keys", "read_key", _P.KEYS_READ, "One API key"),
    _O("PATCH", "/keys/<key_id>", "keys", "update_key", _P.KEYS_MANAGE, "Change what a key may do", step_up=True),
    _O("DELETE", "/keys/<key_id>", "keys", "revoke_key", _P.KEYS_MANAGE, "Revoke a key, for ever", step_up=True),
    _O("POST", "/keys/<key_id>/rotate", "keys", "rotate_key", _P.KEYS_MANAGE, "Replace a key", step_up=True),
    _O("POST", "/keys/<key_id>/quarantine", "keys", "quarantine_key", _P.KEYS_MANAGE, "Refuse a key", step_up=True),
    _O("POST", "/keys/<key_id>/release", "keys", "release_key", _P.KEYS_MANAGE, "End its quarantine", step_up=True),
    _O("GET", "/projects", "projects", "list_projects", _P.PROJECTS_READ, "Projects, oldest first"),
    _O("POST", "/projects", "projects", "create_project", _P.PROJECTS_MANAGE, "Make a project"),
    _O("GET", "/projects/<project_id>", "projects", "read_project", _P.PROJECTS_READ, "One project"),
    _O("PATCH", "/projects/<project_id>", "projects", "update_project", _P.PROJECTS_MANAGE, "Change a project"),
    _O("GET", "/projects/<project_id>/members", "projects", "list_members", _P.PROJECTS_READ, "Members of a project"),
    _O("POST", "/projects/<project_id>/members", "projects", "add_member", _P.PROJECTS_MANAGE, "Add a member"),
    _O("DELETE", "/projects/<project_id>/members/<user_id>", "projects", "remove_member", _P.PROJECTS_MANAGE,
       "Remove a member, and revoke the keys that take a membership"),
    _O("GET", "/organisations", "organisations", "list_organisations", _P.ORGANISATIONS_READ, "Organisations"),
    _O("POST", "/organisations", "organisations", "create_organisation", _P.ORGANISATIONS_MANAGE,
       "Make an organisation, with its first project"),
    _O("GET", "/organisations/<organisation_id>", "organisations", "read_organisation", _P.ORGANISATIONS_READ,
       "One organisation"),
    _O("PATCH", "/organisations/<organisation_id>", "organisations", "rename_organisation", _P.ORGANISATIONS_MANAGE,
       "Rename an organisation"),
    _O("GET", "/sessions", "sessions", "list_sessions", _P.SESSIONS_READ, "Sessions that have not ended"),
    _O("DELETE", "/sessions/<session_id>", "sessions", "end_session", _P.SESSIONS_MANAGE, "End a session"),
    _O("GET", "/address-rules", "address_rules", "list_address_rules", _P.ADDRESS_RULES_READ, "Address rules in force"),
    _O("POST", "/address-rules", "address_rules", "add_address_rule", _P.ADDRESS_RULES_MANAGE,
       "Block or allow a network, everywhere within 5 s"),
    _O("GET", "/address-rules/<rule_id>", "address_rules", "read_address_rule", _P.ADDRESS_RULES_READ, "One address rule"),
    _O("DELETE", "/address-rules/<rule_id>", "address_rules", "remove_address_rule", _P.ADDRESS_RULES_MANAGE,
       "Remove an address rule, also a temporary block"),
    _O("GET", "/audit/records", "audit_records", "list_audit_records", _P.AUDIT_READ,
       "Records of the audit log by what they say in clear, newest first"),
    _O("GET", "/audit/records/<record_id>", "audit_records", "read_audit_record", _P.AUDIT_READ,
       "One record, read from its segment"),
    _O("POST", "/audit/records/<record_id>/reveal", "audit_records", "reveal_audit_record", _P.AUDIT_REVEAL,
       "Open the body of a record, with a code of an enrolled reader", step_up=True),
    _O("GET", "/kill-switches", "kill_switches", "list_kill_switches", _P.KILL_SWITCHES_READ, "Who is stopped"),
    _O("POST", "/kill-switches", "kill_switches", "kill", _P.KILL_SWITCHES_MANAGE,
       "Stop a key, user, project, organisation or everything, everywhere within 5 s"),
    _O("DELETE", "/kill-switches/<subject>", "kill_switches", "unkill", _P.KILL_SWITCHES_MANAGE, "Let it go again",
       step_up=True),
)
# fmt: on
