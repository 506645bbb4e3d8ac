"""The report on papers that do not exist: every outcome, every text escaped, every file whole."""

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("jinja2")

import synthetic_papers

from core_utils import page as page_module
from core_utils import runs
from core_utils.bench import Comparison, Ratio, Side
from core_utils.claims import Claim, Result, Verdict
from core_utils.errors import UserError
from core_utils.page import PackageReport, Report, duration, measured, number, page, rerun
from core_utils.report import END, START, read_benchmarks, report, update_readme, verdict_table

ENTRIES = {
    "synthetic_papers": "synthetic_papers:CLAIMS",
    "fine": "synthetic_papers:FINE",
    "broken": "a_package_that_nobody_has:CLAIMS",
    "picky": "synthetic_papers:PICKY",
}
ENVIRONMENT = {"python": "3", "platform": "x", "cores": 2, "commit": None, "versions": {}, "fallbacks": []}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The synthetic distributions are found here, and their module in the workers too."""
    folder = tmp_path_factory.mktemp("site")
    synthetic_papers.install(folder, **ENTRIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        runs.environment.cache_clear()  # it lists what is installed
        yield folder
    runs.environment.cache_clear()


@pytest.fixture(scope="module")
def made(installed, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return report(out=out, progress=False), out


def result_of(claim_id="claim", *, figures=None, verdict=None, **facts):
    claim = Claim(claim_id, "A sentence.", "Doe 2020", None, "points", synthetic_papers.half, **facts)
    return Result(claim, verdict, figures or {})


class TestReport:
    def test_counts_every_outcome(self, made):
        assert made[0].counts == {
            "reproduced": 3,
            "refuted": 1,
            "inconclusive": 1,
            "crashed": 2,
            "broken package": 1,
            "not run in the demo": 1,
        }
        assert made[0].crashed

    def test_time_counts_shared_trials_once(self, made):
        mine = next(package for package in made[0].packages if package.name == "synthetic-papers")
        by_id = {result.claim.id: result for result in mine.results}
        assert by_id["gain"].seconds == by_id["loss"].seconds
        assert all(seconds > 0 for seconds in by_id["gain"].seconds.values())
        once = [seconds for name in ("gain", "script", "exact", "crash") for seconds in by_id[name].seconds.values()]
        assert made[0].seconds == pytest.approx(sum(once))

    def test_a_second_call_repeats_no_trial(self, made):
        report(out=made[1], only=["fine"], progress=False)
        report(out=made[1], progress=False)
        counters = list((made[1] / "run" / "trials").rglob("executions"))
        assert [file.read_text() for file in counters] == ["x"] * 5

    def test_other_settings_share_the_folder(self, installed, tmp_path):
        three = report(out=tmp_path, only=["fine"], seeds=3, progress=False)
        assert three.packages[0].results[0].verdict.n == 3
        four = report(out=tmp_path, only=["fine"], seeds=4, progress=False)
        assert four.packages[0].results[0].verdict.n == 4
        assert not four.crashed
        assert len(list(tmp_path.rglob("executions"))) == 4

    def test_the_json_is_strict_and_complete(self, made):
        text = (made[1] / "report.json").read_text()
        data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert data["counts"] == made[0].counts
        packages = {package["name"]: package for package in data["packages"]}
        assert packages["broken"]["error"] == "ModuleNotFoundError: No module named 'a_package_that_nobody_has'"
        (picky,) = packages["picky"]["claims"]
        assert picky["error"]["message"] == "the folder holds no images"
        assert picky["error"]["user"]
        assert packages["synthetic-papers"]["version"] == "1.2.3"
        claims = {claim["id"]: claim for claim in packages["synthetic-papers"]["claims"]}
        assert claims["gain"]["verdict"]["kind"] == claims["gain"]["outcome"] == "reproduced"
        assert claims["gain"]["figures"]["0"]["sparsity"] is None
        assert claims["gain"]["figures"]["0"]["non_finite"] == ["sparsity"]
        assert claims["gain"]["settings"] == {"data": None, "device": "cpu", "full": False}
        assert "singular" in claims["crash"]["error"]["traceback"]
        assert claims["large"]["outcome"] == "not run in the demo"

    def test_an_unknown_name_gets_the_nearest_one(self, installed, tmp_path):
        with pytest.raises(UserError, match="did you mean synthetic-papers"):
            report(out=tmp_path / "none", only=["synthetic-paper"], progress=False)
        assert not (tmp_path / "none").exists()

    def test_bad_input_that_stops_every_package_is_the_users(self, installed, tmp_path):
        with pytest.raises(UserError, match="--workers must be at least 1"):
            report(out=tmp_path, workers=0, progress=False)

    def test_a_readme_without_markers_is_refused_before_any_trial(self, installed, tmp_path):
        (tmp_path / "README.md").write_text(f"{END}\n{START}\n")
        with pytest.raises(UserError, match="markers"):
            report(out=tmp_path / "out", readme=tmp_path / "README.md", progress=False)
        assert not (tmp_path / "out").exists()

    def test_nothing_installed_is_said(self, tmp_path, monkeypatch):
        monkeypatch.setattr("core_utils.report.discover", list)
        with pytest.raises(UserError, match="no installed package has claims"):
            report(out=tmp_path, progress=False)


class TestPage:
    @pytest.fixture
    def html(self, made):
        return (made[1] / "index.html").read_text(encoding="utf-8")

    def test_text_is_escaped(self, html):
        assert "A &lt;script&gt;alert(1)&lt;/script&gt; &amp; a | pipe survive as text." in html
        assert "Doe 2020, &lt;b&gt;table&lt;/b&gt; 2" in html
        assert "seed 1 met a &lt;singular&gt; matrix" in html
        assert "<script" not in html

    def test_refers_to_nothing_outside(self, html):
        assert "http://" not in html
        assert "https://" not in html
        assert "src=" not in html.replace('src="data:', "")

    def test_says_what_was_not_published_and_how_to_run_a_claim_alone(self, html):
        assert "not published in a form we could read" in html
        assert "synthetic-papers reproduce gain --seeds 5<" in html
        assert "synthetic-papers reproduce large --seeds 5 --full<" in html

    def test_shows_the_first_seeds_pictures_once_a_package_and_never_inlines_svg(self, html):
        assert html.count("curve.svg, seed 0") == html.count("pixels.png, seed 0") == 2  # two packages
        assert "notes.txt" not in html
        assert "document.title" not in html

    def test_a_large_picture_is_named_and_left_out(self, made, monkeypatch):
        monkeypatch.setattr(page_module, "PICTURE_LIMIT", len(synthetic_papers.PNG))
        html = page(made[0])
        assert "curve.svg, seed 0: " in html
        assert "data:image/svg+xml" not in html
        assert html.count("data:image/png;base64,") == 2

    def test_pictures_together_stay_within_their_limit(self, made, monkeypatch):
        monkeypatch.setattr(page_module, "PICTURES_LIMIT", len(synthetic_papers.SVG) + len(synthetic_papers.PNG))
        html = page(made[0])
        assert (html.count("data:image/svg+xml"), html.count("data:image/png;base64,")) == (1, 1)

    def test_a_long_error_is_cut_to_its_end(self):
        html = page(Report((PackageReport("p", (), "x" * 100_000 + "cause"),), ENVIRONMENT))
        assert "cause" in html
        assert len(html) < 50_000

    def test_shows_benchmarks(self):
        sides = {"ours": Side(0.0123, 2**25, 2**24), "peer": Side(0.0284, 2**25, 2**26)}
        where = {"processor": "A CPU", "isa": ["avx2"], "threads": 1, "cores": 2}
        met = Comparison(Ratio(2.314, 1.98, 2.6, 10), 4.0, **sides, environment=where, id="lif", target=1.5)
        absent = Comparison(not_measured="peer: No module named 'spikingjelly'", statement="Faster than <it>.")
        html = page(Report((), ENVIRONMENT, (met, absent)))
        assert "2.31\N{MULTIPLICATION SIGN} [1.98, 2.60]" in html
        assert "Not measured: peer: No module named &#39;spikingjelly&#39;" in html
        assert "Faster than &lt;it&gt;." in html

    def test_benchmarks_stand_by_package(self):
        found = [Comparison(not_measured="no peer", id=name) for name in ("qdrop loop", "qdrop kernel", "snn-tet lif")]
        html = page(Report((), ENVIRONMENT, tuple(found)))
        order = [html.index(text) for text in (">qdrop<", ">loop<", ">kernel<", ">snn-tet<", ">lif<")]
        assert order == sorted(order)

    def test_benchmarks_are_read_from_the_folders_of_the_command(self, tmp_path):
        side = Side(0.01, 2**25, 2**24)
        met = Comparison(Ratio(2.0, 1.5, 3.0, 10), None, side, side, {"threads": 1}, id="speed", target=1.5)
        with runs.Run.open(tmp_path / "bench-snn-tet", {"command": "bench snn_tet"}) as run:
            run.write("speed.json", met)
        with runs.Run.open(tmp_path / "training", {"lr": 0.1}) as run:
            run.write("speed.json", met)
        (found,) = read_benchmarks(tmp_path)
        assert (found.id, found.ratio, found.outcome) == ("snn-tet speed", met.ratio, "met")

    @pytest.mark.parametrize("text", ["", "[]", '{"id": 1, "speed": 2}'])
    def test_a_file_that_is_no_benchmark_is_named(self, tmp_path, text):
        with runs.Run.open(tmp_path / "bench", {"command": "bench qdrop"}) as run:
            run.write("speed.json", text)
        with pytest.raises(UserError, match=r"speed\.json"):
            read_benchmarks(tmp_path)
        with pytest.raises(UserError, match="is no folder"):
            read_benchmarks(tmp_path / "none")

    @pytest.mark.parametrize(
        "effects", [[0.0] * 3, [5.0] * 3, [1e-9, 2e-9, 4e-9], [-1e7, 3e8, 1.0], [math.nan, 1.0, 2.0]]
    )
    def test_draws_whatever_was_measured(self, effects):
        drawn = page_module._plot(
            result_of(figures={seed: {"effect": e} for seed, e in enumerate(effects)}, margin=0.0)
        )
        finite = [effect for effect in effects if math.isfinite(effect)]
        assert [effect for _, effect, _ in drawn["seeds"]] == finite
        at = [position for *_, position in drawn["seeds"]]
        assert all(0 < position < 1 for position in [*at, drawn["margin"]])
        assert sorted(at) == [position for _, position in sorted(zip(finite, at, strict=True))]
        assert 3 <= len(drawn["ticks"]) <= 7

    def test_draws_nothing_where_nothing_finite_was_measured(self):
        assert page_module._plot(result_of(figures={0: {"effect": math.inf}})) is None


class TestReadme:
    def test_every_other_byte_stays(self, tmp_path):
        readme = tmp_path / "README.md"
        before, after = b"\xef\xbb\xbf# T\xc3\xaftle\r\n\r\n", b"\r\n\ttail without newline \xff"
        readme.write_bytes(before + START.encode() + b"old | table" + END.encode() + after)
        update_readme(readme, "| new |")
        assert readme.read_bytes() == before + f"{START}\n\n| new |\n\n{END}".encode() + after
        once = readme.read_bytes()
        update_readme(readme, "| new |")
        assert readme.read_bytes() == once

    @pytest.mark.parametrize("text", ["", START, END + START, START + START + END])
    def test_markers_must_be_there_once_and_in_order(self, tmp_path, text):
        readme = tmp_path / "README.md"
        readme.write_text(text)
        with pytest.raises(UserError, match=r"README\.md does not hold the markers"):
            update_readme(readme, "| new |")
        assert readme.read_text() == text

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(UserError, match=r"cannot read .*README\.md: No such file"):
            update_readme(tmp_path / "README.md", "")

    def test_report_writes_its_table_there(self, made, installed, tmp_path):
        readme = tmp_path / "README.md"
        readme.write_text(f"# Papers\n{START}{END}\n")
        found = report(out=made[1], readme=readme, progress=False)
        assert readme.read_text() == f"# Papers\n{START}\n\n{verdict_table(found.packages)}\n\n{END}\n"

    def test_cells_are_one_line_and_end_at_no_pipe_of_the_text(self):
        verdict = Verdict("reproduced", 2.0, 1.5, 2.5, 5)
        claim = Claim("c", "a|b \\| <i>\nc", "Doe", "1|2", "points", synthetic_papers.half)
        table = verdict_table([PackageReport("p", (Result(claim, verdict),)), PackageReport("q", (), "gone")])
        assert table.splitlines() == [
            "| package | claim | paper | measured | verdict |",
            "| --- | --- | --- | --- | --- |",
            r"| p | a\|b \\\| &lt;i> c | 1\|2 | 2.00 [1.50, 2.50] points, n = 5 | reproduced |",
            "| q | gone |  |  | broken package |",
        ]


class TestForPeople:
    @pytest.mark.parametrize(
        ("value", "resolution", "text"),
        [
            (0.0, None, "0"),
            (-0.05, None, "\N{MINUS SIGN}0.05"),
            (89.25, None, "89.25"),
            (2000.0, None, "2,000"),
            (12345.678, None, "12,346"),
            (1.23456e-7, None, "1.23e-07"),
            (2.5e12, None, "2.5e+12"),
            (math.nan, None, "nan"),
            (2.20456, 0.61, "2.20"),
            (-1.4949, 0.015, "\N{MINUS SIGN}1.495"),
            (-0.0001, 0.5, "0.00"),
            (1234.5, 300.0, "1,234"),
            (2.0, 0.0, "2"),
        ],
    )
    def test_numbers(self, value, resolution, text):
        assert number(value, resolution) == text

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0.0123, "12.3 ms"), (5.25, "5.2 s"), (200.0, "3 min"), (7500.0, "2 h 5 min")]
    )
    def test_durations(self, seconds, text):
        assert duration(seconds) == text

    def test_an_effect_shows_two_digits_of_its_uncertainty(self):
        verdict = Verdict("reproduced", 0.123456, 0.111, 0.1359, 5)
        assert measured(result_of(verdict=verdict)) == "0.123 [0.111, 0.136] points, n = 5"
        assert measured(result_of()) == "\N{EN DASH}"

    def test_the_command_repeats_the_settings(self):
        claim = result_of("a b").claim
        settings = {"data": Path("/my data"), "device": "cuda:1", "full": True}
        command = rerun("snn-tet", Result(claim, None, settings=settings, workdirs={0: Path("x"), 1: Path("y")}))
        assert command == "snn-tet reproduce 'a b' --seeds 2 --full --data '/my data' --device cuda:1"
