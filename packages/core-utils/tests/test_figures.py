import pytest

from core_utils.figures import rendered, svg

matplotlib = pytest.importorskip("matplotlib")


def figure(title="a title"):
    from matplotlib.figure import Figure

    made = Figure(figsize=(2, 1))
    axes = made.add_subplot()
    axes.plot([0, 1], [1, 0])
    axes.set_title(title)
    return made


@pytest.mark.parametrize("form", ["svg", "png"])
def test_the_same_picture_is_the_same_file(form):
    assert rendered(figure(), form) == rendered(figure(), form)
    assert rendered(figure(), form) != rendered(figure("another"), form)


def test_an_svg_needs_no_font_and_names_no_date():
    text = svg(figure())
    assert text.count("<svg") == 1
    assert "<text" not in text
    assert "dc:date" not in text


def test_a_png_has_150_dots_an_inch():
    content = rendered(figure(), "png")
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")) == (300, 150)
