"""Doors for operators and their monitoring: health, security status, metrics."""
