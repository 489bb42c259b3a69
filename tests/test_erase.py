import pytest
import torch

from be.augment import Draws
from be.erase import ERASE


@pytest.mark.parametrize("name", ERASE)
def test_gamma_zero_is_identity_and_input_is_kept(name):
    x = torch.randn(4, 3, 5, 8, 10)
    before = x.clone()
    assert torch.equal(ERASE[name](x, Draws(0, 0), 0.0), x)
    ERASE[name](x, Draws(0, 0), 0.3)
    assert torch.equal(x, before)
