"""Doors in Anthropic's wire format (platform.claude.com/docs/en/api, read 2026-11-21)."""
