"""The one place that calls constructors."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import gevent
from gevent.event import Event

from secure_llm_proxy.admission import Admission, RulesInForce
from secure_llm_proxy.admission.rules import (
    COUNT_S,
    REFRESH_S,
    AddressRules,
    RuleReader,
    Violations,
    open_violations,
)
from secure_llm_proxy.audit import AuditReader, SocketJournal
from secure_llm_proxy.audit.evidence import Evidence
from secure_llm_proxy.audit.index import AuditIndex
from secure_llm_proxy.audit.index_shipping import SHIP_S, IndexShipper
from secure_llm_proxy.audit.read_evidence import ReadEvidence
from secure_llm_proxy.audit.record_reading import RecordReading
from secure_llm_proxy.audit.standing import LogStanding, standing_of
from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.clock import Clock, SystemClock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import OperatorError, ProxyError
from secure_llm_proxy.foundation.secret_values import encryption_key_of, secret_key_of
from secure_llm_proxy.gateway import House, Watch
from secure_llm_proxy.identity import (
    Accounts,
    ApiKeys,
    Identity,
    Kid,
    KillSwitches,
    LeakedKeys,
    Organisations,
    SecondFactors,
    SessionCallers,
    Sessions,
    SignIn,
    announce_revocation,
    listen_for_revocations,
)
from secure_llm_proxy.routing import DEMO, Routing, configured_providers, models_file_of
from secure_llm_proxy.routing.shared_circuits import SharedCircuits
from secure_llm_proxy.routing.stored_providers import REFRESH_S as PROVIDERS_REFRESH_S
from secure_llm_proxy.routing.stored_providers import StoredProviderReader, StoredProviders
from secure_llm_proxy.settings import Settings
from secure_llm_proxy.telemetry import Metrics
from secure_llm_proxy.throttling import Throttle, open_throttle, run_heartbeat
from secure_llm_proxy.upstream import Provider, Providers
from secure_llm_proxy.vocabulary.audit import AuditJournal
from secure_llm_proxy.vocabulary.caller import RateClass
from secure_llm_proxy.vocabulary.providers import ProviderDefinition

log = logging.getLogger(__name__)

_TROUBLE_KEPT_S = 1.0
_CLEAN_UP_S = 3600.0
_SHOW_S = 1.0


@dataclass
class Services:
    """Every part of one worker. Built after the fork; `start()` begins the background work, `stop()` ends it."""

    settings: Settings
    clock: Clock
    database: Database
    identity: Identity
    accounts: Accounts
    second_factors: SecondFactors
    sessions: Sessions
    sign_in: SignIn
    keys: ApiKeys
    organisations: Organisations
    kill_switches: KillSwitches
    csrf_key: bytes
    previous_csrf_keys: tuple[bytes, ...]
    evidence: Evidence
    audit_index: AuditIndex
    audit_records: RecordReading
    index_shipper: IndexShipper
    admission: Admission
    address_rules: AddressRules
    rule_reader: RuleReader
    violations: Violations
    throttle: Throttle
    upstream: Providers
    stored_providers: StoredProviderReader
    routing: Routing
    journal: AuditJournal
    metrics: Metrics
    house: House
    watch: Watch
    troubles: Mapping[str, Callable[[], str | None]]
    standing: LogStanding
    _greenlets: list[gevent.Greenlet[..., None]] = field(default_factory=list)

    @property
    def demo(self) -> bool:
        """True while nobody but the demo model answers."""
        return DEMO in self.upstream.all

    def provider_states(self) -> dict[str, str]:
        """Of each provider, for everybody: `ok`, `degraded` (some of its models are left alone) or `unavailable`."""
        troubles, open_circuits = self.upstream.troubles(), self.routing.circuits.open_by_provider()
        return {
            name: "unavailable" if name in troubles else "degraded" if open_circuits.get(name) else "ok"
            for name in self.upstream.all
        }

    def provider_report(self) -> list[dict[str, object]]:
        """Of each provider, for operators; never its address or a key."""
        states, troubles, circuits = self.provider_states(), self.upstream.troubles(), self.routing.circuits.views()
        return [
            {
                "name": name,
                "kind": provider.definition.kind,
                "source": provider.definition.source,
                "state": states[name],
                "trouble": troubles.get(name),
                "tags": dict(provider.definition.tags),
                "keys": len(provider.definition.keys),
                "resting_keys": provider.resting_keys,
                "circuits": [
                    {"model": view.model, "state": view.state, "opens_in_s": round(view.opens_s, 1)}
                    for view in circuits
                    if view.provider == name
                ],
            }
            for name, provider in self.upstream.all.items()
        ]

    def _show_circuits(self) -> None:
        self.metrics.show_circuits(self.routing.circuits.open_by_provider())

    def start(self) -> None:
        """Begin the background work: address rules, stored providers, violations, `last_used`, the host's heartbeat, changes
        told by Redis, counts, the audit index, and the look after exchanges that run. Address rules and stored providers
        are read before it returns, if the database answers within 3 s.
        """
        self.metrics.hold_back()
        _attempt(self.rule_reader.refresh)
        self._greenlets.append(gevent.spawn(_repeat, self.rule_reader.refresh, REFRESH_S))
        _attempt(self.stored_providers.refresh)
        self._greenlets.append(gevent.spawn(_repeat, self.stored_providers.refresh, PROVIDERS_REFRESH_S))
        self._greenlets.append(gevent.spawn(_repeat, self._show_circuits, _SHOW_S))
        if self.settings.admission.block_after_violations:
            self._greenlets.append(gevent.spawn(_repeat, self.violations.work, COUNT_S))
        flush_s = self.settings.identity.last_used_flush_s
        self._greenlets.append(gevent.spawn(_repeat, self.identity.flush_last_used, flush_s))
        self._greenlets.append(gevent.spawn(self.watch.run))
        self._greenlets.append(gevent.spawn(_repeat, self.index_shipper.work, SHIP_S))
        self._greenlets.append(gevent.spawn(_repeat, self._clean_up, _CLEAN_UP_S))
        if self.settings.redis.url is not None:
            self._greenlets.append(gevent.spawn(run_heartbeat, self.throttle, Event()))
            self._greenlets.append(gevent.spawn(listen_for_revocations, self.settings.redis, self._hear))
            shared = SharedCircuits(self.settings.redis, self.routing.circuits)
            self._greenlets.append(gevent.spawn(shared.tell))
            self._greenlets.append(gevent.spawn(shared.listen))

    def _clean_up(self) -> None:
        """What strangers can make grow, failed logins for one, goes by itself; `cleanup-sessions` does it at once."""
        self.database.run(self.sessions.cleanup)

    def _hear(self, subject: str) -> None:
        """Somebody announces that `subject` is revoked, killed, or may ask again."""
        self.identity.forget(subject)
        self.watch.wake()

    def announce(self, subject: str) -> None:
        """A key was revoked or changed, or somebody is stopped: this worker heeds it at once, the others are told where Redis
        carries it. Never raises, and waits for nobody.
        """
        self._hear(subject)
        if self.settings.redis.url is not None:
            gevent.spawn(announce_revocation, self.settings.redis, subject)

    def end_running(self) -> None:
        """The time to end is nearly over: exchanges that still run end now, each with a word to its client."""
        self.watch.end_all()

    def stop(self) -> None:
        """Flush what was collected and hang up. Records still queued get a bounded time to become durable."""
        gevent.killall(self._greenlets, block=True, timeout=2)
        try:
            self.identity.flush_last_used()
        except ProxyError as error:
            log.warning("last use of keys not written", extra={"detail": error.detail})
        self.violations.close()
        self.journal.close()
        self.metrics.flush()
        self.throttle.close()
        self.upstream.close()
        self.database.close()


def build_services(settings: Settings, clock: Clock | None = None) -> Services:
    """Build every part from its section. Connects to nothing yet."""
    clock = clock or SystemClock()
    secret_key, encryption_key = secret_key_of(settings.secrets), encryption_key_of(settings.secrets)
    metrics = Metrics()
    database = Database(settings.database)
    accounts = Accounts(
        settings.identity,
        clock,
        pepper=secret_key.key("slp/key-pepper"),
        password_pepper=secret_key.key("slp/password-pepper"),
        previous_peppers=secret_key.previous_keys("slp/key-pepper"),
        previous_password_peppers=secret_key.previous_keys("slp/password-pepper"),
    )
    second_factors = SecondFactors(
        settings.identity,
        clock,
        seal_key=encryption_key.key("slp/totp"),
        pepper=secret_key.key("slp/recovery-pepper"),
        previous_seal_keys=encryption_key.previous_keys("slp/totp"),
        previous_peppers=secret_key.previous_keys("slp/recovery-pepper"),
    )
    sessions = Sessions(
        settings.identity,
        clock,
        pepper=secret_key.key("slp/session-pepper"),
        previous_peppers=secret_key.previous_keys("slp/session-pepper"),
    )
    identity = Identity(
        settings.identity,
        database,
        secret_key.key("slp/key-pepper"),
        clock,
        SessionCallers(settings.identity, sessions, database, clock),
        previous_peppers=secret_key.previous_keys("slp/key-pepper"),
    )

    def forget_everywhere(kid: Kid) -> None:
        identity.forget(kid)
        if settings.redis.url is not None:
            gevent.spawn(announce_revocation, settings.redis, kid)

    keys = ApiKeys(
        settings.identity,
        clock,
        pepper=secret_key.key("slp/key-pepper"),
        previous_peppers=secret_key.previous_keys("slp/key-pepper"),
    )
    rules = RulesInForce()
    admission = Admission(settings.admission, rules, clock)
    address_rules = AddressRules(settings.admission, clock)
    rule_reader = RuleReader(database, address_rules, rules, clock)
    sign_in = SignIn(
        settings.identity,
        clock,
        database,
        accounts,
        second_factors,
        sessions,
        pepper=secret_key.key("slp/login-pepper"),
        previous_peppers=secret_key.previous_keys("slp/login-pepper"),
    )
    throttle = open_throttle(
        settings.throttling,
        settings.redis,
        host_id=settings.audit.host_id or platform.node(),
        clock=clock,
        on_fallback=metrics.limited_locally,
    )
    in_file = models_file_of(settings.upstream, production=settings.is_production)
    providers = configured_providers(settings.upstream, in_file.providers)
    if not providers and not settings.upstream.names_a_provider:
        raise OperatorError(
            "No provider is configured: set LLM_API_URL or a provider's key, or start with `manage.py serve` for the demo model."
        )
    upstream = Providers(settings.upstream, providers, clock=clock)
    routing = Routing(
        settings.upstream,
        lambda name: upstream.list_models(name, Cancellation()),
        clock,
        on_attempt=metrics.attempted,
        on_failure=metrics.failed,
    )
    routing.configure(providers, in_file.models)
    stored = StoredProviders(
        database,
        encryption_key.key("slp/provider-keys"),
        clock,
        previous_seal_keys=encryption_key.previous_keys("slp/provider-keys"),
    )

    def use_stored(definitions: tuple[ProviderDefinition, ...]) -> None:
        usable = [definition for definition in definitions if _is_usable(definition, settings)]
        found = configured_providers(settings.upstream, in_file.providers, usable)
        upstream.configure(found)
        routing.configure(found, in_file.models)

    journal = SocketJournal(settings.audit)
    violations = open_violations(
        settings.admission,
        settings.redis,
        admission=admission,
        database=database,
        address_rules=address_rules,
        journal=journal,
        reader=rule_reader,
        clock=clock,
    )
    house = House(
        admission=admission,
        violations=violations,
        identity=identity,
        leaked_keys=LeakedKeys(keys, database, clock, forget_everywhere),
        throttle=throttle,
        key_class=_key_class(settings),
        address_class=_address_class(settings),
        routing=routing,
        upstream=upstream,
        journal=journal,
        metrics=metrics,
        person_key=secret_key.key("slp/person"),
    )
    standing = standing_of(settings.audit, database, required=settings.is_production)
    metrics.show_gauges(standing.gauges)
    audit_reader = AuditReader(settings.audit)
    index_shipper = IndexShipper(database, audit_reader, clock, lambda: journal.handed_over)
    troubles = {
        "database": database.trouble,
        "audit": journal.trouble,
        "disk": standing.disk_trouble,
        "evidence": standing.evidence_trouble,
        "audit_index": index_shipper.trouble,
        "upstream": lambda: upstream.trouble() or routing.trouble(),
    }
    if settings.redis.url is not None:
        troubles["redis"] = throttle.trouble
    return Services(
        settings=settings,
        clock=clock,
        database=database,
        identity=identity,
        accounts=accounts,
        second_factors=second_factors,
        sessions=sessions,
        sign_in=sign_in,
        keys=keys,
        organisations=Organisations(clock),
        kill_switches=KillSwitches(clock),
        csrf_key=secret_key.key("slp/csrf"),
        previous_csrf_keys=secret_key.previous_keys("slp/csrf"),
        evidence=ReadEvidence(AuditReader(settings.audit)),
        audit_index=AuditIndex(),
        audit_records=RecordReading(audit_reader),
        index_shipper=index_shipper,
        admission=admission,
        address_rules=address_rules,
        rule_reader=rule_reader,
        violations=violations,
        throttle=throttle,
        upstream=upstream,
        stored_providers=StoredProviderReader(stored, use_stored),
        routing=routing,
        journal=journal,
        metrics=metrics,
        house=house,
        watch=Watch(house.running, identity, clock),
        troubles={name: _kept(ask) for name, ask in troubles.items()},
        standing=standing,
    )


def _is_usable(definition: ProviderDefinition, settings: Settings) -> bool:
    """False for what no provider can be made of: it keeps none of the others away."""
    try:
        Provider(definition, settings.upstream).close()
    except OperatorError as error:
        log.error("a stored provider can't be used", extra={"provider": definition.name, "why": str(error)})  # noqa: TRY400  the sentence says it all
        return False
    return True


def _key_class(settings: Settings) -> RateClass:
    limits = settings.throttling
    if limits.rate_requests is not None:
        return RateClass(limits.rate_requests, limits.key_burst, limits.key_concurrent, limits.rate_window_s or 60)
    return RateClass(limits.key_requests_per_minute, limits.key_burst, limits.key_concurrent)


def _address_class(settings: Settings) -> RateClass:
    limits = settings.throttling
    return RateClass(limits.address_requests_per_minute, limits.address_burst, limits.address_concurrent)


def _repeat(work: Callable[[], object], every_s: float) -> None:
    while True:
        gevent.sleep(every_s)
        _attempt(work)


def _attempt(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception as error:  # noqa: BLE001  it must go on for as long as the worker lives
        log.warning("background work failed", extra={"why": type(error).__name__})


def _kept(ask: Callable[[], str | None]) -> Callable[[], str | None]:
    """Health is open to anybody, so a part is asked at most once a second."""
    answer: str | None = None
    asked_s = float("-inf")

    def ask_or_remember() -> str | None:
        nonlocal answer, asked_s
        if time.monotonic() - asked_s > _TROUBLE_KEPT_S:
            asked_s = time.monotonic()
            answer = ask()
        return answer

    return ask_or_remember
