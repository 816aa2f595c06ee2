"""The order of a conversion whose source comes shard by shard."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from convert.schedule import schedule

ONE, TWO, THREE = Path("1"), Path("2"), Path("3")
SIZES = {ONE: 100, TWO: 200, THREE: 300}


def test_layers_that_straddle_two_shards_hold_two_shards() -> None:
    needs = {"head": [THREE], "a": [ONE], "b": [ONE, TWO], "c": [TWO], "d": [TWO, THREE]}
    made = schedule(needs, SIZES)
    assert [turn.name for turn in made.turns] == ["a", "b", "c", "d", "head"]
    assert [turn.fetch for turn in made.turns] == [(ONE,), (TWO,), (), (THREE,), ()]
    assert [turn.release for turn in made.turns] == [(), (ONE,), (), (TWO,), (THREE,)]
    assert made.held_bytes == 500


def test_a_parameter_of_distant_shards_is_counted() -> None:
    assert schedule({"a": [ONE], "b": [THREE, ONE], "c": [TWO]}, SIZES).held_bytes == 400


def test_a_parameter_without_a_source_needs_no_shard() -> None:
    made = schedule({"a": [ONE], "frequencies": []}, SIZES)
    assert [turn.name for turn in made.turns] == ["frequencies", "a"]
    assert made.held_bytes == 100


@given(
    st.dictionaries(
        st.text("abcdefgh", min_size=1, max_size=3),
        st.lists(st.sampled_from(list(SIZES)), max_size=4),
    )
)
def test_every_shard_is_held_while_it_is_needed_and_fetched_once(
    needs: dict[str, list[Path]],
) -> None:
    held: set[Path] = set()
    fetched: list[Path] = []
    most = 0
    made = schedule(needs, SIZES)
    for turn in made.turns:
        fetched += turn.fetch
        held |= set(turn.fetch)
        most = max(most, sum(SIZES[path] for path in held))
        assert set(needs[turn.name]) <= held
        held -= set(turn.release)
    assert not held
    assert sorted(turn.name for turn in made.turns) == sorted(needs)
    assert sorted(fetched) == sorted({path for paths in needs.values() for path in paths})
    assert most == made.held_bytes
