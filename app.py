"""`gunicorn app:app`: the WSGI application, built once in every worker."""

from secure_llm_proxy.application import create_app, stop_services
from secure_llm_proxy.settings import load_settings

app = create_app(load_settings())


def stop() -> None:
    """Called by gunicorn.conf.py when this worker ends."""
    stop_services(app)
