"""Tables in files of their own: what is printed, and what pandas reads, say what the summary says."""

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup

from inrun_bench.experiments import EXPERIMENTS
from inrun_bench.report import tables_of
from inrun_bench.report.csv_tables import Number, numbers_in, table_csv
from inrun_bench.report.intervals import over_seeds
from inrun_bench.report.latex_tables import latex, latex_text
from inrun_bench.report.looks import look
from inrun_bench.report.markdown_tables import Table, blocks
from inrun_bench.report.table_files import write_tables
from inrun_bench.runs.store import Store

RESULTS = Path(__file__).parents[2] / "results"
FOLDERS = ("quick", "rivals", "sweeps")
LATEX = shutil.which("pdflatex") or shutil.which("tectonic")
MARKDOWN = (
    "Of 3 seeds: *a* & `b_c`\n\n"
    "| method | score | a / b |\n|:--|--:|--:|\n"
    "| x & y | 0.5 [0.4, 0.6], 1,234 s | 1.5 / 2 |\n"
    "| z_1 | 0.1 [-0.1, 0.3] (2 seeds), 7 s |  |\n"
    "| few | 2 definitions |  |\n"
    "| *ceiling* | 0.9 | 3 / 4e+02 |\n"
)


def tables(store):
    return [b for text in tables_of(store, EXPERIMENTS).values() for b in blocks(text) if isinstance(b, Table)]


@pytest.fixture(scope="module", params=FOLDERS)
def written(request, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("tables") / request.param)
    shutil.copytree(RESULTS / request.param / "rows", store.root / "rows", dirs_exist_ok=True)
    return store, write_tables(store, EXPERIMENTS, ["csv", "latex"])


def test_every_table_of_the_summary_has_a_file_in_each_format(written):
    store, paths = written
    assert len(paths) == 2 * len(tables(store))
    assert sorted(paths) == sorted((store.root / "tables").iterdir())
    assert len({path.stem for path in paths}) == len(tables(store))


def test_every_line_of_a_table_is_a_line_of_its_file(written):
    store, paths = written
    for table, csv, tex in zip(tables(store), paths[::2], paths[1::2], strict=True):
        frame, text = pd.read_csv(csv), tex.read_text()
        names = [line[0].html.striptags() for line in (*table.rows, *table.bounds)]
        assert frame.iloc[:, 0].tolist() == names
        assert text.count(r"\\") == 1 + len(names)
        if table.bounds:
            assert (frame["bound"] == "yes").sum() == len(table.bounds)
            assert all(r"\emph{" in line for line in text.splitlines()[-3 - len(table.bounds) : -3])


def test_latex_is_well_formed(written):
    """Braces and environments close, columns are as many as said, and nothing special is left as it was."""
    for text in (path.read_text() for path in written[1] if path.suffix == ".tex"):
        bare = re.sub(r"\\[{}$&#_%]", "", text)
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert not re.search(r"(?<!\\)[#_%]|<(?!\$)|(?<!\$)>", bare.replace(r"\label", "").replace("$<$", ""))
        assert text.isascii() or not set(text) & set("→×±≤≥−")
        (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
        body = text.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
        for line in (line for line in body.splitlines() if line.endswith(r"\\")):
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
        assert re.findall(r"\\begin\{(\w+)\}", text) == ["table", "tabular"]
        assert re.findall(r"\\end\{(\w+)\}", text) == ["tabular", "table"]


@pytest.mark.skipif(LATEX is None, reason="no LaTeX is installed")
def test_latex_compiles(written, tmp_path):
    inputs = "\n".join(f"\\input{{{path}}}\\clearpage" for path in written[1] if path.suffix == ".tex")
    document = tmp_path / "document.tex"
    document.write_text(
        f"\\documentclass{{article}}\\usepackage[utf8]{{inputenc}}\\usepackage{{booktabs}}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )
    subprocess.run([LATEX, document], cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)


def test_numbers_in_csv_are_those_of_the_rows():
    """Means, intervals and numbers of seeds, to the digits that are printed."""
    store = Store(RESULTS / "quick", create=False)
    (headline,) = (b for b in blocks(tables_of(store, EXPERIMENTS)["headline"]) if isinstance(b, Table))
    frame = pd.read_csv(pd.io.common.StringIO(table_csv(headline, headline.caption)), index_col=0)
    means = over_seeds(store.read_all("agreement"))
    looked_at = 0
    for task, method in itertools.product(("digits-mlp", "wine-logreg"), ("inrun-first", "knn", "random")):
        own, line = means.loc[(task, method, "spearman")], frame.loc[look(method).label]
        told = line[[task, f"{task} low", f"{task} high", f"{task} n"]].to_numpy(float)
        np.testing.assert_allclose(told, own[["mean", "low", "high", "n"]].to_numpy(float), atol=5.1e-4)
        looked_at += 1
    assert looked_at == 6
    assert pd.api.types.is_numeric_dtype(frame["digits-mlp 2 (s)"])


def test_what_belongs_to_a_number_stands_beside_it():
    (table,) = blocks(MARKDOWN)
    frame = pd.read_csv(pd.io.common.StringIO(table_csv(table, table.caption)), keep_default_na=False, dtype=str)
    assert frame.columns.tolist() == [
        *("method", "score", "score low", "score high", "score n", "score 2 (s)", "score note"),
        *("a / b", "a / b 2", "bound"),
    ]
    assert frame.iloc[:, 1:].to_numpy().tolist() == [
        ["0.5", "0.4", "0.6", "3", "1234", "", "1.5", "2", "no"],
        ["0.1", "-0.1", "0.3", "2", "7", "", "", "", "no"],
        ["", "", "", "", "", "2 definitions", "", "", "no"],
        ["0.9", "", "", "", "", "", "3", "400", "yes"],
    ]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0.834", [Number(0.834)]),
        ("-0.1 [-0.2, 0.0]", [Number(-0.1, -0.2, 0.0)]),
        ("0.834 [0.727, 0.902] (2 seeds), 3 s", [Number(0.834, 0.727, 0.902, 2), Number(3.0, unit="s")]),
        ("+0.166 [+0.1, +0.2] (3 of 4)", [Number(0.166, 0.1, 0.2, 4, 3)]),
        ("4.9 / 26.7 / 1.2e+02 MB", [Number(4.9), Number(26.7), Number(120.0, unit="MB")]),
        ("0.051 (0.097)", [Number(0.051), Number(0.097)]),
        ("12 %", [Number(12.0, unit="%")]),
        ("12,345", [Number(12345.0)]),
        ("", []),
        ("0-9", []),
        ("2 definitions", []),
        ("0.02 (recipe)", []),
        ("< 0.0001 %", []),
        ("gram 3, project 1", []),
    ],
)
def test_a_cell_is_read_as_numbers_or_as_words(text, numbers):
    assert numbers_in(text) == numbers


def test_a_latex_table_is_set_by_booktabs_with_its_bounds_apart_and_all_that_is_special_escaped():
    (table,) = blocks(MARKDOWN)
    assert latex(table, "tab:x", table.caption) == (
        "\\begin{table}\n  \\centering\n  \\small\n"
        "  \\caption{Of 3 seeds: \\emph{a} \\& \\texttt{b\\_c}}\n  \\label{tab:x}\n"
        "  \\begin{tabular}{lrr}\n    \\toprule\n    method & score & a / b \\\\\n    \\midrule\n"
        "    x \\& y & 0.5 {[}0.4, 0.6{]}, 1,234 s & 1.5 / 2 \\\\\n"
        "    z\\_1 & 0.1 {[}$-$0.1, 0.3{]} (2 seeds), 7 s &  \\\\\n"
        "    few & 2 definitions &  \\\\\n    \\midrule\n"
        "    \\emph{ceiling} & 0.9 & 3 / 4e+02 \\\\\n    \\bottomrule\n  \\end{tabular}\n\\end{table}\n"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("50 % of $5 #1 a_b {x} ~ ^", r"50 \% of \$5 \#1 a\_b \{x\} \textasciitilde{} \textasciicircum{}"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("a &lt; b &amp;&amp; c → d", r"a $<$ b \&\& c $\rightarrow$ d"),
        ("in-run -0.5 [-1, 2]", r"in-run $-$0.5 {[}$-$1, 2{]}"),
    ],
)
def test_nothing_in_a_name_is_a_command(text, told):
    assert latex_text(Markup(text)) == told  # noqa: S704 - of this test


def test_what_stands_above_several_tables_stands_above_each(tmp_path):
    store = Store(tmp_path / "groups")
    shutil.copytree(RESULTS / "groups" / "rows", store.root / "rows", dirs_exist_ok=True)
    paths = write_tables(store, EXPERIMENTS, ["latex"])
    assert len(paths) > 2
    assert all(r"\caption{\textbf{Groups}: players are groups" in path.read_text() for path in paths)
    assert len({re.search(r"\\label\{(.*)\}", path.read_text())[1] for path in paths}) == len(paths)


def test_files_of_tables_that_are_no_more_are_removed_and_those_of_other_formats_stay(tmp_path):
    store = Store(tmp_path / "results")
    (store.root / "tables").mkdir()
    for name in ("old.csv", "old.tex"):
        (store.root / "tables" / name).write_text("old")
    assert write_tables(store, EXPERIMENTS, ["csv"]) == []
    assert [path.name for path in (store.root / "tables").iterdir()] == ["old.tex"]
    with pytest.raises(ValueError, match=r"'cvs'.*'csv'"):
        write_tables(store, EXPERIMENTS, ["cvs"])
