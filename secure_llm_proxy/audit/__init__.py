"""Can we prove it? The sealed, hash-chained log of every exchange, refusal and administrative change.

For: the corridor (records), commands and auditors (verification, reading). Takes: `AuditEvent`s over the unix socket of
the writer, a process of its own (`python -m secure_llm_proxy.audit`) that alone holds the key and the files. Gives:
durable lines in segments, format version 1 (docs/audit-format.md), that verify offline with a public key.
When it fails: closed. A record that is not on disk raises `Unavailable`, and the request it stands for is refused; the
writer never acknowledges what it did not sync, gives up a segment whose disk failed, and comes back by itself.
The index (`audit.index`, `audit.index_search`) is imported where it is used: the writer has no database and no room for one.
Source: C2SP XAES-256-GCM; RFC 9162 leaf hashes; Vault's fail-closed audit devices; PostgreSQL's lesson about fsync.
"""

from secure_llm_proxy.audit.backup import Backup, BackupStanding, backup_of
from secure_llm_proxy.audit.changes import Change, recorded
from secure_llm_proxy.audit.control import WriterControl
from secure_llm_proxy.audit.exports import (
    ClearRow,
    ExportEnd,
    ExportFormat,
    RowWriter,
    flat_members,
    row_of_record,
    row_writer,
)
from secure_llm_proxy.audit.format import EndLine, KeyLine, NewerLine, RecordLine, SegmentLine
from secure_llm_proxy.audit.genesis import Genesis, GenesisBroken, find_host_id, initialise, read_genesis
from secure_llm_proxy.audit.journal import SocketJournal
from secure_llm_proxy.audit.keystore import KeyStoreUnavailable
from secure_llm_proxy.audit.proof import ProofBroken, ProofNewer, Proven, check_proof, checkpoints, prove
from secure_llm_proxy.audit.read_client import (
    AuditReader,
    Break,
    CheckpointRow,
    Found,
    OpenedRecord,
    Place,
    RawLine,
    RawLines,
    Row,
    Search,
    Tail,
)
from secure_llm_proxy.audit.reader_codes import ReaderCodes, new_reader_seed, reader_uri
from secure_llm_proxy.audit.reading import (
    BodyOpener,
    LogLine,
    Opened,
    StoredLine,
    erased_keys_in,
    find_records,
    log_lines,
    open_records,
    segments_of,
    size_of,
    stored_lines,
    system_keys_in,
)
from secure_llm_proxy.audit.restart import restart_log
from secure_llm_proxy.audit.retention import Candidate, retention_of
from secure_llm_proxy.audit.running_writer import running_writer, transient_writer
from secure_llm_proxy.audit.seal import KeyRing
from secure_llm_proxy.audit.segments import find_log, host_directory, segments_in
from secure_llm_proxy.audit.selection import Selection, newest_records, rows_of, select
from secure_llm_proxy.audit.signed_tree import read_anchors
from secure_llm_proxy.audit.verification import (
    Finding,
    Outcome,
    Severity,
    VerificationReport,
    VerifiedUpTo,
    verify,
)

__all__ = [
    "AuditReader",
    "Backup",
    "BackupStanding",
    "BodyOpener",
    "Break",
    "Candidate",
    "Change",
    "CheckpointRow",
    "ClearRow",
    "EndLine",
    "ExportEnd",
    "ExportFormat",
    "Finding",
    "Found",
    "Genesis",
    "GenesisBroken",
    "KeyLine",
    "KeyRing",
    "KeyStoreUnavailable",
    "LogLine",
    "NewerLine",
    "Opened",
    "OpenedRecord",
    "Outcome",
    "Place",
    "ProofBroken",
    "ProofNewer",
    "Proven",
    "RawLine",
    "RawLines",
    "ReaderCodes",
    "RecordLine",
    "Row",
    "RowWriter",
    "Search",
    "SegmentLine",
    "Selection",
    "Severity",
    "SocketJournal",
    "StoredLine",
    "Tail",
    "VerificationReport",
    "VerifiedUpTo",
    "WriterControl",
    "backup_of",
    "check_proof",
    "checkpoints",
    "erased_keys_in",
    "find_host_id",
    "find_log",
    "find_records",
    "flat_members",
    "host_directory",
    "initialise",
    "log_lines",
    "new_reader_seed",
    "newest_records",
    "open_records",
    "prove",
    "read_anchors",
    "read_genesis",
    "reader_uri",
    "recorded",
    "restart_log",
    "retention_of",
    "row_of_record",
    "row_writer",
    "rows_of",
    "running_writer",
    "segments_in",
    "segments_of",
    "select",
    "size_of",
    "stored_lines",
    "system_keys_in",
    "transient_writer",
    "verify",
]
