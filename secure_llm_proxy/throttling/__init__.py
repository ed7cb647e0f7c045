"""How fast, and how much at once?

For: the gateway's fourth step.
Takes: the key's public id and the client's address with their `RateClass`, and the exchange's id.
Gives: a `Hold`, whose `decision` says yes or no with the figures for X-RateLimit headers, and which occupies an
in-flight slot per bucket until `release`. Four limits in one atomic step: requests per minute with burst, and requests
in flight, per key and per address; when one refuses, none is spent.
When it fails: never open, never an outage. Without Redis by choice (one worker) the same arithmetic runs in process.
With Redis away, slow, full, read-only or locked, each worker grants limit / (hosts x workers) from its own memory,
counted by `on_fallback` and told by `trouble()`; one request or heartbeat per second tries Redis again, so it is back
within 5 s, and what was granted meanwhile is told to it first. A host that starts while Redis is away believes to be
alone. A Redis that forgets (FLUSHALL, restart without disk) makes every bucket full once more: one burst too many.
Source: DESIGN §2, §6, §7; SECURITY D8; RELIABILITY R19, R24. The arithmetic is in `buckets`. One Redis node (or its
replica after a failover), not Redis Cluster: a script's keys would lie on several nodes.
"""

from secure_llm_proxy.throttling.buckets import address_bucket
from secure_llm_proxy.throttling.fallback import FallbackThrottle
from secure_llm_proxy.throttling.heartbeat import HEARTBEAT_S, run_heartbeat
from secure_llm_proxy.throttling.holds import Hold, Throttle
from secure_llm_proxy.throttling.opening import open_throttle
from secure_llm_proxy.throttling.process import ProcessThrottle
from secure_llm_proxy.throttling.redis_away import RedisAway
from secure_llm_proxy.throttling.redis_throttle import RedisThrottle
from secure_llm_proxy.throttling.shares import Shares

__all__ = [
    "HEARTBEAT_S",
    "FallbackThrottle",
    "Hold",
    "ProcessThrottle",
    "RedisAway",
    "RedisThrottle",
    "Shares",
    "Throttle",
    "address_bucket",
    "open_throttle",
    "run_heartbeat",
]
