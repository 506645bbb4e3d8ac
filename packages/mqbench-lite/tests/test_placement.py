"""Where quantisers go: exact lists of nodes for the three rules."""

import dataclasses

import pytest

from mqbench_lite import profiles
from mqbench_lite.errors import ProfileError, UnsupportedOpError
from mqbench_lite.graph import Graph, Node
from mqbench_lite.operators import Bound, Ref
from mqbench_lite.placement import fused, grid_sources, place


def graph(text, outputs=None):
    """A graph from lines `name = op a b`; attributes of operations that need some are filled in."""
    attributes = {"pad": {"pads": (1, 1, 1, 1), "value": 0.0}, "resize": {"mode": "nearest"}}
    attributes["call"] = {"target": Bound(abs, (Ref(0),), {}), "args": (), "kwargs": {}}
    nodes = []
    for line in text.strip().splitlines():
        name, _, rest = line.partition("=")
        op, *inputs = rest.split()
        nodes.append(Node(name.strip(), op, tuple(inputs), attributes.get(op, {})))
    return Graph(tuple(nodes), (outputs or nodes[-1].name,) if not isinstance(outputs, tuple) else outputs)


def profile(rule, **fields):
    base = profiles.get("onnxruntime")
    return dataclasses.replace(base, graph=rule, act=dataclasses.replace(base.act, bits=4), **fields)


def placed(text, rule, outputs=None, overrides=None, **fields):
    found = place(graph(text, outputs), profile(rule, **fields), overrides)
    lines = [f"{node.name} = {node.op} {' '.join(node.inputs)}".strip() for node in found.graph]
    return found, lines


def quantisers(text, rule, outputs=None, overrides=None, **fields):
    found, _ = placed(text, rule, outputs, overrides, **fields)
    return {node.name: node.attributes["bits"] for node in found.graph if node.op == "quantize"}


RESIDUAL = """
x = input
a = conv x
a.bn = batch_norm a
a.relu = relu a.bn
b = conv a.relu
b.bn = batch_norm b
b.relu = relu b.bn
c = conv b.relu
c.bn = batch_norm c
sum = add c.bn a.relu
sum.relu = relu sum
pool = mean sum.relu
fc = linear pool
"""


def test_rule_1_quantises_the_inputs_of_layers_alone():
    _, lines = placed(RESIDUAL, 1)
    assert lines == [
        "x = input",
        "Q:x = quantize x",
        "a = conv Q:x",
        "a.bn = batch_norm a",
        "a.relu = relu a.bn",
        "Q:a.relu = quantize a.relu",
        "b = conv Q:a.relu",
        "b.bn = batch_norm b",
        "b.relu = relu b.bn",
        "Q:b.relu = quantize b.relu",
        "c = conv Q:b.relu",
        "c.bn = batch_norm c",
        "sum = add c.bn a.relu",
        "sum.relu = relu sum",
        "pool = mean sum.relu",
        "Q:pool = quantize pool",
        "fc = linear Q:pool",
    ]


def test_rule_2_leaves_the_branch_of_a_layer_in_the_accumulator():
    _, lines = placed(RESIDUAL, 2)
    assert lines[12:] == [
        "sum = add c.bn Q:a.relu",
        "sum.relu = relu sum",
        "Q:sum.relu = quantize sum.relu",
        "pool = mean Q:sum.relu",
        "Q:pool = quantize pool",
        "fc = linear Q:pool",
    ]


def test_rule_3_quantises_both_sides_of_an_addition():
    _, lines = placed(RESIDUAL, 3)
    assert lines[11:] == [
        "c.bn = batch_norm c",
        "Q:c.bn = quantize c.bn",
        "sum = add Q:c.bn Q:a.relu",
        "sum.relu = relu sum",
        "Q:sum.relu = quantize sum.relu",
        "pool = mean Q:sum.relu",
        "Q:pool = quantize pool",
        "fc = linear Q:pool",
    ]


def test_first_and_last_layers_have_the_edges_width_and_shared_tensors_both():
    found, _ = placed(RESIDUAL, 3)
    assert found.weight_bits == {"a": 8, "b": 8, "c": 8, "fc": 8}  # the profile's weights have 8 bits anyway
    assert quantisers(RESIDUAL, 3) == {
        "Q:x": 8,
        "Q:a.relu": 4,
        "Q:b.relu": 4,
        "Q:c.bn": 4,
        "Q:sum.relu": 4,
        "Q:pool": 8,
    }
    weight = dataclasses.replace(profile(3).weight, bits=3)
    assert place(graph(RESIDUAL), profile(3, edge_bits=6)).weight_bits["a"] == 6
    narrow = dataclasses.replace(profile(3), weight=weight)
    assert place(graph(RESIDUAL), narrow).weight_bits == {"a": 8, "b": 3, "c": 3, "fc": 8}
    assert place(graph(RESIDUAL), dataclasses.replace(narrow, edge_bits=None)).weight_bits == dict.fromkeys(
        ["a", "b", "c", "fc"], 3
    )
    assert quantisers(RESIDUAL, 3, edge_bits=None)["Q:x"] == 4


TWO_LAYERS_ADDED = """
x = input
a = conv x
b = conv a
c = conv a
sum = add b c
d = conv sum
e = conv d
"""


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (1, ["Q:x", "Q:a", "Q:sum", "Q:d"]),
        (2, ["Q:x", "Q:a", "Q:c", "Q:sum", "Q:d"]),  # the first of the two stays in the accumulator
        (3, ["Q:x", "Q:a", "Q:b", "Q:c", "Q:sum", "Q:d"]),
    ],
)
def test_an_addition_of_two_layers(rule, expected):
    assert list(quantisers(TWO_LAYERS_ADDED, rule)) == expected


def test_rule_2_quantises_both_sides_where_neither_comes_straight_from_a_layer():
    text = "x = input\na = conv x\ni = relu a\nj = sigmoid a\nsum = add i j\nb = conv sum\nc = conv b"
    assert list(quantisers(text, 2)) == ["Q:x", "Q:i", "Q:j", "Q:sum", "Q:b"]
    assert list(quantisers(text, 1)) == ["Q:x", "Q:sum", "Q:b"]
    # a is read twice, so its relu is no unit with it
    assert list(quantisers(text, 3)) == ["Q:x", "Q:a", "Q:i", "Q:j", "Q:sum", "Q:b"]


SHARED_TENSOR = """
x = input
a = conv x
r = relu a
b = conv r
c = conv r
last = linear r
"""


@pytest.mark.parametrize("rule", [1, 2, 3])
def test_one_quantiser_serves_all_readers_of_one_width(rule):
    found, lines = placed(SHARED_TENSOR, rule, outputs=("b", "c", "last"), edge_bits=None)
    assert lines[2:] == [
        "a = conv Q:x",
        "r = relu a",
        "Q:r = quantize r",
        "b = conv Q:r",
        "c = conv Q:r",
        "last = linear Q:r",
    ]
    assert found.graph.outputs == ("b", "c", "last")


TWO_WIDTHS = """
x = input
a = conv x
r = relu a
b = conv r
c = conv b
last = linear r
"""


def test_a_tensor_that_is_read_at_two_widths_has_two_quantisers():
    _, lines = placed(TWO_WIDTHS, 3, outputs=("c", "last"))
    assert lines[3:7] == ["r = relu a", "Q:r@4 = quantize r", "Q:r@8 = quantize r", "b = conv Q:r@4"]
    assert lines[-1] == "last = linear Q:r@8"


REUSED = """
x = input
a = conv x
a.relu = relu a
a#2 = conv a.relu
b = conv a#2
"""


@pytest.mark.parametrize("rule", [1, 2, 3])
def test_a_reused_module_is_quantised_at_each_call_and_has_one_weight(rule):
    found, lines = placed(REUSED, rule)
    assert lines == [
        "x = input",
        "Q:x = quantize x",
        "a = conv Q:x",
        "a.relu = relu a",
        "Q:a.relu = quantize a.relu",
        "a#2 = conv Q:a.relu",
        "Q:a#2 = quantize a#2",
        "b = conv Q:a#2",
    ]
    assert found.weight_bits == {"a": 8, "b": 8}


CONCAT = """
x = input
a = conv x
b = conv a
b.relu = relu b
p = max_pool a
cat = concat b.relu p
c = conv cat
d = conv c
"""


@pytest.mark.parametrize(
    ("rule", "concat", "expected"),
    [
        (1, "requant", ["Q:x", "Q:a", "Q:cat", "Q:c"]),
        (2, "requant", ["Q:x", "Q:a", "Q:cat", "Q:c"]),
        (3, "requant", ["Q:x", "Q:a", "Q:b.relu", "Q:cat", "Q:c"]),
        (3, "shared", ["Q:x", "Q:a", "Q:b.relu", "Q:c"]),
    ],
)
def test_a_concatenation(rule, concat, expected):
    found, lines = placed(CONCAT, rule, concat=concat)
    assert [node.name for node in found.graph if node.op == "quantize"] == expected
    sources = grid_sources(found.graph, found.shared)
    if concat == "shared":
        assert found.shared == {"Q:x": "Q:x", "Q:a": "Q:a", "Q:b.relu": "Q:a", "Q:c": "Q:c"}
        assert "cat = concat Q:b.relu p" in lines
        assert "p = max_pool Q:a" in lines
        assert "c = conv cat" in lines
        assert sources["cat"] in ("Q:a", "Q:b.relu")
    else:
        assert all(name == leader for name, leader in found.shared.items())
        assert sources["cat"] is None


def test_concatenations_that_overlap_share_one_grid():
    text = """
x = input
a = conv x
b = conv a
one = concat a b
c = conv one
two = concat one c
d = conv two
e = conv d
"""
    found, _ = placed(text, 3, concat="shared")
    assert {name for name, leader in found.shared.items() if leader == "Q:a"} == {"Q:a", "Q:b", "Q:c"}
    assert "Q:one" not in found.shared


KEEPS = """
x = input
a = conv x
p = max_pool a
f = flatten p
t = permute f
fc = linear t
last = linear fc
"""


@pytest.mark.parametrize("rule", [1, 2, 3])
def test_operations_that_keep_the_grid_get_no_quantiser(rule):
    _, lines = placed(KEEPS, rule)
    assert lines[3:8] == ["Q:a = quantize a", "p = max_pool Q:a", "f = flatten p", "t = permute f", "fc = linear t"]
    found, _ = placed(KEEPS, rule)
    assert grid_sources(found.graph, found.shared)["t"] == "Q:a"


def test_under_rule_1_a_pools_other_readers_stay_in_float():
    text = "x = input\na = conv x\np = max_pool a\nb = conv p\nsum = add b p\nc = conv sum\nd = conv c"
    _, lines = placed(text, 1)
    assert "p = max_pool a" in lines
    assert "b = conv Q:p" in lines
    assert "sum = add b p" in lines
    _, lines = placed(text, 2)
    assert "p = max_pool Q:a" in lines  # both readers want it
    assert "sum = add b p" in lines


def test_average_pools_keep_the_grid_where_the_profile_says_so():
    text = "x = input\na = conv x\nb = conv a\np = avg_pool b\nc = conv p\nd = conv c"
    found, _ = placed(text, 3)
    assert found.shared["Q:p"] == "Q:p"
    found, _ = placed(text, 3, pool_keeps=True)
    assert found.shared["Q:p"] == "Q:b"
    found, _ = placed(text.replace("c = conv p\nd = conv c", "d = linear p"), 3, pool_keeps=True)
    assert found.shared["Q:p"] == "Q:p"  # 4 bits before, 8 after it


@pytest.mark.parametrize("op", ["pad", "resize"])
def test_padding_with_zeros_and_repeating_keep_the_grid_and_the_width(op):
    text = f"x = input\np = {op} x\na = conv p\nq = {op} a\nb = conv q\nc = conv b"
    found, _ = placed(text, 3)
    assert {node.name: node.attributes["bits"] for node in found.graph if node.op == "quantize"} == {
        "Q:x": 8,
        "Q:p": 8,
        "Q:a": 4,
        "Q:q": 4,
        "Q:b": 8,
    }
    assert (found.shared["Q:p"], found.shared["Q:q"]) == ("Q:x", "Q:a")


def test_units_are_broken_where_the_profile_has_no_fusion():
    text = "x = input\na = conv x\na.bn = batch_norm a\nr = relu a.bn\nb = conv r\nc = conv b"
    assert list(quantisers(text, 3)) == ["Q:x", "Q:r", "Q:b"]
    assert list(quantisers(text, 3, relu_fusion=False)) == ["Q:x", "Q:a.bn", "Q:r", "Q:b"]
    assert fused(graph(text)) == {"a.bn", "r"}


def test_functions_between_layers_are_quantised_on_both_sides_under_rule_3():
    text = "x = input\na = conv x\ns = sigmoid a\nm = mul a s\nb = conv m\nn = layer_norm b\nc = linear n"
    assert list(quantisers(text, 3)) == ["Q:x", "Q:a", "Q:s", "Q:m", "Q:b", "Q:n"]
    assert list(quantisers(text, 1)) == ["Q:x", "Q:m", "Q:n"]


def test_constants_and_outputs_are_not_quantised():
    text = "k = constant\nx = input\na = conv x\nm = mul a k\nb = conv m\ny = sigmoid b"
    _, lines = placed(text, 3)
    assert "m = mul Q:a k" in lines
    found, _ = placed(text, 3)
    assert found.graph.outputs == ("y",)
    assert "Q:y" not in found.shared
    found, lines = placed(text, 3, outputs=("m", "y"))  # what is read and given is given in float
    assert found.graph.outputs == ("m", "y")
    assert "b = conv Q:m" in lines


def test_overrides_change_widths_by_pattern_and_the_last_counts():
    found, lines = placed(
        RESIDUAL,
        3,
        overrides={
            "?": {"weight_bits": 2},
            "b": {"weight_bits": 5, "act_bits": 6},
            "c": {"weight_bits": None, "act_bits": None},
            "fc": {"weight_bits": 3},
        },
    )
    assert found.weight_bits == {"a": 2, "b": 5, "c": None, "fc": 3}
    assert "c = conv b.relu" in lines
    assert "b = conv Q:a.relu@6" in lines
    assert "sum = add Q:c.bn Q:a.relu@4" in lines


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"fz": {"weight_bits": 4}}, "did you mean 'fc'"),
        ({"fc": {"weight": 4}}, "unknown key 'weight'"),
        ({"fc": {"weight_bits": 9}}, "2 to 8"),
        ({"fc": {"act_bits": "4"}}, "2 to 8"),
    ],
)
def test_overrides_that_would_be_ignored_are_refused(overrides, words):
    with pytest.raises(ProfileError, match=words):
        placed(RESIDUAL, 3, overrides=overrides)


def test_functions_without_a_place_are_refused_or_run_in_float_when_asked():
    text = "x = input\na = conv x\ns = call a\nb = conv s\nc = conv b"
    with pytest.raises(UnsupportedOpError, match="abs at s has no place in onnxruntime"):
        placed(text, 3)
    found = place(graph(text), profile(3), fallback="float")
    assert [node.name for node in found.graph] == ["x", "Q:x", "a", "s", "Q:s", "b", "Q:b", "c"]
    assert found.graph["s"].inputs == ("a",)
