"""Erasing against slow transcriptions: loops over samples and frames, one number at a time."""

import math
from functools import partial

import pytest
import torch

from be.augment import Draws
from be.erase import ERASE

B, C, T, H, W = 5, 3, 4, 6, 8
GAMMA = 0.3
BY_ROW = ["gaussian-noise", "intra-video-frame"]  # draw nothing that depends on the other rows
NEED_PARTNER = ["video-mixup", "video-cutmix", "inter-video-frame"]


def clips(dtype=torch.float64, n=B):
    return torch.randn(n, C, T, H, W, generator=torch.Generator().manual_seed(1), dtype=dtype)


# The order of the draws is part of the definition: lam, then the partner, then the frame, then the rest.


def slow_mix(x, draws, partner=False, frame=True, noise=False, one_lam=False):
    """Eq. 1. Mixed in is one frame, or the frame of the same number, of the clip itself or a partner; or noise."""
    lam = draws.rand(B) * GAMMA
    shift = draws.randint(B - 1, B) if partner else torch.full((B,), -1)
    k = draws.randint(T, B) if frame else None
    static = draws.randn(B, C, 1, H, W).double() if noise else None
    out = []
    for i in range(B):
        row = (i + 1 + shift[i].item()) % B

        def other(j, i=i, row=row):
            return static[i, :, 0] if noise else x[row, :, k[i] if frame else j]

        w = lam[0 if one_lam else i].double()
        out.append(torch.stack([(1 - w) * x[i, :, j] + w * other(j) for j in range(T)], dim=1))
    return torch.stack(out)


def slow_cutmix(x, draws):
    lam, shift, k = draws.rand(B) * GAMMA, draws.randint(B - 1, B), draws.randint(T, B)
    corner = draws.rand(B, 2)
    out = x.clone()
    for i in range(B):
        side = math.sqrt(lam[i].item())
        top, left = (c.item() * (1 - side) for c in corner[i])
        for row in range(H):
            for col in range(W):
                if top <= (row + 0.5) / H < top + side and left <= (col + 0.5) / W < left + side:
                    for j in range(T):
                        out[i, :, j, row, col] = x[(i + 1 + shift[i].item()) % B, :, k[i], row, col]
    return out


SLOW = {
    "none": lambda x, draws: x,
    "gaussian-noise": partial(slow_mix, frame=False, noise=True),
    "video-mixup": partial(slow_mix, partner=True, frame=False),
    "video-cutmix": slow_cutmix,
    "inter-video-frame": partial(slow_mix, partner=True),
    "intra-video-frame": slow_mix,
    "intra-video-frame-batch-lam": partial(slow_mix, one_lam=True),
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("step", range(4))
def test_is_the_slow_transcription(name, step):
    x = clips()
    before = x.clone()
    fast = ERASE[name](x, Draws(0, step), GAMMA)
    torch.testing.assert_close(fast, SLOW[name](x, Draws(0, step)), rtol=0, atol=1e-12)
    assert torch.equal(x, before)  # out of place
    assert name == "none" or not torch.equal(fast, x)


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_type_shape_and_layout(name, dtype):
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        x = clips(dtype).contiguous(memory_format=layout)
        out = ERASE[name](x, Draws(0, 0), GAMMA)
        assert out.dtype == dtype and out.shape == x.shape and out.stride() == x.stride()
        exact = SLOW[name](x.double(), Draws(0, 0))
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-6 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize("name", SLOW)
def test_gamma_zero_is_the_identity(name):
    x = clips(torch.float32)
    assert torch.equal(ERASE[name](x, Draws(0, 0), 0.0), x)


@pytest.mark.parametrize("name", ["gaussian-noise", "inter-video-frame", "intra-video-frame"])
def test_time_derivative_is_scaled_by_one_minus_lam(name):
    """Eq. 2, and the reason given under Table 4 for why these three help and the other two do not."""
    x = clips()
    lam = (Draws(0, 0).rand(B) * GAMMA).double().view(B, 1, 1, 1, 1)
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        out = ERASE[name](x.to(dtype), Draws(0, 0), GAMMA).double()
        torch.testing.assert_close(out.diff(dim=2), (1 - lam) * x.diff(dim=2), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NEED_PARTNER)
def test_the_partner_is_any_other_row_and_never_the_own(name):
    n, seen = 4, torch.zeros(4, 4)
    x = torch.eye(n).view(n, n, 1, 1, 1).expand(n, n, 2, 16, 16).contiguous()  # channel c is lit in clip c
    for step in range(30):
        seen += ERASE[name](x, Draws(0, step), 1.0).sum(dim=(2, 3, 4)) > 1e-6
    assert (seen > 0).all()  # everyone met everyone
    assert ((seen * (1 - torch.eye(n))).sum(1) <= 30).all()  # one partner at a time


@pytest.mark.parametrize("name", NEED_PARTNER)
def test_a_batch_of_one_has_no_other_video(name):
    with pytest.raises(ValueError, match="holds only 1"):
        ERASE[name](clips(n=1), Draws(0, 0), GAMMA)


@pytest.mark.parametrize("name", BY_ROW)
def test_two_processes_erase_what_one_erases(name):
    x = clips(n=6)
    whole = ERASE[name](x, Draws(0, 0), GAMMA)
    halves = [ERASE[name](x[3 * r : 3 * r + 3], Draws(0, 0, rank=r, world=2), GAMMA) for r in (0, 1)]
    assert torch.equal(whole, torch.cat(halves))
