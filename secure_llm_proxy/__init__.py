"""Secure LLM Proxy: one door between an organisation's applications and every LLM provider."""

__version__ = "0.1.0"
