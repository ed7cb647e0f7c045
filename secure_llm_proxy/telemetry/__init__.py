"""Logs, metrics and error reports, none of which ever holds content or a secret.

For: operators. Takes: facts of closed exchanges, log records. Gives: app.log, app.jsonl, standard output, syslog, the
Prometheus text, Sentry events where a DSN is set. When it fails: the request goes on. Source: DESIGN, operator contract.
"""

from secure_llm_proxy.telemetry.error_reports import start_error_reports
from secure_llm_proxy.telemetry.logs import configure_logs
from secure_llm_proxy.telemetry.metrics import ExchangeFacts, Metrics, render_metrics

__all__ = ["ExchangeFacts", "Metrics", "configure_logs", "render_metrics", "start_error_reports"]
