"""Fewer cases than a full product: every pair of values occurs, the other combinations are marked `slow`."""

from collections.abc import Iterable
from itertools import combinations, product

import pytest


def cover(*factors: Iterable) -> list[tuple]:
    """Some of the product of all factors, in its order, in which every two values of two factors occur together.

    Greedy and the same every time: the next one is the first of those that add the most pairs.
    """
    sizes = [range(len(factor)) for factor in map(list, factors)]
    places = list(product(*sizes))
    pairs_of = {place: set(combinations(enumerate(place), 2)) for place in places}
    missing, chosen = set().union(*pairs_of.values()), set()
    while missing:
        best = max(places, key=lambda place: len(pairs_of[place] & missing))
        chosen.add(best)
        missing -= pairs_of[best]
    factors = [list(factor) for factor in factors]
    return [tuple(map(list.__getitem__, factors, place)) for place in places if place in chosen]


def pairwise(*factors: Iterable) -> list:
    """The full product as values for `parametrize`, of which the default run takes those of `cover`.

    A factor that is a dict stands for its keys. `make` leaves out what is marked; `pytest -m slow` runs it.
    """
    chosen = cover(*factors)
    cases = product(*factors)
    return [pytest.param(*case, marks=() if case in chosen else pytest.mark.slow) for case in cases]
