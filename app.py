"""`gunicorn app:app`: the WSGI application, built once in every worker."""

import sys

from secure_llm_proxy.application import create_app, stop_services
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import SettingsError, load_settings

_WORKER_BOOT_ERROR = 3  # gunicorn gives up instead of starting the same failure for ever

try:
    app = create_app(load_settings())
except (OperatorError, SettingsError) as error:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(_WORKER_BOOT_ERROR)


def stop() -> None:
    """Called by gunicorn.conf.py when this worker ends."""
    stop_services(app)
