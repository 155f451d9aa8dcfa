"""The page of a run in a real browser: hostile completions, requests, the search, a phone, the two themes."""

from pathlib import Path

import pytest

from moaa_ray.data import schemas
from moaa_ray.data.store import open_store
from moaa_ray.reporting.report import write_report
from tests.reporting.browser import BINARY, WHY_NOT, Browser, browser
from tests.reporting.html_check import HOSTILE
from tests.reporting.runs import proposal, put, synthesis

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BINARY is None, reason=WHY_NOT)]
SCRIPT = "<script>document.title='x'</script>"
VISIBLE = "[...document.querySelectorAll('#cards article')].filter(a => a.offsetParent).length"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """The page of a run of 30 rows with hostile completions, in a browser."""
    folder = tmp_path_factory.mktemp("browser")
    store = open_store(str(folder / "run"))
    store.put("run.json", b'{"name": "my-run", "stages": {}}')
    texts = [SCRIPT, f"<img src='http://127.0.0.1:9/x' onerror=\"document.title='y'\">{SCRIPT}", *HOSTILE]
    rows = [synthesis(f"r{n}", texts[n % len(texts)], prompt=f"question no{n}",
                      proposals=[proposal("a", texts[(n + 1) % len(texts)]), proposal("b", "word " * 900)])
            for n in range(30)]  # fmt: skip
    put(store, "sft", schemas.SFT, rows)
    write_report(store.uri, num_rows=30)
    with browser(folder / "profile") as found:
        found.open(Path(store.uri) / "report.html")
        yield found


def test_a_completion_that_is_a_script_shows_as_text_and_does_not_run(tab: Browser):
    assert tab.value("document.title") == "Report of my-run"
    shown = tab.value("[...document.querySelectorAll('.text')].map(box => box.textContent)")
    assert shown.count(SCRIPT) >= 5
    tab.value("document.querySelector('#cards .two').scrollIntoView()")
    tab.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    seen = tab.value("[...document.querySelectorAll('#cards .text')].map(box => box.innerText).filter(Boolean)")
    assert set(seen) & {SCRIPT, *HOSTILE[:1]}
    assert tab.value("document.querySelectorAll('main img, main script, main iframe, main style').length") == 0


def test_no_request_goes_out_of_the_page(tab: Browser):
    assert len(tab.requests) == 1
    assert tab.requests[0].startswith("file://")


def test_the_policy_stops_a_script_that_would_get_into_the_page(tab: Browser):
    """Not that one could: the second wall holds by itself."""
    tab.value("""(() => { const one = document.createElement('script'); one.textContent = "window.stolen = 1";
                 document.body.append(one); const img = document.createElement('img');
                 img.src = 'http://127.0.0.1:9/y'; document.body.append(img); })()""")
    assert tab.value("window.stolen") is None


def test_the_search_works_from_the_keyboard(tab: Browser):
    assert tab.value(VISIBLE) == 30
    tab.press("/")
    assert tab.value("document.activeElement.id") == "find"
    for key in "QUESTION no2":
        tab.press(key)
    assert tab.value("document.getElementById('find').value") == "QUESTION no2"
    assert tab.value("document.getElementById('found').textContent") == "11 of 30 rows"  # 2, and 20 to 29
    assert tab.value(VISIBLE) == 11
    tab.press("Escape")
    assert tab.value(VISIBLE) == 30


def test_a_phone_shows_the_page_without_sideways_scrolling(tab: Browser):
    tab.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    assert tab.value("document.documentElement.scrollWidth") <= 390
    tab.call("Emulation.clearDeviceMetricsOverride")


def test_the_page_follows_the_theme_of_the_device(tab: Browser):
    colours = []
    for scheme in ("light", "dark"):
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours.append(tab.value("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(21, 23, 27)"]
