"""Identity: who is asking? Users, passwords, API keys, and what a worker may believe about a key for how long.

For: the corridor's step "identify", and the operator's commands. Takes: its settings, the database, peppers derived
from SECRET_KEY, a clock. Gives: `Caller` for a key (`Identity`), and organisations, projects,
users and keys as frozen values (`Organisations`, `Accounts`, `ApiKeys`).
When it fails: closed. A key that can't be verified is refused; while the database is away keys verified within the last
minute (`cache_stale_s`) stay good and all others get 503. Revocations act within `cache_s` (5 s) in every worker, within
a second where Redis carries them.
Source: SECURITY §2, D14; NIST SP 800-63B-4; OWASP ASVS 5.0 V6; RFC 9106.
"""

from secure_llm_proxy.identity.accounts import (
    Accounts,
    ChangedUser,
    OneTimeToken,
    TokenPurpose,
    User,
    UserChanges,
    UserStatus,
)
from secure_llm_proxy.identity.api_keys import DrawnKey, KeyKind, Kid, draw_api_key, kid_of
from secure_llm_proxy.identity.identification import Identity
from secure_llm_proxy.identity.issued_keys import (
    OVERLAP_S_DEFAULT,
    OVERLAP_S_MAX,
    ApiKey,
    ApiKeys,
    IssuedKey,
    KeyChanges,
    KeyStatus,
)
from secure_llm_proxy.identity.key_rules import SCOPES
from secure_llm_proxy.identity.kill_switches import EVERYTHING, KillSubject, KillSwitch, KillSwitches
from secure_llm_proxy.identity.leaked_keys import LeakedKeys, keys_in, keys_in_stream
from secure_llm_proxy.identity.names import DEFAULT_ORGANISATION_ID, DEFAULT_PROJECT_ID, Role, login_person, role_named
from secure_llm_proxy.identity.organisations import (
    Member,
    Organisation,
    Organisations,
    Project,
    ProjectChanges,
    ProjectStatus,
)
from secure_llm_proxy.identity.passwords import PasswordHash
from secure_llm_proxy.identity.pepper_use import PepperUse, PepperUses
from secure_llm_proxy.identity.permissions import ROLE_PERMISSIONS, Permission, may, may_act_on
from secure_llm_proxy.identity.person_keys import PersonKeys
from secure_llm_proxy.identity.reach import OrganisationReach
from secure_llm_proxy.identity.revocations import announce_revocation, listen_for_revocations
from secure_llm_proxy.identity.second_factors import Enrolment, SecondFactors, SecondFactorState, qr_svg, qr_text
from secure_llm_proxy.identity.session_callers import SessionCallers
from secure_llm_proxy.identity.sessions import CleanUp, LiveSession, OpenedSession, Sessions
from secure_llm_proxy.identity.sign_in import EnrolmentWanted, SecondFactorWanted, SignedIn, SignIn

__all__ = [
    "DEFAULT_ORGANISATION_ID",
    "DEFAULT_PROJECT_ID",
    "EVERYTHING",
    "OVERLAP_S_DEFAULT",
    "OVERLAP_S_MAX",
    "ROLE_PERMISSIONS",
    "SCOPES",
    "Accounts",
    "ApiKey",
    "ApiKeys",
    "ChangedUser",
    "CleanUp",
    "DrawnKey",
    "Enrolment",
    "EnrolmentWanted",
    "Identity",
    "IssuedKey",
    "KeyChanges",
    "KeyKind",
    "KeyStatus",
    "Kid",
    "KillSubject",
    "KillSwitch",
    "KillSwitches",
    "LeakedKeys",
    "LiveSession",
    "Member",
    "OneTimeToken",
    "OpenedSession",
    "Organisation",
    "OrganisationReach",
    "Organisations",
    "PasswordHash",
    "PepperUse",
    "PepperUses",
    "Permission",
    "PersonKeys",
    "Project",
    "ProjectChanges",
    "ProjectStatus",
    "Role",
    "SecondFactorState",
    "SecondFactorWanted",
    "SecondFactors",
    "SessionCallers",
    "Sessions",
    "SignIn",
    "SignedIn",
    "TokenPurpose",
    "User",
    "UserChanges",
    "UserStatus",
    "announce_revocation",
    "draw_api_key",
    "keys_in",
    "keys_in_stream",
    "kid_of",
    "listen_for_revocations",
    "login_person",
    "may",
    "may_act_on",
    "qr_svg",
    "qr_text",
    "role_named",
]
