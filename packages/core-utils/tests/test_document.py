import pytest

pytest.importorskip("jinja2")

from core_utils.document import Picture, Section, document
from core_utils.errors import UserError

ENVIRONMENT = {"cores": 2, "python": "3.11.7", "platform": "here", "commit": None, "versions": {"numpy": "2.4"}}


def test_a_document_escapes_what_it_is_given_and_needs_nothing_from_outside():
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    sections = [
        Section("First & last", ["a < b"], [["name", "value"], ["<script>", "1"]], pictures=[Picture("p", svg, ".svg")])
    ]
    page = document("Title <x>", "lead", sections, ENVIRONMENT)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<h1>Title &lt;x&gt;</h1>" in page
    assert '<h2 id="First-last">First &amp; last</h2>' in page
    assert "a &lt; b" in page
    assert 'src="data:image/svg+xml;base64,' in page
    assert "--paper: #fdfcfa" in page
    assert "&#34;Segoe" not in page  # the style is no text
    assert "numpy 2.4" in page


def test_a_picture_that_is_too_large_is_refused():
    with pytest.raises(UserError, match="the picture 'big' has 600001 bytes"):
        document("t", "l", [Section("s", pictures=[Picture("big", b"x" * 600_001, ".png")])], ENVIRONMENT)
