"""nginx's access log held to the audit log: what agrees, what differs, and what is no difference."""

from __future__ import annotations

import gzip
import json
import random
import secrets
import time
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest

from secure_llm_proxy.audit import segments_in
from secure_llm_proxy.audit.reconciliation import Kind, Reconciliation, Terms, reconcile
from secure_llm_proxy.cli.progress import Progress
from secure_llm_proxy.foundation.errors import OperatorError
from tests.support.audit_log import audit_settings
from tests.support.indexed_log import Log
from tests.support.installation import Ended, Installation

AGO_S = 7200
CHAT = "/v1/chat/completions"


class Host:
    """Two witnesses of made-up requests, a second apart, two hours ago."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = Log(directory)
        self.access_log = directory / "access.log"
        self.access_log.touch()
        self._numbers = count(1)
        self._records = 0
        self.go_to(time.time() - AGO_S)

    @property
    def now(self) -> float:
        return self.log.now_ns / 1e9

    def go_to(self, unix_s: float) -> None:
        self.log.now_ns = int(unix_s) * 1_000_000_000

    def record(self, kind: str, exchange: str, **members: object) -> str:
        """One record, a second later; returns its id."""
        self._records += 1
        self.log.add({"kind": kind, "rid": exchange, **members})
        return f"R{self._records:04d}"

    def line(
        self,
        exchange: str,
        edge: str,
        *,
        status: int = 200,
        said: str | None = None,
        answered: bool = True,
        path: str = CHAT,
        method: str = "POST",
        seconds: float = 1.5,
        into: Path | None = None,
        **more: object,
    ) -> None:
        at = self.now + 0.25
        told = {
            "time": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"), "unix": round(at, 3), "edge_id": edge,
            "exchange": exchange, "client": "192.0.2.1", "method": method, "path": path, "status": status,
            "seconds": seconds, "worker_status": str(status) if said is None else said,
            "worker_bytes": "512" if answered else "0", "agent": "x", **more,
        }  # fmt: skip
        with (into or self.access_log).open("ab") as stream:
            stream.write(json.dumps(told).encode() + b"\n")

    def new(self) -> tuple[str, str]:
        """Ids of a request: ours and nginx's."""
        return f"exc_{next(self._numbers):06d}", secrets.token_hex(16)

    def chat(self, *, http: int = 200, status: int = 200, stream: bool = False, end: str = "complete") -> str:
        """A request that was answered, in both logs."""
        exchange, edge = self.new()
        start = self.record("llm.start", exchange, eid=edge, str=stream, dec="allow")
        self.record("llm.end", exchange, sid=start, st=end, http=http)
        self.line(exchange, edge, status=status)
        return exchange

    def refusal(self, *, http: int = 401, status: int = 401) -> str:
        exchange, edge = self.new()
        self.record("llm.refused", exchange, eid=edge, dec="refuse", http=http, code="missing_api_key")
        self.line(exchange, edge, status=status)
        return exchange

    def compared(self, *access_logs: Path, **terms: object) -> Reconciliation:
        return reconcile(
            access_logs or (self.access_log,),
            segments_in(self.directory / "audit" / "host"),
            Terms(**terms),  # type: ignore[arg-type]  # the test's own names
            must_be_recorded=lambda method, path: method == "POST" and path == CHAT,
            watch=Progress("", 0).over,
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    made.chat()
    return made


def kinds(told: Reconciliation) -> dict[Kind, int]:
    return dict(told.counts)


def test_logs_of_the_same_requests_agree(host: Host) -> None:
    host.refusal()
    host.chat(http=502, status=502, end="upstream_error")
    host.chat(http=502, status=200, stream=True, end="upstream_error")
    host.chat(http=499, status=499, end="client_abort")

    told = host.compared()

    assert told.agrees
    assert (told.lines, told.requests, told.agreeing, told.exchanges) == (5, 5, 5, 5)
    assert (told.under_way, told.around_nginx, told.differences) == (0, 0, [])


def test_a_request_whose_client_left_before_the_answer_is_found_by_nginxs_own_id(host: Host) -> None:
    exchange, edge = host.new()
    start = host.record("llm.start", exchange, eid=edge)
    host.record("llm.end", exchange, sid=start, st="client_abort", http=499)
    host.line("", edge, status=499, said="-", answered=False)

    told = host.compared()

    assert (told.agrees, told.requests, told.agreeing, told.unanswered) == (True, 2, 2, 0)


def test_what_a_dead_worker_left_behind_agrees_with_nginxs_own_answer(host: Host) -> None:
    exchange, edge = host.new()
    start = host.record("llm.start", exchange, eid=edge)
    host.record("llm.end", exchange, sid=start, st="orphan")
    host.line("", edge, status=502, said="502", answered=False)

    told = host.compared()

    assert (told.agrees, told.agreeing) == (True, 2)


def test_an_orphan_whose_real_end_came_later_counts_as_ended_once(host: Host) -> None:
    exchange, edge = host.new()
    start = host.record("llm.start", exchange, eid=edge)
    host.record("llm.end", exchange, sid=start, st="orphan")
    host.record("llm.end", exchange, sid=start, st="complete", http=200)
    host.line(exchange, edge)

    assert host.compared().agreeing == 2


def test_what_needs_no_record_is_asked_for_none(host: Host) -> None:
    for method, path, status in (("GET", "/v1/models", 200), ("POST", "/auth/login", 401), ("POST", "/nowhere", 404)):
        host.line(*host.new(), method=method, path=path, status=status)
    host.line("", secrets.token_hex(16), status=413, said="", answered=False)

    told = host.compared()

    assert (told.agrees, told.requests, told.answered_by_nginx) == (True, 1, 1)


def unrecorded(host: Host) -> None:
    host.line(*host.new())


def unrecorded_without_an_id(host: Host) -> None:
    host.line("", secrets.token_hex(16))


def unrecorded_refusal(host: Host) -> None:
    host.line(*host.new(), status=401)


def unfinished(host: Host) -> None:
    exchange, edge = host.new()
    host.record("llm.start", exchange, eid=edge)
    host.line(exchange, edge)


def unseen(host: Host) -> None:
    exchange, edge = host.new()
    start = host.record("llm.start", exchange, eid=edge)
    host.record("llm.end", exchange, sid=start, st="complete", http=200)


def unseen_refusal(host: Host) -> None:
    exchange, edge = host.new()
    host.record("llm.refused", exchange, eid=edge, http=403)


def other_status(host: Host) -> None:
    host.chat(http=502, status=200, end="upstream_error")


def answered_though_refused(host: Host) -> None:
    host.refusal(http=429, status=200)


def twice(host: Host) -> None:
    exchange = host.chat()
    host.line(exchange, secrets.token_hex(16), status=499)  # of which its record says nothing else


def begun_twice(host: Host) -> None:
    exchange, edge = host.new()
    for _ in range(2):
        start = host.record("llm.start", exchange, eid=edge)
        host.record("llm.end", exchange, sid=start, st="complete", http=200)
    host.line(exchange, edge)


def misnamed(host: Host) -> None:
    exchange, edge = host.new()
    start = host.record("llm.start", exchange, eid=secrets.token_hex(16))
    host.record("llm.end", exchange, sid=start, st="complete", http=200)
    host.line(exchange, edge)


def unreadable(host: Host) -> None:
    with host.access_log.open("ab") as stream:
        stream.write(b'{"time":"2026-11-\n')


DIFFERING = {
    unrecorded: Kind.UNRECORDED,
    unrecorded_without_an_id: Kind.UNRECORDED,
    unrecorded_refusal: Kind.UNRECORDED,
    unfinished: Kind.UNFINISHED,
    unseen: Kind.UNSEEN,
    unseen_refusal: Kind.UNSEEN,
    other_status: Kind.STATUS,
    answered_though_refused: Kind.STATUS,
    begun_twice: Kind.TWICE,
    misnamed: Kind.MISNAMED,
    unreadable: Kind.UNREADABLE,
}


@pytest.mark.parametrize(("happening", "kind"), DIFFERING.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_only_one_of_them_tells_is_a_difference(host: Host, happening: object, kind: Kind) -> None:
    happening(host)  # type: ignore[operator]  # a function of above
    host.chat()

    told = host.compared()

    assert not told.agrees
    assert kinds(told) == {kind: 1}
    [found] = told.differences
    assert found.kind is kind
    assert found.what
    if kind is not Kind.UNSEEN:
        assert found.place == f"{host.access_log}:2"


def test_two_requests_under_one_id_are_a_difference(host: Host) -> None:
    twice(host)

    told = host.compared()

    assert kinds(told) == {Kind.TWICE: 1, Kind.MISNAMED: 1}


def test_what_came_around_nginx_is_told_and_a_difference_where_nothing_may(host: Host) -> None:
    exchange, _ = host.new()
    start = host.record("llm.start", exchange)
    host.record("llm.end", exchange, sid=start, st="complete", http=200)

    told, strict = host.compared(), host.compared(all_through_nginx=True)

    assert (told.agrees, told.around_nginx) == (True, 1)
    assert kinds(strict) == {Kind.AROUND: 1}


def test_what_is_under_way_when_the_logs_are_read_is_no_difference(host: Host) -> None:
    now = time.time()
    host.go_to(now - 20)
    running, its_edge = host.new()
    host.record("llm.start", running, eid=its_edge)
    ended, other_edge = host.new()
    start = host.record("llm.start", ended, eid=other_edge)
    host.record("llm.end", ended, sid=start, st="complete", http=200)
    late, third_edge = host.new()
    host.record("llm.start", late, eid=third_edge)
    host.line(late, third_edge)

    told, at_once = host.compared(), host.compared(grace_s=0.0)

    assert (told.agrees, told.under_way) == (True, 3)
    assert at_once.under_way == 1
    assert kinds(at_once) == {Kind.UNSEEN: 1, Kind.UNFINISHED: 1}


def test_a_refusal_of_this_moment_may_not_be_on_record_yet(host: Host) -> None:
    host.go_to(time.time())
    host.line(*host.new(), status=401)

    told = host.compared()

    assert (told.agrees, told.under_way) == (True, 1)


def test_what_began_before_the_first_line_of_the_access_log_is_for_the_file_before(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.chat()
    host.access_log.unlink()
    exchange, edge = host.new()
    start = host.record("llm.start", exchange, eid=edge)
    host.chat()
    host.record("llm.end", exchange, sid=start, st="complete", http=200)
    host.line(exchange, edge, seconds=5.0)

    told = host.compared()

    assert (told.agrees, told.agreeing) == (True, 2)


def test_a_window_leaves_out_what_began_beside_it(tmp_path: Path) -> None:
    host = Host(tmp_path)
    unrecorded(host)
    unseen(host)
    host.go_to(host.now + 100)
    since = host.now
    host.chat()
    host.go_to(host.now + 100)
    until = host.now
    host.go_to(host.now + 100)
    unrecorded(host)
    unseen(host)

    within, before, after = (
        host.compared(since=since, until=until),
        host.compared(until=since),
        host.compared(since=until),
    )

    assert (within.agrees, within.requests) == (True, 1)
    assert kinds(before) == {Kind.UNRECORDED: 1, Kind.UNSEEN: 1}
    assert kinds(after) == {Kind.UNRECORDED: 1, Kind.UNSEEN: 1}


def test_a_window_that_begins_before_the_access_log_is_held_to_all_of_the_audit_log(tmp_path: Path) -> None:
    host = Host(tmp_path)
    since = host.now
    unseen(host)
    host.chat()

    assert host.compared().agrees
    assert kinds(host.compared(since=since)) == {Kind.UNSEEN: 1}


def test_refusals_that_could_not_be_recorded_and_workers_that_were_away_are_counted(host: Host) -> None:
    host.line(*host.new(), status=503)
    host.line("", secrets.token_hex(16), status=502, said="502", answered=False)
    host.line("", secrets.token_hex(16), status=499, said="-", answered=False)

    told = host.compared()

    assert (told.agrees, told.refused_unrecorded, told.unanswered) == (True, 1, 2)


def test_lines_older_than_the_audit_log_are_told(tmp_path: Path) -> None:
    host = Host(tmp_path)
    unrecorded(host)
    host.go_to(host.now + 60)
    host.chat()

    told = host.compared()

    assert (told.agrees, told.before_log, told.agreeing) == (True, 1, 1)


def test_rotated_and_packed_files_are_read_in_any_order(host: Host, tmp_path: Path) -> None:
    older, oldest = tmp_path / "access.log.1", tmp_path / "access.log.2.gz"
    oldest.write_bytes(gzip.compress(host.access_log.read_bytes()))
    host.access_log.unlink()
    host.refusal()
    host.access_log.rename(older)
    host.chat()

    told = host.compared(host.access_log, oldest, older)

    assert (told.agrees, told.files, told.lines, told.agreeing) == (True, 3, 3, 3)


def test_a_file_that_is_given_twice_is_told_so(host: Host) -> None:
    told = host.compared(host.access_log, host.access_log)

    assert kinds(told) == {Kind.TWICE: 1}
    assert "given twice" in told.differences[0].what


def test_a_line_that_is_being_written_is_no_difference(host: Host) -> None:
    with host.access_log.open("ab") as stream:
        stream.write(b'{"time":"2026-11-')

    assert host.compared().agrees


def test_what_clients_say_does_not_make_a_line_unreadable(host: Host) -> None:
    exchange = host.refusal()
    line = host.access_log.read_bytes()
    host.access_log.write_bytes(line.replace(b'"agent": "x"', b'"agent": "\xff\xfe \\" ,\xc3"'))

    told = host.compared()

    assert (told.agrees, told.agreeing) == (True, 2), exchange


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"192.0.2.1 - - [21/Nov/2026:00:12:03 +0000] GET / 200\n" * 3, "log format slp_json"),
        (gzip.compress(b"x" * 10_000)[:-20], "cannot be read"),
        (b"\x1f\x8bno gzip at all", "cannot be read"),
        (b"x" * 3_000_000, "a line without an end"),
    ],
    ids=["another format", "cut off", "not packed", "one line"],
)
def test_what_is_no_access_log_is_not_compared(host: Host, content: bytes, sentence: str) -> None:
    host.access_log.write_bytes(content)

    with pytest.raises(OperatorError, match=sentence):
        host.compared()


def test_differences_are_all_counted_and_some_listed(host: Host) -> None:
    for _ in range(7):
        unrecorded(host)

    told = host.compared(listed_max=3)

    assert kinds(told) == {Kind.UNRECORDED: 7}
    assert len(told.differences) == 3


def test_every_line_that_is_taken_out_of_either_log_is_found(tmp_path: Path) -> None:
    host = Host(tmp_path)
    dice = random.Random(7)
    for _ in range(30):
        dice.choice([host.chat, host.refusal])()
    lines = host.access_log.read_bytes().splitlines(keepends=True)

    found = []
    for place in range(1, len(lines)):
        host.access_log.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
        found.append(kinds(host.compared()))

    assert found == [{Kind.UNSEEN: 1}] * (len(lines) - 1)


# --- the command ------------------------------------------------------------------------------------------------------


def command(host: Host, *arguments: str, stdin: str = "") -> Ended:
    environment = {
        "SECRET_KEY": secrets.token_hex(32),
        "ENCRYPTION_KEY": secrets.token_hex(32),
        "AUDIT_KEK": secrets.token_hex(32),
        "INSTANCE_DIR": str(host.directory / "instance"),
        "AUDIT_DIR": str(audit_settings(host.directory).directory),
        "ENV_FILE": str(host.directory / "none"),
    }
    return Installation(host.directory, environment).run("audit", "reconcile", *arguments, stdin=stdin)


def test_the_command_says_that_they_agree(host: Host) -> None:
    host.line(*host.new(), path="/V1/Chat/completions")

    plain = command(host, "--access-log", str(host.access_log))
    told = command(host, "--access-log", str(host.access_log), "--json")

    assert (plain.code, plain.errors) == (0, "")
    assert plain.output.startswith("AGREE: 1 requests of the data plane reached a worker, 1 are on record")
    assert told.code == 0
    assert json.loads(told.output)["agree"] is True


def test_the_command_knows_the_doors_that_leave_a_record_however_they_are_escaped(host: Host) -> None:
    for path in (CHAT, "/v1/chat%2Fcompletions", "/%63hat", "/v1/messages", "/v1/responses"):
        host.line(*host.new(), path=path)

    told = json.loads(command(host, "--access-log", str(host.access_log), "--json").output)

    assert told["counts"] == {"unrecorded": 5}


def test_the_command_lists_differences_and_ends_with_1(host: Host) -> None:
    unrecorded(host)
    unseen(host)

    plain = command(host, "--access-log", str(host.access_log), "--limit", "1")
    told = command(host, "--access-log", str(host.access_log), "--json", "--since", "24h")

    assert plain.code == told.code == 1
    assert plain.output.startswith("DIFFER in 2: ")
    assert "1 more differences" in plain.output
    found = json.loads(told.output)
    assert {each["kind"] for each in found["differences"]} == {"unrecorded", "unseen"}
    assert found["differences"][0]["place"] == f"{host.access_log}:2"


def test_the_command_reads_standard_input_where_its_user_may_not_open_the_file(host: Host) -> None:
    unrecorded(host)

    told = json.loads(command(host, "--access-log", "-", "--json", stdin=host.access_log.read_text("utf-8")).output)

    assert (told["lines"], told["agreeing"], told["counts"]) == (2, 1, {"unrecorded": 1})
    assert told["differences"][0]["place"] == "-:2"


def test_the_command_ends_with_2_where_nothing_can_be_compared(host: Host, tmp_path: Path) -> None:
    (tmp_path / "other.log").write_text("no such log\n", "utf-8")

    ended = [
        command(host, "--access-log", str(tmp_path / "other.log")),
        command(host, "--access-log", str(tmp_path / "absent.log")),
        command(host),
        command(host, "--access-log", str(host.access_log), "--since", "1h", "--until", "2h"),
    ]

    assert [each.code for each in ended] == [2] * 4
    assert all(each.errors.count("Error: ") == 1 and not each.output for each in ended)
