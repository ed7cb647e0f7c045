"""The doors: HTTP in and out, and nothing that decides.

For: clients. Takes: WSGI requests. Gives: answers in the wire shape of the door. When it fails: one error shape.
Exposure is decided in `doors.DOORS` and nowhere else. Source: DESIGN, HTTP contract.
"""
