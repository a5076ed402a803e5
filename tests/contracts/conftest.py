"""What every contract test of a model is given."""

import pytest
import torch
from contracts.families import FAMILIES


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield
