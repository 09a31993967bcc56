"""The page as text: valid, self-contained, escaped; and the other renderings of the same figures."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from autotune.config.tuned import Prediction, TunedConfig
from autotune.explaining.diagnosis import Explanation, explain
from autotune.explaining.timeline import Bar, Timeline
from autotune.explaining.whatif import OperatorChange, WhatIf
from autotune.report.charts import SHOWN_RANKS, place_labels
from autotune.report.figures import as_file, figures
from autotune.report.html import page
from autotune.report.svg import WIDTH, Key, Scale, element
from autotune.report.svg import figure as svg_figure
from autotune.report.trace import trace

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Checked(HTMLParser):
    """Collects what a page is made of, and refuses tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def around(time_s: float) -> Prediction:
    return Prediction(low_s=0.9 * time_s, time_s=time_s, high_s=1.1 * time_s)


WHAT_IF = WhatIf(
    model="m",
    profile="some <machine>",
    changes=("bandwidth 2x: <everything>",),
    operators=(OperatorChange("embedding_bag.forward", around(0.016), around(0.008), "memory", "compute"),),
    before=around(0.078),
    after=around(0.07),
)


@pytest.fixture(params=["full_config", "four_sockets", "tuned_config"])
def account(request: pytest.FixtureRequest) -> Explanation:
    config: TunedConfig = request.getfixturevalue(request.param)
    simulated = Timeline("predicted", 1, 0.07, (Bar(0, "compute", "top_mlp.0.forward", 0.0, 0.07),), "simulated")
    return explain(config, (WHAT_IF,), simulated)


def test_the_page_is_valid_self_contained_and_small(account: Explanation) -> None:
    text = page(account)
    found = Checked(text)
    assert text.startswith("<!DOCTYPE html>")
    assert len(text.encode()) < 3 << 20
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert not any(name in attributes for _, attributes in found.tags for name in ("src", "srcset", "onclick"))
    targets = {attributes["href"] for attributes in found.named("a")}
    assert targets == {f"#{section['aria-labelledby']}" for section in found.named("section")}


def test_headings_descend_one_level_at_a_time(account: Explanation) -> None:
    levels = [int(tag[1]) for tag, _ in Checked(page(account)).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(two <= one + 1 for one, two in pairwise(levels))


def test_names_are_escaped_everywhere(full_config: TunedConfig) -> None:
    text = page(explain(full_config, (WHAT_IF,)))
    found = Checked(text)
    assert found.named("i") == []
    assert "<machine>" not in text
    assert '<i>a & "b"</i>' in "".join(found.text)


def test_notes_stand_below_the_findings_and_commands_are_marked(full_config: TunedConfig) -> None:
    text = page(explain(full_config))
    assert text.index("2 disturbed rounds were repeated") > text.index('class="remedy"')
    assert "<code>autotune tune " in text


def test_every_operator_stands_in_table_roofline_and_timeline(four_sockets: TunedConfig) -> None:
    account = explain(four_sockets)
    text = page(account)
    for verdict in four_sockets.verdicts:
        assert f'<th scope="row">{verdict.operator}</th>' in text
    assert account.roofline is not None
    for point in account.roofline.points:
        assert f'aria-label="{point.operator}\n' in text
    assert all(f">rank {rank}</text>" in text for rank in range(4))


def test_a_column_of_numbers_carries_them_beside_their_text(full_config: TunedConfig) -> None:
    text = page(explain(full_config))
    assert 'data-v="0.016">16.0</td>' in text
    heads = Checked(text).named("th")
    assert any("data-number" in attributes for attributes in heads)


def test_a_config_of_version_1_says_what_it_does_not_hold(tuned_config: TunedConfig) -> None:
    text = page(explain(tuned_config, unpredicted="it is old"))
    assert "does not hold the work of its passes" in text
    assert "Nothing could be predicted: it is old." in text


def test_many_ranks_are_told_not_drawn(four_sockets: TunedConfig) -> None:
    bars = tuple(Bar(rank, "compute", "loss", 0.0, 1.0) for rank in range(SHOWN_RANKS + 5))
    account = replace(explain(four_sockets), timelines=(Timeline("measured", SHOWN_RANKS + 5, 1.0, bars, "many"),))
    text = page(account)
    assert f"Only the first {SHOWN_RANKS} of {SHOWN_RANKS + 5} ranks are drawn" in text
    assert f">rank {SHOWN_RANKS}</text>" not in text


def test_figures_are_the_drawings_of_the_page_as_files_that_stand_alone(account: Explanation) -> None:
    drawn = {figure.name: figure for figure in figures(account)}
    assert {"timeline", "timeline-predicted", "gains"} <= set(drawn)
    assert ("roofline" in drawn) == (account.roofline is not None)
    text = page(account)
    for figure in drawn.values():
        assert figure.svg in text
        content = as_file(figure)
        assert "var(" not in content
        root = ElementTree.fromstring(content)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        shapes = set(re.findall(r'class="([^"]+)"', figure.svg))
        assert all(f".{name}" in content for names in shapes for name in names.split() if name not in {"mark", "title", "c0", "b-none"})


def test_figures_are_the_same_each_time(full_config: TunedConfig) -> None:
    account = explain(full_config)
    assert list(figures(account)) == list(figures(account))


def test_a_legend_wraps_within_the_figure() -> None:
    keys = [Key("<rect/>", f"a label of some length {i}") for i in range(9)]
    root = ElementTree.fromstring(str(svg_figure("f", 100.0, keys=keys)))
    places = [(float(entry.attrib["x"]), float(entry.attrib["y"]), len(entry.text or "")) for entry in root.findall("text")]
    assert len(places) == 9
    assert all(x + 6.2 * length <= WIDTH for x, _, length in places)
    assert max(y for _, y, _ in places) < float(root.attrib["viewBox"].split()[3])


def test_a_trace_has_complete_events_on_named_lanes(four_sockets: TunedConfig) -> None:
    account = explain(four_sockets, (), Timeline("predicted", 1, 0.07, (Bar(0, "network", "all_reduce", 0.01, 0.07),), ""))
    whole = json.loads(trace(account.model, account.timelines))
    events = whole["traceEvents"]
    complete = [event for event in events if event["ph"] == "X"]
    assert {event["ph"] for event in events} == {"X", "M"}
    assert all(isinstance(event["pid"], int) and isinstance(event["tid"], int) for event in events)
    assert all(event["dur"] >= 0 and event["ts"] >= 0 and event["name"] and event["cat"] for event in complete)
    named = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in complete} == set(named)
    assert set(named.values()) == {"compute", "network"}
    processes = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert [processes[rank] for rank in range(4)] == [f"rank {rank}, measured" for rank in range(4)]
    first = min((event for event in complete if event["pid"] == 0), key=lambda event: event["ts"])
    assert (first["ts"], first["dur"]) == (0.0, pytest.approx(16_000.0))


def test_labels_cover_neither_points_nor_each_other() -> None:
    at = [(100.0 + 5 * i, 200.0 + 3 * (i % 4)) for i in range(20)] + [(400.0, 300.0)]
    names = [f"pass {i}" for i in range(21)]
    places = place_labels(names, at, (50, 10, 750, 450), 6.2)
    boxes = [(x, y - 10, x + 6.2 * len(names[i]), y + 2) for i, (x, y) in places.items()]
    assert 20 in places
    for i, one in enumerate(boxes):
        assert not any(one[0] < x < one[2] and one[1] < y < one[3] for x, y in at)
        assert not any(one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3] for two in boxes[:i])


@pytest.mark.parametrize(("low", "high", "log"), [(0.0, 183.0, False), (0.06, 340.0, True), (0.8, 1.3, True), (0.0, 3e-4, False)])
def test_ticks_are_round_and_within_the_axis(low: float, high: float, log: bool) -> None:
    scale = Scale(low, high, 0.0, 100.0, log=log)
    ticks = scale.ticks()
    assert len(ticks) >= 1
    assert all(-0.01 <= scale(tick) <= 100.01 for tick in ticks)


def test_an_element_escapes_attributes() -> None:
    assert element("g", class_='a"<b>', stroke_width=1.50) == '<g class="a&quot;&lt;b&gt;" stroke-width="1.5"/>'
