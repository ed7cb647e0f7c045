"""What travels between a worker and the writer on the unix socket; all integers little endian.

    hello    worker → writer   8 bytes `SLPAUD`, 0, version 1 · 16 bytes uuid of the worker
    welcome  writer → worker   u64 counter of this worker's last durable record, 0 for none
    frame    worker → writer   u32 length of what follows the head · u64 counter · u8 flags (0) · u8 length of the values to
                               index · u16 length of metadata ‖ values (a JSON object, or nothing) ‖ metadata (a JSON
                               object) ‖ body
    ack      writer → worker   u64 c: every record up to c is durable;
                               with the top bit: every record below c is durable, c itself was refused;
                               with the bit below it: there is no room for c, which is not written; it says nothing of
                               other records, and comes before any later record of this worker becomes durable

Counters start at 1 and grow; after a reconnect the worker sends what lies above the welcome's counter again, in order.
Why it looks like this: measured, the cheapest hop that keeps every promise (no JSON around bodies, one send for all
frames of a loop turn, one number per worker as the whole idempotency window).
"""

from __future__ import annotations

import struct

from secure_llm_proxy.vocabulary.events import AuditType

MAGIC = b"SLPAUD\x00\x01"
HELLO_BYTES = len(MAGIC) + 16

HEAD = struct.Struct("<IQBBH")
COUNTER = struct.Struct("<Q")
REFUSED = 1 << 63
NO_ROOM = 1 << 62

# What belongs to something that is on record already is taken as long as anything can be written at all.
TAKEN_WITHOUT_ROOM = frozenset({AuditType.LLM_END, AuditType.LLM_PART, AuditType.ADMIN_RESULT})

# A longer frame is not a record that is too big but a peer that does not speak this protocol: it is hung up on.
FRAME_BYTES_MAX = 4 << 20


def frame(counter: int, metadata: bytes, body: bytes, indexed: bytes = b"") -> bytes:
    """One record on the wire. `indexed` holds at most 255 bytes (`blind_indexes.values_to_index`)."""
    length = len(indexed) + len(metadata) + len(body)
    return b"".join((HEAD.pack(length, counter, 0, len(indexed), len(metadata)), indexed, metadata, body))
