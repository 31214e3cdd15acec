"""The cost model decides by its predictions alone, so these are what is tested; nothing here looks at a clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from geopurify_core.purification.update import cost
from geopurify_core.purification.update.steps import STEPS

SIZES = {
    "published": cost.Size(100_000, 512, 512, 9, 128, 96, 18),
    "narrow": cost.Size(100_000, 384, 64, 9, 128, 96, 18),
    "shallow": cost.Size(20_000, 384, 64, 5, 64, 32, 19),
}
SHARES = [i / 40 for i in range(41)]


def layer_rows(size: cost.Size, share: float) -> list[int]:
    """A halo that shrinks by a tenth of the changed part at each layer."""
    rows = share * size.rows
    return [min(size.rows, round(rows * (1 + 0.1 * (size.layers - layer)))) for layer in range(size.layers)]


def choices(size: cost.Size) -> dict[str, list[bool]]:
    """For each step, whether the partial way is taken at each share of dirty rows."""
    steps, columns = size.steps, size.channels
    full = {
        "student": cost.student_full(size),
        "neighbors": cost.neighbors_full(size),
        "affinity": cost.affinity_full(size),
        "pooling": cost.pooling_full(size, columns),
    }
    found: dict[str, list[bool]] = {name: [] for name in full}
    for share in SHARES:
        rows = round(share * size.rows)
        part = {
            "student": cost.student_partial(size, layer_rows(size, share)),
            "neighbors": cost.neighbors_partial(size, rows),
            "affinity": cost.affinity_partial(size, rows),
            "pooling": cost.pooling_partial(size, columns, rows * steps),
        }
        for name, seconds in part.items():
            found[name].append(cost.is_worthwhile(seconds, full[name]))
    return found


@pytest.mark.parametrize("name", SIZES)
def test_partial_for_few_dirty_rows_full_for_all_and_one_switch_between(name: str) -> None:
    for step, taken in choices(SIZES[name]).items():
        assert taken[0], step
        assert taken[2], step  # one row in twenty
        assert not taken[-1], step
        assert taken == sorted(taken, reverse=True), step


@pytest.mark.parametrize("name", SIZES)
def test_predictions_grow_with_the_work(name: str) -> None:
    size = SIZES[name]
    rows = [round(share * size.rows) for share in SHARES]
    for series in (
        [cost.student_partial(size, layer_rows(size, share)) for share in SHARES],
        [cost.neighbors_partial(size, n) for n in rows],
        [cost.affinity_partial(size, n) for n in rows],
        [cost.pooling_partial(size, size.channels, n * size.steps) for n in rows],
        [cost.pooling_full(size, columns) for columns in (1, 32, 64, 512)],
        [cost.student_full(replace(size, hidden=hidden)) for hidden in (32, 64, 128, 512)],
        [sum(cost.full_run(replace(size, rows=n), size.channels).values()) for n in (1, 1000, 100_000)],
    ):
        assert series == sorted(series) and series[0] < series[-1]


def test_never_the_way_that_is_predicted_to_be_slower() -> None:
    assert cost.is_worthwhile(1.0, 2.0)
    assert not cost.is_worthwhile(2.0, 1.0)
    assert not cost.is_worthwhile(1.0, 1.0)


@pytest.mark.parametrize("texts", [1, 8, 32])
@pytest.mark.parametrize("share", SHARES)
def test_scores_of_few_texts_are_pooled_anew_whatever_has_changed(texts: int, share: float) -> None:
    size = SIZES["published"]
    row_steps = round(share * size.rows) * size.steps
    assert not cost.is_worthwhile(cost.scores_partial(size, texts, row_steps), cost.pooling_prepared(size, texts))


def test_all_channels_are_worth_the_walk() -> None:
    size = SIZES["published"]
    row_steps = round(0.4 * size.rows) * size.steps
    assert cost.is_worthwhile(cost.pooling_partial(size, 512, row_steps), cost.pooling_full(size, 512))


def test_a_change_of_half_a_metre_is_predicted_below_a_third_of_everything() -> None:
    """Rows as measured in a 100 000 voxel room: 16 % of the student's work, 13 % of the affinity, 36 % of pooling."""
    size = SIZES["published"]
    halo = [round(size.rows * (0.21 - 0.013 * layer)) for layer in range(9)]
    partial = (
        cost.student_partial(size, halo)
        + cost.neighbors_partial(size, 2000)
        + cost.affinity_partial(size, 13_000)
        + cost.pooling_sketch(size)
        + cost.pooling_partial(size, 512, round(0.37 * size.rows) * size.steps)
    )
    assert partial < 0.3 * sum(cost.full_run(size, 512).values())


def test_a_full_run_names_every_step() -> None:
    assert set(cost.full_run(SIZES["narrow"], 384)) == set(STEPS)


def test_nothing_costs_nothing() -> None:
    assert cost.student_partial(SIZES["narrow"], []) == 0.0
    assert cost.student_partial(SIZES["narrow"], [0] * 9) == 0.0
