#!/usr/bin/env python3
"""Operator commands of Secure LLM Proxy: `python manage.py --help`."""

from secure_llm_proxy.cli.program import main

if __name__ == "__main__":
    main()
