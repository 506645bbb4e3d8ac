import dataclasses
import json

import photographs
import pytest

from imagenet_s import Nv12, Pipeline, PipelineError
from imagenet_s.naming import grid_of, pipeline_of, samples_of
from imagenet_s.presets import LITE0_STD, PRESETS


def test_a_pipeline_is_a_preset_a_part_or_a_file_with_changes(tmp_path):
    assert pipeline_of("tf1-slim") == PRESETS["tf1-slim"]
    assert pipeline_of("lite0").std == LITE0_STD
    assert pipeline_of("opencv") == Pipeline(decoder="opencv")
    assert pipeline_of("pillow12-lanczos") == Pipeline(resizer="pillow12-lanczos")
    assert pipeline_of("vips/torch-bilinear") == Pipeline(decoder="vips", resizer="torch-bilinear")
    changed = pipeline_of("paper,size=28,resize_size=32,mean=0.5/0.5/0.25,colour=nv12,channels=bgr")
    assert changed == Pipeline(size=28, resize_size=32, mean=(0.5, 0.5, 0.25), colour=Nv12(), channels="bgr")
    assert pipeline_of("paper,size=112").resize_to == 128
    (tmp_path / "mine.json").write_text(changed.to_json())
    assert pipeline_of(f"{tmp_path / 'mine.json'},dtype=float16") == dataclasses.replace(changed, dtype="float16")
    config = {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert pipeline_of(str(tmp_path)) == Pipeline.from_hf(tmp_path)
    assert pipeline_of("timm:tf_efficientnet_lite0.in1k").resizer == "pillow-bicubic"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("papre", "no pipeline is called 'papre'"),
        ("paper,size", "expected field=value"),
        ("paper,sise=3", "no field 'sise'"),
        ("paper,size=many", "size must be a whole number"),
        ("missing.json", "cannot read missing.json"),
        ("timm:nonsense", "timm knows no pretrained model 'nonsense'"),
    ],
)
def test_an_unknown_name_or_value_says_what_would_be_right(text, message):
    with pytest.raises(PipelineError, match=message):
        pipeline_of(text)


def test_a_grid_takes_names_instead_of_its_own():
    grid = grid_of("paper", Pipeline(size=28), "pillow, turbo-fast", "", "nv12")
    assert grid.decoders == ("pillow", "turbo-fast")
    assert len(grid.resizers) == 11
    assert grid.factors == ("nv12",)
    with pytest.raises(PipelineError, match="grids are paper and modern"):
        grid_of("old", Pipeline(), "", "", "")


def test_built_in_samples_are_always_the_same(tmp_path, monkeypatch):
    crops = samples_of("photographs")
    assert (len(crops), crops.source, set(crops.labels)) == (140, "photographs", {None})
    assert crops[3].data == samples_of("photographs")[3].data
    monkeypatch.chdir(tmp_path)
    photographs.write_files(tmp_path / "photographs", [("a.jpg", crops[0].data)])
    assert len(samples_of("photographs")) == 1  # the user's own folder comes first
