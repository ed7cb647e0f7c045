"""The product measured beside others: CPU time, latency, streams, memory, start, growth, and the time of each step of the
route; and hunted for mix-ups.

For: `bench/run`, `bench/profile`, `bench/hunt`. Takes: a machine with two cores, wrk and a C compiler (pure Python stands in
for both under --quick). Gives: tables and JSON, figures as medians of alternated rounds. When it fails: an answer other than
200, or counts that do not add up, make the run invalid; a mix-up ends the hunt with status 1.
Source: DESIGN of the product, §8; docs/performance.md tells how to read it.
"""
