"""The doors of those who run the deployment: `/api/v1`, and what they share with `/auth` and the dashboard.

For: administrators, their tools, the dashboard. Takes: WSGI requests with a session (cookie or header) or a `slp_adm_` key.
Gives: resources as JSON, and the OpenAPI document of exactly these operations. When it fails: closed; a change that can't be
recorded is not made. A Flask application of its own, made at the first request to it: a worker that only carries traffic
pays nothing for it (docs/decisions/0007). Source: DESIGN §4, SECURITY §2, OpenAPI 3.1.
"""
