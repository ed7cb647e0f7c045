"""The words that rooms exchange: frozen values without behaviour beyond reading themselves.

A room never imports another room; it takes and returns these.
"""
