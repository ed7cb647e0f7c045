"""`manage.py doctor --production`: the checklist of a host that serves others, each point a look at the thing itself.

One file per kind of thing. What cannot be looked at, for want of a right or a tool, is *unknown*, which is not ok.
"""
