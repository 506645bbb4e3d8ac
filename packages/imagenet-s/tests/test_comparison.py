import dataclasses

import photographs

from imagenet_s import Nv12, Pipeline, Sample
from imagenet_s.comparison import compare

A = Pipeline(size=64)
FILES = [Sample(data, None, f"{n}.jpg") for n, data in enumerate(photographs.small(5, 90, 120))]


def by_stage(found):
    return {each.stage: each for each in found.stages}


def test_equal_pipelines_differ_nowhere():
    found = compare(A, A, FILES)
    assert (found.n, found.findings, found.errors) == (5, (), ())
    assert all((each.mean, each.largest, each.changed, each.shapes) == (0, 0, 0, 0) for each in found.stages)


def test_a_difference_begins_at_the_stage_that_makes_it():
    stages = by_stage(compare(A, dataclasses.replace(A, resizer="opencv-nearest"), FILES))
    assert stages["decoded"].changed == stages["coloured"].changed == 0
    assert stages["resized"].mean > 1
    coloured = by_stage(compare(A, dataclasses.replace(A, colour=Nv12()), FILES))
    assert coloured["oriented"].changed == 0
    assert coloured["coloured"].changed > 0
    layout = by_stage(compare(A, dataclasses.replace(A, layout="NHWC"), FILES))
    assert layout["normalised"].changed == 0


def test_what_has_another_shape_is_counted_and_not_subtracted():
    found = compare(A, dataclasses.replace(A, resize_size=64), FILES)
    assert by_stage(found)["resized"].shapes == 5
    assert by_stage(found)["cropped"].shapes == 0
    assert "zoom" in {each.kind for each in found.findings}


def test_a_bad_file_is_named_and_costs_only_itself():
    found = compare(A, A, [*FILES, Sample(b"no image", None, "bad.jpg")])
    assert found.n == 5
    assert [error.name for error in found.errors] == ["bad.jpg"]
