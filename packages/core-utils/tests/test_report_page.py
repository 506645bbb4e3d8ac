"""The page in a real browser: it asks for nothing, overflows nowhere and can be read in light and in dark."""

import os
import shutil

import pytest

pytest.importorskip("jinja2")  # the bare environment has no page to look at
if os.environ.get("CORE_UTILS_REQUIRE_BROWSER") != "1":
    pytest.importorskip("playwright.sync_api")
    if shutil.which("chromium") is None:
        pytest.skip("no chromium on the PATH", allow_module_level=True)

import synthetic_papers
from playwright.sync_api import sync_playwright

from core_utils.bench import Comparison, Ratio, Side
from core_utils.report import report

CASES = [(scheme, width) for scheme in ("light", "dark") for width in (1200, 375)]
QUIET = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
]

CONTRASTS = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const color = channels(getComputedStyle(element).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = {};
  for (const element of document.querySelectorAll('body *')) {
    const svg = element instanceof SVGElement;
    if (svg && element.tagName !== 'text') continue;
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const style = getComputedStyle(element);
    const pair = [luminance(channels(svg ? style.fill : style.color)), luminance(ground(element))].sort((a, b) => b - a);
    const name = `${element.tagName} ${element.getAttribute('class') || ''}`;
    found[name] = Math.min(found[name] ?? 99, (pair[0] + 0.05) / (pair[1] + 0.05));
  }
  return found;
}"""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    site, out = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("report")
    synthetic_papers.install(
        site, synthetic_papers="synthetic_papers:CLAIMS", broken="a_package_that_nobody_has:CLAIMS"
    )
    where = {"processor": "A CPU", "isa": ["avx2", "avx512f"], "threads": 1, "cores": 2}
    sides = {"ours": Side(0.0123, 2**25, 2**24), "peer": Side(0.0284, 2**25, 2**26)}
    benchmark = Comparison(Ratio(2.3, 1.98, 2.6, 10), 4.0, **sides, environment=where, statement="Faster.", target=1.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        report(out=out, benchmarks=[benchmark], progress=False)
    return out / "index.html"


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=CASES, ids=[f"{scheme}-{width}" for scheme, width in CASES])
def opened(request, chromium, index):
    """The page with every fold open, and what the browser had to say about it."""
    scheme, width = request.param
    context = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}, offline=True)
    tab = context.new_page()
    heard = {"console": [], "errors": [], "requests": []}
    tab.on("console", lambda message: heard["console"].append(message.text))
    tab.on("pageerror", lambda error: heard["errors"].append(str(error)))
    tab.on("request", lambda asked: heard["requests"].append(asked.url))
    tab.goto(index.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    yield tab, heard
    context.close()


def test_is_silent_and_asks_for_nothing_but_itself(opened, index):
    tab, heard = opened
    outside = [url for url in heard["requests"] if not url.startswith("data:")]
    assert (heard["console"], heard["errors"], outside) == ([], [], [index.as_uri()])
    assert tab.title() == "Claims, run and judged"  # the script inside a trial's SVG did not run


def test_every_picture_is_there(opened):
    widths = opened[0].evaluate("[...document.images].map(image => image.naturalWidth)")
    assert sorted(widths) == [2, 320]


def test_every_drawing_has_a_visible_box_within_the_page(opened):
    boxes = opened[0].evaluate(
        """[...document.querySelectorAll('svg')].map(svg => [svg.getBoundingClientRect(), svg.checkVisibility()])
        .map(([box, visible]) => [box.width, box.height, box.left, box.right - document.documentElement.clientWidth, visible])"""
    )
    assert len(boxes) >= 20
    assert all(w > 0 and h > 0 and left >= 0 and beyond <= 0 and visible for w, h, left, beyond, visible in boxes)


def test_figures_have_a_name_and_labels_that_can_be_read(opened):
    plots = opened[0].evaluate(
        """[...document.querySelectorAll('svg.plot')].map(svg => [svg.getAttribute('aria-label'),
        Math.min(...[...svg.querySelectorAll('text')].map(text => text.getBoundingClientRect().height))])"""
    )
    assert len(plots) == 5
    assert plots[0][0].startswith("effect of every seed for gain: 2.20 [1.59, 2.82] points, n = 5; margin 1")
    assert min(height for _, height in plots) >= 11  # px


def test_does_not_overflow_sideways(opened):
    scroll, client = opened[0].evaluate(
        "(({scrollWidth, clientWidth}) => [scrollWidth, clientWidth])(document.documentElement)"
    )
    assert scroll <= client


def test_text_stands_out_from_what_lies_behind_it(opened):
    contrasts = opened[0].evaluate(CONTRASTS)
    badges = {f"SPAN badge {kind}" for kind in ("good", "bad", "open", "fault", "idle")}
    assert badges | {"P ", "TD ", "DD ", "DT ", "text ", "H3 ", "PRE "} <= set(contrasts)
    assert {name: contrast for name, contrast in contrasts.items() if contrast < 4.5} == {}


def test_outcomes_differ_by_shape_and_text_not_by_colour_alone(opened):
    shapes = opened[0].evaluate(
        "Object.fromEntries([...document.querySelectorAll('.badge')].map(b => [b.textContent.trim(), b.firstElementChild.innerHTML]))"
    )
    assert set(shapes) >= {"reproduced", "refuted", "inconclusive", "crashed", "broken package", "not run in the demo"}
    assert (
        len({shapes[name] for name in ("reproduced", "refuted", "inconclusive", "crashed", "not run in the demo")}) == 5
    )
