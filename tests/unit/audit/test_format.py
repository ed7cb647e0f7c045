from __future__ import annotations

import base64
import contextlib
import hashlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.audit.format import (
    ALGORITHMS_CLEAR,
    ALGORITHMS_SEALED,
    FEATURES,
    CarriedState,
    CheckpointLine,
    EndLine,
    FormatError,
    KeyLine,
    KeyRollLine,
    Line,
    NewerLine,
    NewerVersion,
    Previous,
    RecordLine,
    RefusedMetadata,
    SegmentLine,
    Torn,
    TreeLine,
    check_metadata,
    checkpoint_line,
    clear_record,
    end_line,
    glance_at_record,
    key_line,
    key_roll_line,
    leaf,
    parse_line,
    record_header,
    sealed_record,
    segment_line,
    tree_line,
)
from secure_llm_proxy.vocabulary.audit import ClearValue

T = "2026-11-21T00:12:03.104233Z"
HASH = bytes(range(32))
WORKER = "ab" * 16
META: dict[str, ClearValue] = {"ty": "llm.refused", "id": "R1", "rid": "exc_1"}

names = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True).filter(
    lambda name: (
        name
        not in {
            "k",
            "n",
            "t",
            "m",
            "w",
            "kid",
            "nc",
            "p",
            "ct",
            "pt",
            "z",
            "v",
            "seg",
            "log",
            "prev",
            "root",
            "note",
            "sig",
        }
        and name not in {"ty", "ev", "id", "rid"}
    )
)
values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
)


def a_record(metadata: dict[str, ClearValue], *, sealed: bool = True, body: bytes = b"\x00\xff") -> bytes:
    written = orjson.dumps(check_metadata(dict(metadata)))
    if sealed:
        return sealed_record(
            record_header(7, T.encode(), 5, WORKER.encode(), 3, written, HASH, b"sys.1", bytes(24)), body
        )
    return clear_record(record_header(7, T.encode(), 5, WORKER.encode(), 3, written, HASH, None, None), body)


def a_segment(**changes: object) -> SegmentLine:
    members: dict[str, object] = {
        "log": "slp.default/host",
        "number": 2,
        "sid": "cd" * 16,
        "n": 10,
        "t": T,
        "previous": Previous(1, 9, HASH, Torn(12, HASH, synced=True)),
        "features": (),
        "algorithms": ALGORITHMS_SEALED,
        "epoch_public_key": HASH,
        "kek_id": "01" * 8,
        "carry": CarriedState({"R1": ("exc_1", WORKER)}, {WORKER: 3}),
    }
    return SegmentLine(**(members | changes))  # type: ignore[arg-type]


@given(st.dictionaries(names, values, max_size=20), st.binary(max_size=200), st.booleans())
def test_a_record_reads_back_as_it_was_written(clear: dict[str, ClearValue], body: bytes, sealed: bool) -> None:  # noqa: FBT001
    line = a_record({**META, "ev": "CHAT_REQUEST", **clear}, sealed=sealed, body=body)

    record = parse_line(line)

    assert isinstance(record, RecordLine)
    assert (record.n, record.t, record.m, record.worker, record.counter) == (7, T, 5, WORKER, 3)
    assert (record.type, record.event, record.id, record.exchange_id) == ("llm.refused", "CHAT_REQUEST", "R1", "exc_1")
    assert record.clear == clear
    assert record.p == HASH
    assert (record.sealed if sealed else record.plain) == body
    assert glance_at_record(line) == (7, WORKER, 3, "llm.refused", "R1", "exc_1", clear.get("sid"))


def test_the_sealed_header_ends_with_the_chain() -> None:
    line = a_record(META)

    record = parse_line(line)

    assert isinstance(record, RecordLine)
    assert line.startswith(record.header)
    assert record.header.endswith(b',"p":"' + base64.b64encode(HASH) + b'"')


@pytest.mark.parametrize(
    "segment",
    [
        a_segment(),
        a_segment(previous=Previous(1, 9, HASH, Torn(0, HASH, synced=False))),
        a_segment(previous=None),
        a_segment(algorithms=ALGORITHMS_CLEAR, kek_id=None, features=("cp", "kr"), carry=CarriedState({}, {})),
    ],
)
def test_a_segment_line_reads_back_as_it_was_written(segment: SegmentLine) -> None:
    assert parse_line(segment_line(segment)) == segment


def test_key_and_end_lines_read_back_as_they_were_written() -> None:
    keys = [KeyLine(8, T, "sys.1", HASH, b"wrapped", HASH), KeyLine(8, T, "s_4f0c.3", HASH, None, HASH)]
    ends = [EndLine(9, T, reason, 4, HASH) for reason in ("rotate", "stop", "fsync-error")]

    assert [parse_line(key_line(line)) for line in keys] == keys
    assert [parse_line(end_line(line)) for line in ends] == ends


def test_a_leaf_is_the_rfc_9162_hash_of_the_bytes_as_they_stand() -> None:
    assert leaf(b"line") == hashlib.sha256(b"\x00line").digest()


def test_a_line_of_an_announced_feature_is_newer_and_of_no_other_kind_is_known() -> None:
    line = orjson.dumps({"k": "zz", "n": 12, "root": "x", "p": base64.b64encode(HASH).decode()})

    assert parse_line(line, ("zz",)) == NewerLine(12, "zz", HASH)
    for features in ((), FEATURES):
        with pytest.raises(FormatError):
            parse_line(line, features)


TIME = "2026-11-21T00:12:03.104233Z"
SIGNED_LINES = [
    (tree_line(TreeLine(1, TIME, (HASH, HASH), HASH)), TreeLine(1, TIME, (HASH, HASH), HASH)),
    (
        checkpoint_line(CheckpointLine(7, TIME, HASH, "any\n\n— text\n", HASH)),
        CheckpointLine(7, TIME, HASH, "any\n\n— text\n", HASH),
    ),
    (
        key_roll_line(KeyRollLine(9, TIME, HASH, "epoch", bytes(64), HASH)),
        KeyRollLine(9, TIME, HASH, "epoch", bytes(64), HASH),
    ),
]


@pytest.mark.parametrize(("raw", "line"), SIGNED_LINES, ids=["tr", "cp", "kr"])
def test_lines_of_the_tree_come_back_where_their_segment_announces_them(raw: bytes, line: Line) -> None:
    assert parse_line(raw, FEATURES) == line
    with pytest.raises(FormatError, match="no known kind"):
        parse_line(raw, ())


@pytest.mark.parametrize(
    ("raw", "old", "new"),
    [
        (SIGNED_LINES[0][0], b'"edge":[', b'"edge":["",'),
        (SIGNED_LINES[0][0], b'"edge":[', b'"edge":[1,'),
        (SIGNED_LINES[0][0], b'"n":1', b'"n":-1'),
        (SIGNED_LINES[0][0], b'"p":', b'"q":'),
        (SIGNED_LINES[1][0], b'"note":"', b'"more":1,"note":"'),
        (SIGNED_LINES[1][0], b'"note":"any\\n\\n', b'"note":null,"x":"'),
        (SIGNED_LINES[1][0], b'"t":"2026', b'"t":"26'),
        (SIGNED_LINES[2][0], b'"by":"epoch"', b'"by":"nobody"'),
        (SIGNED_LINES[2][0], b'"sig":"AAAA', b'"sig":"'),
        (SIGNED_LINES[2][0], b'"epk":"', b'"epk":"AAAA'),
    ],
)
def test_a_malformed_line_of_the_tree_is_refused(raw: bytes, old: bytes, new: bytes) -> None:
    assert old in raw

    with pytest.raises(FormatError):
        parse_line(raw.replace(old, new, 1), FEATURES)


def test_a_segment_of_a_later_version_is_not_judged() -> None:
    with pytest.raises(NewerVersion, match="2"):
        parse_line(segment_line(a_segment()).replace(b'"v":1', b'"v":2'))


GOOD = a_record(META | {"mdl": "demo"})


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"k":"rec"}',
        b'{"k":"what","n":1}',
        b'{"k":["rec"]}',
        GOOD[:-1],
        GOOD + b" ",
        GOOD.replace(b'"n":7', b'"n": 7'),
        GOOD.replace(b'"n":7', b'"n":7.0'),
        GOOD.replace(b'"n":7', b'"n":-7'),
        GOOD.replace(b'"n":7', b'"n":"7"'),
        GOOD.replace(b'"n":7', b'"n":true'),
        GOOD.replace(b'"n":7,', b'"n":7,"n":7,'),
        GOOD.replace(b'"mdl":"demo"', b'"mdl":"\\u0064emo"'),
        GOOD.replace(b'"mdl":"demo"', b'"mdl":"d\xffmo"'),
        GOOD.replace(b'"mdl":"demo"', b'"mdl":1.5'),
        GOOD.replace(b'"mdl":"demo"', b'"mdl":[]'),
        GOOD.replace(b'"mdl":"demo"', b'"MDL":"demo"'),
        GOOD.replace(b'"mdl":"demo"', b'"root":"demo"'),
        GOOD.replace(b'"id":"R1","rid":"exc_1"', b'"rid":"exc_1","id":"R1"'),
        GOOD.replace(b'"t":"2026', b'"t":"x026'),
        GOOD.replace(b'"w":"ab', b'"w":"AB'),
        GOOD.replace(WORKER.encode() + b".3", WORKER.encode() + b".0"),
        GOOD.replace(WORKER.encode() + b".3", WORKER.encode() + b".03"),
        GOOD.replace(WORKER.encode() + b".3", WORKER.encode() + b".9223372036854775808"),
        GOOD.replace(b'"ct":"AP8="', b'"ct":"AP9="'),
        GOOD.replace(b'"ct":"AP8="', b'"ct":"AP8"'),
        GOOD.replace(b'"ct":"AP8="', b'"ct":"AP8=\\n"'),
        GOOD.replace(b'"ct":"AP8="', b'"pt":"AP8="'),
        GOOD.replace(b'"nc":"AAAA', b'"nc":"'),
        GOOD.replace(b'"kid":"sys.1"', b'"kid":"s\\"1"'),
        b'{"k":"rec","x":"' + b"x" * (1 << 20) + b'"}',
        b"[" * 100_000,
    ],
)
def test_anything_but_the_one_form_of_a_line_is_refused(line: bytes) -> None:
    assert isinstance(parse_line(GOOD), RecordLine)

    with pytest.raises(FormatError):
        parse_line(line)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"ft":[]', b'"ft":["kr","cp"]'),
        (b'"ft":[]', b'"ft":[1]'),
        (b'"ft":[]', b'"ft":null'),
        (b'"v":1', b'"v":0'),
        (b'"alg":"XAES', b'"alg":"ROT1'),
        (b'"kek":"' + b"01" * 8 + b'"', b'"kek":null'),
        (b'"log":"slp.default/host"', b'"log":"slp.default"'),
        (b'"synced":true', b'"synced":1'),
        (b'"prev":{"seg":1,', b'"prev":{"seg":1,"x":1,'),
        (b'"prev":{', b'"prev":[{'),
        (b'["exc_1","' + WORKER.encode() + b'"]', b'["exc_1"]'),
        (b'{"R1":', b'{"R 1":'),
        (b'"carry":{', b'"carry":{"more":{},'),
        (b'"sid":"cd', b'"sid":"CD'),
    ],
)
def test_a_segment_line_in_another_form_is_refused(old: bytes, new: bytes) -> None:
    line = segment_line(a_segment())
    assert old in line

    with pytest.raises(FormatError):
        parse_line(line.replace(old, new))


@given(st.binary(max_size=400))
def test_no_bytes_make_the_parser_fail_otherwise(line: bytes) -> None:
    with contextlib.suppress(FormatError, NewerVersion):
        parse_line(line)
    assert glance_at_record(line) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"n":7', b'"n":7.0'),
        (b'"n":7', b'"n":"7"'),
        (b'"n":7', b'"n":true'),
        (b'"w":"ab', b'"w":"AB'),
        (b'"w":"', b'"w":["'),
        (WORKER.encode() + b".3", WORKER.encode() + b".0"),
        (WORKER.encode() + b".3", WORKER.encode() + b".9223372036854775808"),
        (b'"ty":"llm.refused"', b'"ty":1'),
        (b'"id":"R1"', b'"id":"R 1"'),
        (b'"id":"R1"', b'"no":"R1"'),
        (b'"rid":"exc_1"', b'"rid":null'),
        (b'"mdl":"demo"', b'"sid":["R1"]'),
        (b'"mdl":"demo"', b'"sid":1.5'),
        (b'"k":"rec"', b'"k":"end"'),
        (b'"}', b'"'),
    ],
)
def test_a_glance_leaves_what_is_not_as_it_should_be_to_the_parser(old: bytes, new: bytes) -> None:
    assert glance_at_record(GOOD) is not None
    assert old in GOOD

    assert glance_at_record(GOOD.replace(old, new)) is None


@given(
    st.dictionaries(
        st.text(max_size=8), st.recursive(values | st.floats(), lambda inner: st.lists(inner, max_size=3)), max_size=6
    )
)
def test_metadata_is_either_refused_or_makes_a_line_that_reads_back(extra: dict[str, ClearValue]) -> None:
    try:
        line = a_record(META | extra)
    except (RefusedMetadata, orjson.JSONEncodeError):
        return

    assert isinstance(parse_line(line), RecordLine)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"ty": "llm.start"},
        META | {"ty": "start"},
        META | {"ty": 1},
        META | {"id": ""},
        META | {"id": 'a"b'},
        META | {"rid": "x" * 65},
        META | {"ev": "not an event"},
        META | {"ev": None},
        META | {"p": "forged"},
        META | {"ct": "forged"},
        META | {"kid": "forged"},
        META | {"n": 1},
        META | {"Upper": 1},
        META | {"a b": 1},
        META | {"a": 1.5},
        META | {"a": [1]},
        META | {"a": {}},
        META | {"ty": "llm.end"},
        META | {"ty": "llm.end", "sid": 5},
        META | {f"a{number}": number for number in range(70)},
    ],
)
def test_metadata_that_could_forge_or_break_a_line_is_refused(metadata: dict[str, object]) -> None:
    with pytest.raises(RefusedMetadata):
        check_metadata(metadata)


def test_the_fixed_names_of_metadata_stand_first_in_any_case() -> None:
    shuffled: dict[str, object] = {"mdl": "demo", "rid": "exc_1", "ev": "CHAT_REQUEST", "id": "R1", "ty": "llm.start"}

    assert list(check_metadata(shuffled)) == ["ty", "ev", "id", "rid", "mdl"]


@pytest.mark.parametrize("depth", [254, 255, 1000, 1100, 100_000])
def test_a_line_that_is_nested_too_deeply_is_no_line(depth: int) -> None:
    with pytest.raises(FormatError):
        parse_line(b'{"k":' + b"[" * depth + b"]" * depth + b"}", FEATURES)
