"""The page in a headless Chromium: nothing overflows, keys work, dark mode and print come out."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from autotune.config.tuned import TunedConfig
from autotune.explaining.diagnosis import explain
from autotune.report.html import page

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium to test the page in it")

WIDTHS = (1280, 390)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--hide-scrollbars",
)  # fmt: skip

# Runs in a page that holds the report twice, at both widths: a window may not be as narrow as a phone, a frame may.
PROBE = """
window.addEventListener("load", function () {
  var results = Array.prototype.map.call(document.querySelectorAll("iframe"), function (frame) {
    var doc = frame.contentDocument, view = frame.contentWindow, root = doc.documentElement;
    var result = { overflow: root.scrollWidth - root.clientWidth, width: root.clientWidth };
    var table = doc.querySelector("#operators ~ .box table"), head = table.tHead.rows[0].cells[1], button = head.querySelector("button");
    function times() { return Array.prototype.map.call(table.tBodies[0].rows, function (row) { return +row.cells[1].dataset.v; }); }
    button.focus();
    result.focused = doc.activeElement === button;
    button.click(); result.descending = times(); result.sort = head.getAttribute("aria-sort");
    button.click(); result.ascending = times(); result.sortedAgain = head.getAttribute("aria-sort");
    result.sorted = table.querySelectorAll('th[aria-sort]:not([aria-sort="none"])').length;
    var marks = doc.querySelectorAll("#roofline ~ figure .mark"), tip = doc.getElementById("tip");
    marks[0].focus(); result.firstTip = tip.hidden ? "" : tip.textContent; result.label = marks[0].getAttribute("aria-label");
    marks[0].dispatchEvent(new view.KeyboardEvent("keydown", { key: "End", bubbles: true }));
    result.moved = doc.activeElement === marks[marks.length - 1];
    result.stops = doc.querySelectorAll('#roofline ~ figure .mark[tabindex="0"]').length;
    doc.activeElement.dispatchEvent(new view.KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    result.closed = tip.hidden;
    return result;
  });
  document.getElementById("results").textContent = JSON.stringify(results);
});
"""

Browse = Callable[..., str]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Opens a page from a file, with a profile of its own, and returns what the browser prints."""

    def run(text: str, *options: str) -> str:
        assert BROWSER is not None
        file = tmp_path / "page.html"
        file.write_text(text, encoding="utf-8")
        command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *options, file.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return run


def framed(text: str, widths: tuple[int, ...], script: str = "") -> str:
    content = escape(text, quote=True)
    frames = "".join(f'<iframe style="border:0;width:{width}px;height:4000px" srcdoc="{content}"></iframe>' for width in widths)
    return f'<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">{frames}<pre id="results"></pre><script>{script}</script></body>'


@pytest.mark.parametrize("config", ["full_config", "four_sockets"])
def test_nothing_overflows_and_keys_work_on_desktop_and_phone(browse: Browse, config: str, request: pytest.FixtureRequest) -> None:
    text = page(explain(request.getfixturevalue(config)))
    printed = browse(framed(text, WIDTHS, PROBE), "--window-size=1400,900", "--virtual-time-budget=4000", "--dump-dom")
    found = re.search(r'<pre id="results">(.*?)</pre>', printed, re.DOTALL)
    assert found is not None
    results: list[dict[str, Any]] = json.loads(unescape(found[1]))
    assert [result["width"] for result in results] == list(WIDTHS)
    for result in results:
        assert result["overflow"] <= 0
        assert result["focused"]
        assert result["descending"] == sorted(result["descending"], reverse=True)
        assert result["ascending"] == sorted(result["descending"])
        assert (result["sort"], result["sortedAgain"], result["sorted"]) == ("descending", "ascending", 1)
        assert result["firstTip"] == result["label"] != ""
        assert result["moved"]
        assert result["stops"] == 1
        assert result["closed"]


def brightness(file: Path) -> tuple[float, float]:
    """Of the left upper corner, where nothing but the background is, and the spread over the whole picture."""
    picture = matplotlib.image.imread(file)[:, :, :3]
    return float(picture[2, 2].mean()), float(picture.std())


def test_light_and_dark_screenshots_at_desktop_width_and_a_phone(browse: Browse, four_sockets: TunedConfig, tmp_path: Path) -> None:
    text = page(explain(four_sockets))
    light, dark, phone = tmp_path / "light.png", tmp_path / "dark.png", tmp_path / "phone.png"
    browse(text, "--window-size=1280,2000", f"--screenshot={light}")
    browse(text, "--window-size=1280,2000", "--blink-settings=preferredColorScheme=0", f"--screenshot={dark}")
    browse(framed(text, WIDTHS[1:]), "--window-size=500,2000", f"--screenshot={phone}")
    assert brightness(light)[0] > 0.95
    assert brightness(dark)[0] < 0.15
    for file in (light, dark, phone):
        assert brightness(file)[1] > 0.03


def test_the_page_prints(browse: Browse, four_sockets: TunedConfig, tmp_path: Path) -> None:
    printed = tmp_path / "page.pdf"
    browse(page(explain(four_sockets)), f"--print-to-pdf={printed}")
    content = printed.read_bytes()
    assert content.startswith(b"%PDF")
    assert len(content) > 20_000
