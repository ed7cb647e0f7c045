"""Every setting of the product, one frozen section per room.

A room is handed its section and never reads the environment. Units stand in the names. Origin names keep working as
synonyms. The defaults are those of the embedded profile; `production=` is the production profile's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import BeforeValidator, SecretStr

from secure_llm_proxy.settings.registry import Section, setting

_MIB = 1024 * 1024
# The origin's MFA_REQUIRED is a switch.
_MFA_SWITCH = {
    "true": "all",
    "1": "all",
    "yes": "all",
    "on": "all",
    "false": "none",
    "0": "none",
    "no": "none",
    "off": "none",
}


def _who_needs_mfa(value: object) -> object:
    return _MFA_SWITCH.get(value.lower(), value.lower()) if isinstance(value, str) else value


def _key_of(name: str, title: str, *synonyms: str) -> Any:  # noqa: ANN401  what a field's default is to pydantic
    return setting(
        name,
        None,
        f"Key of {title}, which makes it a provider. Several, comma separated, take turns.",
        secret=True,
        synonyms=synonyms,
    )


class ServerSettings(Section):
    """Where the server listens and how many workers it has."""

    profile: Literal["embedded", "production"] = setting(
        "FLASK_ENV",
        "embedded",
        "The profile: `production` is strict; unset, `development` and `testing` are `embedded`.",
    )
    instance_directory: Path = setting(
        "INSTANCE_DIR", Path("instance"), "Where the embedded mode keeps its data: database, audit log, sockets, logs."
    )
    host: str = setting("HOST", "127.0.0.1", "Address to listen on.")
    port: int = setting("PORT", 5000, "TCP port to listen on.", ge=0, le=65535)
    bind: str | None = setting("BIND", None, "Instead of HOST and PORT: `unix:/path` of a socket that nginx speaks to.")
    workers: int = setting(
        "WORKERS",
        1,
        "Worker processes. More than one needs Redis and PostgreSQL.",
        production=4,
        synonyms=("WEB_CONCURRENCY",),
        ge=1,
        le=256,
    )
    worker_connections: int = setting("WORKER_CONNECTIONS", 1000, "Connections one worker holds open at once.", ge=1)
    graceful_timeout_s: int = setting(
        "GRACEFUL_TIMEOUT_S",
        30,
        "Seconds that the server takes to stop at most; running requests have all of them but the last 5.",
        synonyms=("SHUTDOWN_TIMEOUT",),
        ge=1,
    )
    keepalive_s: int = setting("KEEPALIVE_S", 75, "Seconds an idle client connection is kept.", ge=1)
    send_timeout_s: float = setting(
        "SEND_TIMEOUT_S",
        60.0,
        "Seconds one write to a client may take; a reader that stalls longer is hung up on.",
        gt=0,
    )
    hot_path: bool = setting(
        "HOT_PATH",
        True,
        "Off: gunicorn's stock gevent worker and plain Flask views, which the tests compare with; slower, the same answers.",
    )
    max_requests: int = setting("MAX_REQUESTS", 0, "Requests after which a worker is replaced; 0 is never.", ge=0)
    debug: bool = setting(
        "DEBUG", False, "Refused in production; elsewhere it only sets LOG_LEVEL to DEBUG.", synonyms=("FLASK_DEBUG",)
    )


class SecretSettings(Section):
    """Secrets that more than one room derives its own keys from."""

    secret_key: SecretStr | None = setting(
        "SECRET_KEY", None, "Key pepper and session keys are derived from it. At least 32 characters.", secret=True
    )
    encryption_key: SecretStr | None = setting(
        "ENCRYPTION_KEY",
        None,
        "Seals what the database keeps but must not show: second factors, keys of stored providers. At least 32 characters.",
        secret=True,
    )
    secret_keys_previous: SecretStr | None = setting(
        "SECRET_KEY_PREVIOUS",
        None,
        "Other secret keys that are accepted beside it while it is replaced, comma separated; `secrets status` tells when they"
        " can go.",
        secret=True,
    )
    encryption_keys_previous: SecretStr | None = setting(
        "ENCRYPTION_KEY_PREVIOUS",
        None,
        "Other encryption keys that still open what they sealed, comma separated, until `secrets rotate` is done.",
        secret=True,
    )
    jwt_secret: SecretStr | None = setting("JWT_SECRET", None, "Accepted from the origin, unused.", secret=True)


class DatabaseSettings(Section):
    """The relational database: SQLite in one process, PostgreSQL from two workers on."""

    url: SecretStr = setting(
        "DATABASE_URL",
        SecretStr("sqlite://"),
        "Database. Every origin's form works (`postgres://`, async drivers, `?ssl=`). Unset: SQLite in INSTANCE_DIR.",
        secret=True,
        shown_default="sqlite file app.db in INSTANCE_DIR",
    )
    pool_size: int = setting("DB_POOL_SIZE", 5, "PostgreSQL connections kept per worker.", ge=1)
    max_overflow: int = setting("DB_MAX_OVERFLOW", 10, "Further connections per worker under load.", ge=0)
    pool_timeout_s: float = setting("DB_POOL_TIMEOUT", 5.0, "Seconds to wait for a free connection.", gt=0)
    pool_recycle_s: int = setting("DB_POOL_RECYCLE", 1800, "Seconds after which a connection is renewed.", ge=1)


class RedisSettings(Section):
    """Shared state of several workers: rates, in-flight slots, key invalidation."""

    url: SecretStr | None = setting("REDIS_URL", None, "Redis; needed from two workers on.", secret=True)
    password: SecretStr | None = setting("REDIS_PASSWORD", None, "Password, when the URL has none.", secret=True)
    timeout_s: float = setting(
        "REDIS_TIMEOUT", 0.25, "Seconds to wait for Redis before this host's share of the limits is used instead.", gt=0
    )

    def connection_url(self) -> str | None:
        """The URL with REDIS_PASSWORD merged in where it names none itself."""
        if self.url is None:
            return None
        url = self.url.get_secret_value()
        parts = urlsplit(url)
        if self.password is None or parts.password is not None:
            return url
        at = f"{parts.username or ''}:{quote(self.password.get_secret_value(), safe='')}@"
        return urlunsplit(parts._replace(netloc=at + parts.netloc.rpartition("@")[2]))


class LimitSettings(Section):
    """Sizes and times of a request at the door."""

    body_bytes_max: int = setting(
        "MAX_REQUEST_SIZE", 8 * _MIB, "Largest request body, bytes.", synonyms=("MAX_CONTENT_LENGTH",), ge=1
    )
    body_timeout_s: float = setting("BODY_TIMEOUT_S", 30.0, "Seconds a client may take to send its body.", gt=0)
    prompt_characters_max: int = setting(
        "MAX_PROMPT_LENGTH", 10_000, "Longest `prompt` of POST /chat, characters.", ge=1
    )
    messages_max: int = setting("MAX_MESSAGES", 512, "Most messages in one request.", ge=1)
    server_names: tuple[str, ...] = setting(
        "SERVER_NAMES",
        (),
        "Host names that requests may name (comma list, `*.` globs); empty: any. Others get 421, except for health.",
    )


class UpstreamSettings(Section):
    """The providers behind the door and the patience with them."""

    api_url: str | None = setting(
        "LLM_API_URL",
        None,
        "Base URL of an OpenAI-compatible provider, e.g. https://llm.example.org/v1. Outside production, with no provider at all,"
        " the demo model answers.",
    )
    demo_url: str | None = setting(
        "DEMO_UPSTREAM_URL",
        None,
        "Where the demo model listens; set by `manage.py serve` for its workers, ignored where a provider is configured.",
    )
    api_key: SecretStr | None = setting(
        "LLM_API_KEY",
        None,
        "Key of LLM_API_URL's provider, sent as Bearer. Several, comma separated, take turns.",
        secret=True,
    )
    openai_api_key: SecretStr | None = _key_of("OPENAI_API_KEY", "OpenAI")
    anthropic_api_key: SecretStr | None = _key_of("ANTHROPIC_API_KEY", "Anthropic")
    azure_api_key: SecretStr | None = _key_of("AZURE_OPENAI_API_KEY", "Azure OpenAI")
    azure_endpoint: str | None = setting(
        "AZURE_OPENAI_ENDPOINT",
        None,
        "Where Azure OpenAI lives, e.g. https://NAME.openai.azure.com; goes with its key.",
    )
    azure_api_version: str | None = setting(
        "AZURE_OPENAI_API_VERSION",
        None,
        "A date (2024-10-21) takes Azure OpenAI's older API, by deployments; unset or `v1`: the current one.",
        pattern=r"^(v1|preview|\d{4}-\d{2}-\d{2}(-preview)?)$",
    )
    gemini_api_key: SecretStr | None = _key_of("GOOGLE_AI_API_KEY", "Google Gemini", "GEMINI_API_KEY")
    groq_api_key: SecretStr | None = _key_of("GROQ_API_KEY", "Groq")
    openrouter_api_key: SecretStr | None = _key_of("OPENROUTER_API_KEY", "OpenRouter")
    mistral_api_key: SecretStr | None = _key_of("MISTRAL_API_KEY", "Mistral")
    cohere_api_key: SecretStr | None = _key_of("COHERE_API_KEY", "Cohere")
    together_api_key: SecretStr | None = _key_of("TOGETHER_API_KEY", "Together AI")
    models_file: Path | None = setting(
        "MODELS_FILE",
        None,
        "Providers, models and routes (docs/providers.md), read at the start and on SIGHUP; `none`: no such file.",
        shown_default="config/models.yaml, where there is one",
    )
    models: tuple[str, ...] = setting(
        "LLM_MODELS",
        (),
        "Models on offer (comma list) of LLM_API_URL's provider, or of the only one of the environment. Empty: the provider's"
        " own list, asked every MODELS_CACHE_S.",
    )
    default_model: str | None = setting(
        "DEFAULT_MODEL", None, "Model of requests that name none; unset: the first listed."
    )
    models_cache_s: float = setting("MODELS_CACHE_S", 300.0, "Seconds that a provider's model list is kept.", gt=0)
    retries: int = setting(
        "LLM_RETRIES",
        2,
        "Further attempts of one request at a provider that failed in passing, before its model's fallbacks; 0: none.",
        ge=0,
        le=10,
    )
    retry_share: float = setting(
        "LLM_RETRY_SHARE",
        0.2,
        "Such attempts as a share of all requests of a worker, beyond ten: a provider in need is not asked twice by everybody.",
        ge=0,
        le=1,
    )
    circuit_failures: int = setting(
        "CIRCUIT_FAILURES",
        10,
        "Failures of a provider's model within CIRCUIT_WINDOW_S, at least half of its requests, after which it is left alone for"
        " CIRCUIT_OPEN_S; 0: never.",
        ge=0,
    )
    circuit_window_s: float = setting("CIRCUIT_WINDOW_S", 30.0, "Seconds in which failures are added up.", gt=0)
    circuit_open_s: float = setting(
        "CIRCUIT_OPEN_S",
        15.0,
        "Seconds that it is left alone; then one request tries, and each further failure doubles them, up to eight times.",
        gt=0,
    )
    ssl_verify: bool = setting("SSL_VERIFY", True, "Verify providers' certificates. False is refused in production.")
    private_hosts: tuple[str, ...] = setting(
        "LLM_PRIVATE_HOSTS",
        (),
        "Providers in your own network (comma list): names, `*.domain`, CIDR. Their names may lead to private addresses, and"
        " their URLs may be http. Not needed for an address in the URL itself, `localhost`, names without a dot, and"
        " `*.internal`, `*.local`, `*.lan`, `*.home.arpa`.",
    )
    ca_file: Path | None = setting("LLM_CA_FILE", None, "Own certificate authorities for providers (PEM).")
    egress_list: Path | None = setting(
        "EGRESS_LIST",
        Path("/run/secure-llm-egress/let-through.json"),
        "Where the host's egress filter says what it lets through, tried first when a provider is connected to"
        " (docs/egress.md); `none`, or no such file: names are looked up, and that is all.",
    )
    connect_timeout_s: float = setting("UPSTREAM_CONNECT_TIMEOUT_S", 5.0, "Seconds to connect, TLS included.", gt=0)
    first_byte_timeout_s: float = setting(
        "UPSTREAM_FIRST_BYTE_TIMEOUT_S", 60.0, "Seconds until the answer begins.", gt=0
    )
    idle_timeout_s: float = setting("UPSTREAM_IDLE_TIMEOUT_S", 60.0, "Seconds between two bytes of the answer.", gt=0)
    total_timeout_s: float = setting("UPSTREAM_TOTAL_TIMEOUT_S", 600.0, "Seconds for the whole answer.", gt=0)
    answer_bytes_max: int = setting("MAX_RESPONSE_SIZE", 16 * _MIB, "Largest answer, bytes.", ge=1024)
    event_bytes_max: int = setting("MAX_EVENT_SIZE", _MIB, "Largest single event of a stream, bytes.", ge=1024)
    connections_max: int = setting(
        "UPSTREAM_CONNECTIONS_MAX",
        200,
        "Idle connections kept per worker and provider; 0: a new one for each request.",
        ge=0,
    )
    referred: Mapping[str, SecretStr] = {}
    credentials_directory: Path | None = None

    @property
    def names_a_provider(self) -> bool:
        """True when the environment names a provider, or a file that may."""
        return self.api_url is not None or self.models_file is not None or bool(self.keys_by_kind())

    def keys_by_kind(self) -> dict[str, SecretStr]:
        """What the environment holds for providers of each kind, in the order of the settings."""
        kinds = (name.removesuffix("_api_key") for name in type(self).model_fields if name.endswith("_api_key"))
        return {kind: key for kind in kinds if (key := getattr(self, f"{kind}_api_key")) is not None}


class AdmissionSettings(Section):
    """Which addresses and agents may knock at the data plane's doors."""

    allowed_addresses: tuple[str, ...] = setting(
        "ALLOWED_IPS",
        (),
        "Networks (CIDR, v4 and v6) that may ask; `none`: all.",
        production=("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "127.0.0.0/8", "::1/128"),
    )
    blocked_addresses: tuple[str, ...] = setting("BLOCKED_IPS", (), "Networks that may not, whatever ALLOWED_IPS says.")
    allowed_agents: tuple[str, ...] = setting(
        "ALLOWED_USER_AGENTS", (), "Globs of product tokens that may ask; `none`: all."
    )
    blocked_agents: tuple[str, ...] = setting(
        "BLOCKED_USER_AGENTS",
        (),
        "Globs of product tokens that may not (`curl` matches `curl/8.5`, `bot` not `chatbot/1.0`).",
        production=("curl", "wget", "python-requests", "bot", "spider"),
    )
    trusted_proxies: tuple[str, ...] = setting(
        "TRUSTED_PROXIES",
        (),
        "Networks of proxies whose X-Forwarded-For is believed, read from the right. A unix peer always is.",
    )
    block_after_violations: int = setting(
        "BLOCK_AFTER_VIOLATIONS",
        0,
        "Violations (keys missing, wrong, revoked or in the URL; rates or concurrency exceeded; blocked agents) of one client"
        " address within BLOCK_VIOLATIONS_WINDOW_S that block it for BLOCK_DURATION_S. 0: never, as on a developer's machine,"
        " where it would only punish experiments.",
        production=20,
        ge=0,
    )
    violations_window_s: int = setting(
        "BLOCK_VIOLATIONS_WINDOW_S", 300, "Seconds from an address's first violation in which they are added up.", ge=1
    )
    block_duration_s: int = setting("BLOCK_DURATION_S", 900, "Seconds that such a block lasts.", ge=1)


class IdentitySettings(Section):
    """Users, passwords and API keys."""

    api_key_header: str = setting(
        "API_KEY_HEADER", "X-API-Key", "Header that carries an API key, beside Authorization."
    )
    authentication_required: bool = setting(
        "AUTHENTICATION_REQUIRED",
        True,
        "Refuse callers without a key. False only outside production: they share one limited identity.",
        synonyms=("API_KEY_VALIDATION",),
    )
    password_length_min: int = setting(
        "PASSWORD_MIN_LENGTH", 15, "Shortest password of who signs in with the password alone.", ge=8, le=128
    )
    password_length_min_with_mfa: int = setting(
        "PASSWORD_MIN_LENGTH_WITH_MFA",
        12,
        "Shortest password of who has, or must have, a second factor.",
        ge=8,
        le=128,
    )
    password_require_uppercase: bool = setting(
        "PASSWORD_REQUIRE_UPPERCASE", False, "Origin's rule; NIST 800-63B advises against it."
    )
    password_require_lowercase: bool = setting(
        "PASSWORD_REQUIRE_LOWERCASE", False, "Origin's rule; NIST 800-63B advises against it."
    )
    password_require_digits: bool = setting(
        "PASSWORD_REQUIRE_NUMBERS", False, "Origin's rule; NIST 800-63B advises against it."
    )
    password_require_special: bool = setting(
        "PASSWORD_REQUIRE_SPECIAL", False, "Origin's rule; NIST 800-63B advises against it."
    )
    key_days_default: int = setting(
        "API_KEY_EXPIRY_DAYS", 90, "Days a new API key lives unless told otherwise.", ge=1, le=365
    )
    key_days_max: int = setting("API_KEY_EXPIRY_DAYS_MAX", 365, "Longest life of an API key, days.", ge=1, le=365)
    keys_per_user_max: int = setting("MAX_API_KEYS_PER_USER", 5, "Active API keys one user may have.", ge=1)
    cache_s: float = setting("API_KEY_CACHE_S", 5.0, "Seconds a worker may go on believing a verified key.", gt=0, le=5)
    cache_stale_s: float = setting(
        "API_KEY_CACHE_STALE_S", 60.0, "Seconds a verified key stays good while the database is away.", ge=0, le=300
    )
    last_used_flush_s: float = setting(
        "API_KEY_LAST_USED_S", 30.0, "Seconds between writes of `last_used`.", gt=0, le=60
    )
    setup_token_s: int = setting("SETUP_TOKEN_S", 3600, "Seconds a one-time setup token is good.", ge=60)
    mfa_required: Annotated[Literal["admins", "all", "none"], BeforeValidator(_who_needs_mfa)] = setting(
        "MFA_REQUIRED",
        "admins",
        "Who must have a second factor: `admins` (and owners), `all` (true) or `none` (false; refused in production).",
    )
    mfa_method: str = setting("MFA_METHOD", "totp", "The second factor; only `totp` (RFC 6238) is offered.")
    mfa_issuer: str = setting(
        "MFA_ISSUER",
        "Secure LLM Proxy",
        "Name under which an authenticator app shows the account.",
        min_length=1,
        max_length=64,
        pattern=r"^[^:]+$",
    )
    mfa_strict: bool = setting(
        "MFA_STRICT", False, "Accept only the code of the current 30 seconds, not the one before (ASVS 6.5.5)."
    )
    session_idle_s: int = setting("SESSION_TIMEOUT", 1800, "Seconds after which an unused session ends.", ge=60)
    admin_session_idle_s: int = setting(
        "ADMIN_SESSION_TIMEOUT", 900, "The same for admins and owners, where it is shorter.", ge=60
    )
    session_absolute_s: int = setting(
        "SESSION_ABSOLUTE_S", 43_200, "Seconds after which every session ends, used or not.", ge=300
    )
    login_attempts_max: int = setting(
        "MAX_LOGIN_ATTEMPTS",
        5,
        "Failed logins to an account from one place before that place has to wait.",
        ge=1,
        le=100,
    )
    lockout_s: int = setting("LOCKOUT_DURATION", 900, "Seconds that it has to wait.", ge=1)


class ThrottlingSettings(Section):
    """How fast, and how much at once. Every limit is at least 1: there is no unlimited mode."""

    key_requests_per_minute: int = setting(
        "RATE_LIMIT_PER_MINUTE",
        600,
        "Requests per minute and API key.",
        production=30,
        synonyms=("REQUESTS_PER_MINUTE",),
        ge=1,
    )
    key_burst: int = setting(
        "RATE_LIMIT_BURST",
        100,
        "Requests at once before the rate counts.",
        production=5,
        synonyms=("BURST_LIMIT",),
        ge=1,
    )
    key_concurrent: int = setting(
        "CONCURRENT_REQUESTS_PER_KEY",
        100,
        "Requests in flight per API key.",
        production=50,
        synonyms=("MAX_CONCURRENT_REQUESTS",),
        ge=1,
    )
    address_requests_per_minute: int = setting(
        "ADDRESS_RATE_LIMIT_PER_MINUTE", 6000, "Requests per minute and client address.", production=300, ge=1
    )
    address_burst: int = setting("ADDRESS_RATE_LIMIT_BURST", 1000, "Burst per client address.", production=50, ge=1)
    address_concurrent: int = setting(
        "CONCURRENT_REQUESTS_PER_ADDRESS", 1000, "Requests in flight per address.", production=500, ge=1
    )
    rate_requests: int | None = setting(
        "RATE_LIMIT_REQUESTS",
        None,
        "Origin's form: so many requests per API key and RATE_LIMIT_WINDOW; applies only when set, instead of RATE_LIMIT_PER_MINUTE.",
        ge=1,
    )
    rate_window_s: int | None = setting(
        "RATE_LIMIT_WINDOW", None, "Seconds of RATE_LIMIT_REQUESTS' window; 60 if unset.", ge=1
    )
    login_requests_per_minute: int = setting(
        "LOGIN_RATE_LIMIT_PER_MINUTE",
        30,
        "Requests per minute and client address at /auth/login, /auth/mfa and /auth/setup.",
        ge=1,
    )
    management_requests_per_minute: int = setting(
        "MANAGEMENT_RATE_LIMIT_PER_MINUTE",
        600,
        "Requests per minute and user at the management API and /auth; and of an address whose requests come from nobody known.",
        ge=1,
    )
    slot_ttl_s: float = setting(
        "IN_FLIGHT_TTL_S", 900.0, "Seconds after which a dead worker's in-flight slot frees itself.", gt=0
    )
    workers: int = 1


class AuditSettings(Section):
    """The sealed log and the process that writes it."""

    directory: Path = setting(
        "AUDIT_DIR", Path("instance/audit"), "Sealed segments.", shown_default="audit in INSTANCE_DIR"
    )
    keys_directory: Path = setting(
        "AUDIT_KEYS_DIR",
        Path("instance/audit-keys"),
        "Keys of the audit writer.",
        shown_default="audit-keys in INSTANCE_DIR",
    )
    socket: Path = setting(
        "AUDIT_SOCKET",
        Path("instance/run/audit.sock"),
        "Unix socket of the audit writer.",
        shown_default="run/audit.sock in INSTANCE_DIR",
    )
    kek: SecretStr | None = setting(
        "AUDIT_KEK", None, "Key-encryption key, 32 bytes as hex or base64. Only the audit writer needs it.", secret=True
    )
    encryption_enabled: bool = setting(
        "AUDIT_ENCRYPTION_ENABLED", True, "Seal the bodies. False is refused in production."
    )
    host_id: str = setting("AUDIT_HOST_ID", "", "Name of this host's log; empty: the one found, else the host name.")
    deployment: str = setting("AUDIT_DEPLOYMENT", "default", "Name of the deployment in the log's origin.")
    patience_s: float = setting(
        "AUDIT_PATIENCE_S",
        2.0,
        "Seconds to wait for the writer before a request is refused; a restart of it takes one or a few.",
        production=10.0,
        gt=0,
    )
    unacknowledged_bytes_max: int = setting(
        "AUDIT_QUEUE_BYTES_MAX", 16 * _MIB, "Unacknowledged bytes per worker.", ge=_MIB
    )
    segment_bytes_max: int = setting(
        "AUDIT_SEGMENT_BYTES_MAX", 64 * _MIB, "Size at which a segment is closed.", ge=4096
    )
    segment_age_s: float = setting("AUDIT_SEGMENT_AGE_S", 86_400.0, "Age at which a segment is closed, seconds.", gt=0)
    orphan_grace_s: float = setting(
        "AUDIT_ORPHAN_GRACE_S",
        20.0,
        "Seconds after a worker's death until its open exchanges are recorded as orphans.",
        ge=0,
    )
    previous_keks: SecretStr | None = setting(
        "AUDIT_KEK_PREVIOUS",
        None,
        "Earlier key-encryption keys, comma separated, until `audit rotate-keys` is done. Only the audit writer needs them.",
        secret=True,
    )
    read_socket: Path | None = setting(
        "AUDIT_READ_SOCKET",
        None,
        "Unix socket on which the audit writer answers readers.",
        shown_default="beside AUDIT_SOCKET",
    )
    control_socket: Path | None = setting(
        "AUDIT_CONTROL_SOCKET",
        None,
        "Unix socket on which the audit writer takes its operator's commands.",
        shown_default="beside AUDIT_SOCKET",
    )
    checkpoint_lines: int = setting("AUDIT_CHECKPOINT_LINES", 1000, "Lines after which a checkpoint is signed.", ge=1)
    checkpoint_s: float = setting("AUDIT_CHECKPOINT_S", 10.0, "Seconds until new lines are under a checkpoint.", gt=0)
    heartbeat_s: float = setting("AUDIT_HEARTBEAT_S", 60.0, "Seconds between checkpoints while nothing happens.", gt=0)
    epoch_s: float = setting(
        "AUDIT_EPOCH_S", 3600.0, "Seconds after which the signing key is rolled and the old one erased.", gt=0
    )
    fallback_directory: Path | None = setting(
        "AUDIT_FALLBACK_DIR", None, "A second place for segments, used while AUDIT_DIR cannot be written."
    )
    free_bytes_min: int = setting(
        "AUDIT_FREE_BYTES_MIN",
        64 * _MIB,
        "Free space in AUDIT_DIR below which new requests are refused.",
        production=1024 * _MIB,
        ge=0,
    )
    free_percent_min: float = setting(
        "AUDIT_FREE_PERCENT_MIN", 0.0, "The same as a share of the file system.", production=5.0, ge=0, lt=100
    )
    reserve_bytes: int = setting(
        "AUDIT_RESERVE_BYTES",
        8 * _MIB,
        "Space kept back for the ends of running exchanges when the disk is full.",
        production=64 * _MIB,
        ge=0,
    )
    sink: str = setting(
        "AUDIT_SINK",
        "",
        "Second place for every record: file:/path, syslog:/dev/log, syslog:tcp://host:port, syslog:udp://host:port.",
    )
    sink_policy: Literal["any", "all"] = setting(
        "AUDIT_SINK_POLICY",
        "any",
        "`all`: a record is acknowledged only when the sink took it too; `any`: the log suffices.",
    )
    anchor_file: Path | None = setting("AUDIT_ANCHOR_FILE", None, "File to which every checkpoint is appended.")
    anchor_syslog: str = setting(
        "AUDIT_ANCHOR_SYSLOG",
        "",
        "Syslog to which every checkpoint is sent: /dev/log, tcp://host:port or udp://host:port; `none`: nowhere.",
        production="/dev/log",
    )
    reveals_per_hour: int = setting(
        "AUDIT_REVEALS_PER_HOUR", 60, "Records that readers may open in an hour through the read socket.", ge=0
    )
    retention_days: int | None = setting(
        "AUDIT_RETENTION_DAYS", None, "Days after which whole segments are retired; unset: never.", ge=1
    )
    backup_enabled: bool = setting(
        "AUDIT_BACKUP_ENABLED", False, "Copy closed segments and the key store, apart from each other."
    )
    backup_directory: Path | None = setting(
        "AUDIT_BACKUP_DIR", None, "Where segments are copied to.", shown_default="audit-backup in INSTANCE_DIR"
    )
    backup_keys_directory: Path | None = setting(
        "AUDIT_BACKUP_KEYS_DIR",
        None,
        "Where snapshots of the key store are kept; another place than AUDIT_BACKUP_DIR.",
        shown_default="audit-keys-backup in INSTANCE_DIR",
    )
    backup_interval_s: float = setting("AUDIT_BACKUP_INTERVAL_S", 300.0, "Seconds between two backups.", gt=0)
    backup_keys_days: int = setting(
        "AUDIT_BACKUP_KEYS_DAYS",
        35,
        "Days after which a snapshot of the key store goes; who is erased is gone from backups by then.",
        ge=1,
    )

    @property
    def read_address(self) -> Path:
        """Where the writer answers readers: `read.sock` beside `write.sock`, `x-read.sock` beside `x.sock`."""
        return self.read_socket or _beside(self.socket, "read")

    @property
    def control_address(self) -> Path:
        return self.control_socket or _beside(self.socket, "control")

    @property
    def state_path(self) -> Path:
        """What the writer tells health and status, as a file (audit-state.json)."""
        return self.read_address.with_name("audit-state.json")


def _beside(socket: Path, role: str) -> Path:
    return socket.with_name(f"{role}.sock" if socket.stem == "write" else f"{socket.stem}-{role}.sock")


class TelemetrySettings(Section):
    """Logs, metrics, error reports."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = setting(
        "LOG_LEVEL", "INFO", "Lowest level logged."
    )
    log_directory: Path | None = setting(
        "LOG_DIR",
        None,
        "Directory of app.log and app.jsonl; `none`: standard output only.",
        shown_default="log in INSTANCE_DIR",
        synonyms=("LOG_PATH",),
    )
    log_format: Literal["text", "json"] = setting("LOG_FORMAT", "text", "Form of the lines on standard output.")
    syslog: bool = setting("LOG_SYSLOG", False, "Also to /dev/log where there is one.", production=True)
    sentry_dsn: SecretStr | None = setting("SENTRY_DSN", None, "Error reports go there; unset: nowhere.", secret=True)
    metrics_token: SecretStr | None = setting(
        "METRICS_TOKEN", None, "Bearer token that opens /metrics to others than loopback.", secret=True
    )


class Settings(Section):
    """All sections; only `services.py`, the CLI and the server look at it whole."""

    server: ServerSettings = ServerSettings()
    secrets: SecretSettings = SecretSettings()
    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    limits: LimitSettings = LimitSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    admission: AdmissionSettings = AdmissionSettings()
    identity: IdentitySettings = IdentitySettings()
    throttling: ThrottlingSettings = ThrottlingSettings()
    audit: AuditSettings = AuditSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @property
    def is_production(self) -> bool:
        return self.server.profile == "production"


SECTIONS: dict[str, type[Section]] = {
    "server": ServerSettings,
    "secrets": SecretSettings,
    "database": DatabaseSettings,
    "redis": RedisSettings,
    "limits": LimitSettings,
    "upstream": UpstreamSettings,
    "admission": AdmissionSettings,
    "identity": IdentitySettings,
    "throttling": ThrottlingSettings,
    "audit": AuditSettings,
    "telemetry": TelemetrySettings,
}
