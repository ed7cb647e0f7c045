"""Doors of auditors: `/audit/export`, `/audit/report`, `/audit/validate`, under the origin's names and computed from the log."""
