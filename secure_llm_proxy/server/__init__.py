"""Processes: the gunicorn worker class and the supervisor behind `manage.py serve`.

Stands apart: only the command line and gunicorn itself import it.
"""
