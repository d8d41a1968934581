"""Parts of the shadow's process: frames however they are cut, codings against bombs, figures that go on."""

import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.core.agreement import Answer, Difference, Outcome
from swapd.core.shadow_samples import Asked, read_redaction, sample
from swapd.front.shadow.decoding import CannotDecode, decoded
from swapd.front.shadow.figures import Figures
from swapd.front.shadow.frames import (
    FULL_REPORT,
    MAX_REPORT,
    BadReport,
    Frame,
    FrameReader,
    ReportReader,
    pieces_of,
    report_of,
)


@given(
    st.lists(st.tuples(st.binary(max_size=50), st.lists(st.binary(max_size=50)), st.lists(st.binary(max_size=50)))),
    st.integers(1, 100),
)
def test_frames_arrive_however_they_are_cut(told, step):
    sent = b"".join(b"".join(pieces_of({"n": n}, *parts)) for n, parts in enumerate(told))
    reader, got = FrameReader(), []
    for at in range(0, len(sent), step):
        got += reader.feed(sent[at : at + step])
    assert got == [Frame({"n": n}, head, b"".join(body), b"".join(ans)) for n, (head, body, ans) in enumerate(told)]


def test_the_newest_report_counts_and_a_mad_one_is_refused():
    reader = ReportReader()
    sent = report_of(0.5, b"{}") + report_of(0.25, b"[]")
    assert reader.feed(sent[:5]) is None
    report = reader.feed(sent[5:] + report_of(1.0, b"late")[:-1])
    assert (report.share, report.figures) == (0.25, b"[]")
    assert reader.feed(b"e").figures == b"late"
    for mad in (report_of(7.0, b""), report_of(float("nan"), b""), report_of(1.0, b"x" * (MAX_REPORT + 1))):
        with pytest.raises(BadReport):
            ReportReader().feed(mad)


def raw_deflate(data):
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("", b"ok"),
        ("identity", b"ok"),
        ("gzip", gzip.compress(b"ok", mtime=0)),
        ("X-GZip", gzip.compress(b"ok", mtime=0)),
        ("deflate", zlib.compress(b"ok")),
        ("deflate", raw_deflate(b"ok")),
    ],
)
def test_known_codings_are_undone(coding, body):
    assert decoded(body, coding, 100) == b"ok"


def test_an_empty_body_is_empty_in_every_coding():
    assert decoded(b"", "br", 100) == b""


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "?" * 5000])
def test_unknown_codings_are_told(coding):
    with pytest.raises(CannotDecode, match="coded as"):
        decoded(b"x", coding, 100)


@pytest.mark.parametrize("body", [b"no", gzip.compress(b"ok", mtime=0)[:-9], gzip.compress(b"x" * 101, mtime=0)])
def test_what_is_no_gzip_or_too_much_is_told(body):
    with pytest.raises(CannotDecode):
        decoded(body, "gzip", 100)


def test_a_bomb_does_not_go_off():
    bomb = gzip.compress(b"\0" * 300_000_000, 1, mtime=0)
    with pytest.raises(CannotDecode, match="more than"):
        decoded(bomb, "gzip", 1 << 20)


def differing(path=("a",)):
    return Outcome(False, 0.5, "one value differs", (Difference(path, 1, 2),))


def test_figures_go_on_in_the_next_process():
    figures = Figures(50, read_redaction([]))
    for number in range(10):
        figures.copied()
        figures.answered(200, 0.2, 0.1, 0.15, 0.05)
        figures.judged(Outcome(True, 1.0) if number else differing(("items", "3", "id")))
    figures.judged(Outcome(None), "coding")
    figures.replayed(differing(("items", "7", "id")), 0.1)
    figures.replayed(None)
    figures.failed("timeout")
    figures.dropped("busy")
    asked = Asked(0.0, "id", "GET", "/", b"")
    figures.samples.add(sample(read_redaction([]), asked, Answer(200, b"1"), None, differing()))
    told = figures.to_json()
    assert told["paths"] == [{"path": "/items/*/id", "differs": 1, "noise": 1}]
    assert (told["compared"], told["agreed"], told["score"], told["agreement"]) == (10, 9, 0.95, 1.0)
    assert told["noise"]["compared"] == told["noise"]["failed"] == 1
    assert told["consecutive_failed"] == 1
    again = Figures(50, read_redaction([]))
    again.restore(json.loads(figures.report()))
    assert again.to_json() == told


def test_without_replays_there_is_no_noise_to_tell():
    figures = Figures(50, read_redaction([]), replays=False)
    figures.judged(Outcome(True, 1.0))
    told = figures.to_json()
    assert told["noise"] is None
    again = Figures(50, read_redaction([]), replays=False)
    again.restore(json.loads(figures.report()))
    assert again.to_json() == told


def test_a_candidate_that_answers_5xx_is_not_fast():
    figures = Figures(50, read_redaction([]))
    figures.answered(503, 0.001, 0.001, 0.1, 0.1)
    figures.failed("status")
    told = figures.to_json()
    assert told["latency"] == told["stable_latency"] == {}
    assert told["statuses"] == {"5": 1}


def test_a_report_is_never_too_long():
    figures = Figures(1000, read_redaction([]))
    for number in range(3000):
        figures.answered(200, *[1e-5 * 1.019 ** (number % 1100)] * 4)
        figures.judged(differing((f"{number}" + "p" * 150,)))
        figures.samples.add({"why": "x" * 1500})
    for number in range(1100):
        figures.replayed(Outcome(True), 1e-5 * 1.019**number)
    assert len(figures.report()) <= FULL_REPORT
    Figures(1000, read_redaction([])).restore(json.loads(figures.report()))
    assert len(figures.to_json()["paths"]) == 16


def test_names_below_what_is_redacted_are_no_paths():
    figures = Figures(50, read_redaction(["/users"]))
    figures.judged(differing(("users", "alice@example.org", "age")))
    assert [each["path"] for each in figures.to_json()["paths"]] == ["/users"]
