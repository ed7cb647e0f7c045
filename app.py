"""`gunicorn app:app`: the WSGI application, built once in every worker."""

import sys

from secure_llm_proxy import application
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import SettingsError, settings_in_force

_WORKER_BOOT_ERROR = 3  # gunicorn gives up instead of starting the same failure for ever

try:
    app = application.create_app(settings_in_force().settings)
except (OperatorError, SettingsError) as error:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(_WORKER_BOOT_ERROR)


def end_running() -> None:
    """Called by this worker when its time to end is nearly over."""
    application.end_running(app)


def stop() -> None:
    """Called by gunicorn.conf.py when this worker ends."""
    application.stop_services(app)
