"""Methods look different, any number of them, in colour, without colour vision and in grey."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from inrun_bench.methods import METHODS, method_of
from inrun_bench.report import looks
from inrun_bench.report.looks import FAMILIES, OTHERS, in_order, look, showing
from inrun_bench.report.markdown import markdown
from inrun_bench.report.markdown_tables import Table, blocks

KNOWN = [*METHODS, *(name for labels in OTHERS.values() for name in labels)]
STRANGERS = [f"mine-{number}" for number in range(30)]
DEUTERANOPIA = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])  # Machado et al. 2009


def linear(color):
    c = np.array(to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lightness(rgb):
    """CIE L* of linear RGB, 0 to 100."""
    y = float(np.clip(rgb, 0, 1) @ [0.2126, 0.7152, 0.0722])
    return 116 * np.cbrt(y) - 16 if y > 0.008856 else 903.3 * y


def test_no_two_methods_have_one_marker_however_many_there_are():
    with showing([*KNOWN, *STRANGERS]):
        markers = [look(method).marker for method in (*KNOWN, *STRANGERS)]
    strangers = markers[len(KNOWN) :]
    assert len(set(markers[: len(KNOWN)])) == len(KNOWN)
    assert len(set(strangers)) == len(STRANGERS)
    assert not set(strangers) & set(markers[: len(KNOWN)])


@given(st.text("|*_`\\\\ ax-1.", min_size=1).map(str.strip).filter(bool))
@example("MC | 10")
@example("*mine*")
@example("no_-x-_a_")
@example("`x`\\\\")
def test_a_label_of_any_characters_is_a_cell_of_a_table_and_read_as_it_is(label):
    cell = dataclasses.replace(look("knn"), label=label).markdown
    (table,) = blocks(markdown([[cell, "0.5"]], ["method", "score"]))
    assert isinstance(table, Table)
    assert not table.bounds
    ((name, score),) = table.rows
    assert (name.html.striptags(), score.number) == (" ".join(label.split()), 0.5)


@pytest.mark.parametrize("seen", [lambda c: c, lambda c: DEUTERANOPIA @ c], ids=["in grey", "deuteranopia"])
def test_bars_of_a_family_are_told_apart_by_lightness_or_hatch(seen):
    for family in FAMILIES:
        members = [m for m in METHODS if method_of(m).family == family] + list(OTHERS.get(family, ()))
        for one, other in itertools.combinations(map(look, members), 2):
            apart = abs(lightness(seen(linear(one.color))) - lightness(seen(linear(other.color))))
            assert apart > 2 or one.hatch != other.hatch, (one, other)


def test_a_method_that_nobody_knows_looks_the_same_wherever_it_stands_among_the_same():
    with showing(STRANGERS):
        forward = [look(method) for method in STRANGERS]
    with showing(STRANGERS[::-1]):
        assert [look(method) for method in STRANGERS] == forward
    assert not looks._unknown


def test_methods_are_in_the_order_of_their_families():
    order = in_order([*STRANGERS, *METHODS, "reference"])
    assert order[0] == "reference"
    families = [method_of(m).family for m in order if m in METHODS]
    assert families == sorted(families, key=list(FAMILIES).index)
    assert order[-len(STRANGERS) :] == sorted(STRANGERS)
