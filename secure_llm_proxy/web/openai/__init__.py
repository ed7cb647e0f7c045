"""Doors in OpenAI's wire format (platform.openai.com/docs/api-reference, read 2026-11)."""
