"""Calls that take turns."""

import pytest

from inrun_bench.runs.timing import FEWEST_ROUNDS, quartiles, take_turns, wall_seconds


def test_each_round_starts_with_another_and_rounds_are_in_the_order_of_calls():
    made = []
    calls = {name: lambda name=name: made.append(name) for name in "abc"}
    rounds = take_turns(calls, 3, wall_seconds)
    assert [list(one) for one in rounds] == [["a", "b", "c"]] * 3
    assert made == list("abcbcacab")


def test_some_take_part_seldom_and_each_may_have_a_clock_of_its_own():
    made = []
    calls = {name: lambda name=name: made.append(name) for name in "ab"}
    clocks = {"a": lambda call: wall_seconds(call, 3), "b": lambda call: call() or 7.0}
    rounds = take_turns(calls, 4, clocks, takes_part=lambda name, number: name == "a" or number % 2 == 0)
    assert made.count("a") == 12
    assert [one.get("b") for one in rounds] == [7.0, None, 7.0, None]


def test_what_fails_is_raised_or_takes_no_more_part():
    def broken():
        raise MemoryError("too much")

    calls, told, begun = {"broken": broken, "good": lambda: None}, [], []
    with pytest.raises(MemoryError):
        take_turns(calls, 2, wall_seconds)
    rounds = take_turns(calls, 3, wall_seconds, before=begun.append, failed=lambda *said: told.append(said))
    assert told == [("broken", "MemoryError: too much")]
    assert [list(one) for one in rounds] == [["good"]] * 3
    assert begun == ["broken", "good", "good", "good"]


def test_no_round_begins_after_the_budget_but_for_the_first_ones():
    assert len(take_turns({"a": lambda: None}, 50, wall_seconds, budget=0.0)) == FEWEST_ROUNDS


def test_quartiles_are_those_of_the_numbers():
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == {"value": 3.0, "low": 2.0, "high": 4.0}
