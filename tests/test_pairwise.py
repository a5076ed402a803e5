"""The helper that thins products out: no pair is lost, and next to nothing is tried twice."""

from itertools import combinations, product

import pytest
from pairwise import cover, pairwise

FACTORS = [
    (range(7), range(8), range(3)),
    (["a", "b", "c"], [[1], {}, (2,)], [None, 0, False]),  # values need no hash and may be equal to each other
    (range(5), range(4), range(2), range(3)),
    (range(4), range(3)),
    ({"key": 1, "other": 2}, "ab", [7]),
]


@pytest.mark.parametrize("factors", FACTORS, ids=str)
def test_every_pair_occurs_in_few_cases(factors):
    factors = [list(factor) for factor in factors]
    chosen = cover(*factors)
    assert all(case in list(product(*factors)) for case in chosen)
    for (i, one), (j, other) in combinations(enumerate(factors), 2):
        for pair in product(one, other):
            assert pair in [(case[i], case[j]) for case in chosen]
    sizes = sorted(map(len, factors))
    assert len(chosen) <= 1.25 * sizes[-1] * sizes[-2]
    assert cover(*factors) == chosen


@pytest.mark.parametrize("factors", FACTORS, ids=str)
def test_every_value_occurs_in_as_many_cases_as_the_longest_factor_has(factors):
    chosen = cover(*factors, together=1)
    assert len(chosen) == max(map(len, factors))
    for place, factor in enumerate(factors):
        assert all(value in [case[place] for case in chosen] for value in factor)


def test_what_is_left_out_is_marked_slow():
    cases = pairwise(range(5), range(4), range(3))
    assert [case.values for case in cases] == list(product(range(5), range(4), range(3)))
    default = [case.values for case in cases if not case.marks]
    assert default == cover(range(5), range(4), range(3))
    assert {mark.name for case in cases for mark in case.marks} == {"slow"}
