"""Fewer cases than a full product: every pair of values occurs, the other combinations are marked `slow`."""

from collections.abc import Iterable
from itertools import combinations, product

import pytest


def cover(*factors: Iterable, together: int = 2) -> list[tuple]:
    """Some of the product of all factors, in its order, in which every two values of two factors occur together.

    Greedy and the same every time: the next one is the first of those that add the most.

    Args:
        factors: the values of each; a dict stands for its keys.
        together: of how many factors the values are to meet; 1 lets every value occur.
    """
    values = [list(factor) for factor in factors]
    places = list(product(*(range(len(of_factor)) for of_factor in values)))
    meetings = {place: set(combinations(enumerate(place), together)) for place in places}
    missing, chosen = set().union(*meetings.values()), set()
    while missing:
        best = max(places, key=lambda place: len(meetings[place] & missing))
        chosen.add(best)
        missing -= meetings[best]
    return [tuple(map(list.__getitem__, values, place)) for place in places if place in chosen]


def pairwise(*factors: Iterable, together: int = 2) -> list:
    """The full product as values for `parametrize`, of which the default run takes those of `cover`.

    `make test` leaves out what is marked; `pytest -m slow` runs it.
    """
    chosen = cover(*factors, together=together)
    return [pytest.param(*case, marks=() if case in chosen else pytest.mark.slow) for case in product(*factors)]
