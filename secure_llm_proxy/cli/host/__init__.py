"""Looking at the host that the product runs on: what `scripts/health_check`, `scripts/daily_check`, the small timers and
`manage.py doctor --production` see.

The health check must work when the product's own packages do not: `check`, `places`, `served`, `site`, `systemd`, `disks`, `ask`
and `health` use the standard library alone.
"""
