"""The whole record: every number in it, finite, with its count, and a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from smalti.eval.protocol import Protocol, flat, read_result, write_result
from smalti.eval.tables import markdown
from smalti.eval.tokens.entropy import Conditional
from smalti.eval.tokens.statistics import ESTIMATORS, TokenStatistics, statistics_table
from smalti.eval.tokens.stream import TokenStream


def record(shape: tuple[int, ...], size: int, order: str = "raster", seed: int = 0) -> TokenStatistics:
    ids = np.random.default_rng(0).integers(0, size, shape)
    return TokenStatistics.of(TokenStream.of(ids, size, order), seed)


def test_every_part_states_its_count():
    tree = record((120, 4, 4), 16).to_dict()
    assert (tree["size"], tree["images"], tree["tokens"]) == (16, 120, 1920)
    parts = [tree[name] for name in ("usage", "entropy", "zipf", "growth", "compression", "ngrams", "grammar")]
    for name in ("conditional", "information", "ngram_zipf"):
        parts += tree[name].values()
    assert all("count" in part for part in parts)
    assert tree["usage"]["count"] == tree["entropy"]["count"] == tree["zipf"]["count"] == 1920
    assert {name.split(".")[0] for name in ESTIMATORS} <= set(tree)


@pytest.mark.parametrize(("shape", "size"), [((2, 1), 1), ((2, 1), 5), ((3, 2, 1), 2**40), ((2, 2, 2), 3)])
def test_the_smallest_streams_give_finite_numbers(shape, size, tmp_path):
    tree = record(shape, size).to_dict()
    about = Protocol(task="token-statistics", dataset="d", dataset_hash="0", count=2, dtype="float32", seed=0)
    write_result(tmp_path / "tokens.json", {"streams": {"code": tree}}, about)
    assert flat(read_result(tmp_path / "tokens.json").scores) == flat({"streams": {"code": tree}})


def test_the_seed_decides():
    one, same, other = (record((40, 16), 8, seed=seed).to_dict() for seed in (0, 0, 1))
    assert one == same
    assert one["zipf"] != other["zipf"]


def test_one_row_per_stream():
    table = statistics_table([record((120, 4, 4), 16, "hilbert"), record((6, 3), 4096)])
    first, second = (dict(zip(table.head, row, strict=True)) for row in table.rows)
    assert (first["K"], first["tokens"], first["used (uniform)"]) == ("16", "1,920", "100.0% (100.0%)")
    assert first["H1 bits"] == "4.00"
    assert second["H1 bits"].startswith(">= ")
    assert second["types after 100"] == ""
    assert markdown(table).count("\n") == 3


def test_neighbours_tell_no_less_than_nothing():
    one = replace(record((6, 3), 8), conditional={"previous": Conditional(12, 2.0, 1.9, 2.0, 0.0)})
    (row,) = statistics_table([one]).rows
    assert row[6] == "0.00"
    assert one.to_dict()["conditional"]["previous"]["gain"] == pytest.approx(-0.1)
