"""The pictures: what is drawn must be seen in any renderer, and what is said of it must be so."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.loader import LoadReport
from bench.picture import LOST, Mark, Series, latency_over_time
from bench.records import CODE, OK, Records
from demo.run import draw

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: ET.Element) -> str:
    return "\n".join(text.text or "" for text in svg.iter(f"{SVG}text"))


def crosses(svg: ET.Element) -> int:
    return sum((path.get("d") or "").count("M") for path in svg.iter(f"{SVG}path") if path.get("stroke") == LOST)


def test_what_lies_over_the_data_is_seen_through_by_every_renderer(tmp_path):
    path = tmp_path / "picture.svg"
    latency_over_time(path, "title", "note", [Series("a", [(1.0, 0.01)])], [Mark(0.5, 1.5, "a swap")])
    svg = ET.parse(path).getroot()
    for shape in svg.iter():
        for key in ("fill", "stroke"):
            assert len(shape.get(key, "")) <= len("#222222"), "a colour with an alpha is solid black to some"
    bands = [box for box in svg.iter(f"{SVG}rect") if float(box.get("fill-opacity", 1)) < 0.2]
    assert len(bands) == 1


def test_the_demo_says_what_it_draws_and_draws_each_lost_request(tmp_path):
    records = Records(["keep-alive", "streaming"])
    records.add(99.0, 99.01, 1, 0, OK)  # before the start
    records.add(101.0, 101.01, 1, 0, OK)
    records.add(102.0, 102.01, 1, 0, OK)
    records.add(103.0, 104.0, 1, 1, OK)  # a stream
    report = LoadReport(records, {"labels": {"1": "words"}, "errors": {}, "forced_reconnects": 0, "unasked_bytes": 0})
    draw(tmp_path / "well.svg", 100.0, [], report)
    well = ET.parse(tmp_path / "well.svg").getroot()
    assert "2 dots" in texts(well)
    assert "4 requests, 0 lost" in texts(well)
    assert crosses(well) == 0
    records.add(99.5, 99.6, 0, 0, CODE["reset"])
    records.add(103.0, 105.0, 0, 1, CODE["truncated"])
    draw(tmp_path / "lost.svg", 100.0, [], report)
    lost = ET.parse(tmp_path / "lost.svg").getroot()
    assert "6 requests, 2 lost" in texts(lost)
    assert "lost: 2" in texts(lost)
    assert crosses(lost) == 3, "two requests, and the one that explains them"
