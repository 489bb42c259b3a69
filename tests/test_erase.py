"""Erasing against slow transcriptions: loops over samples and frames, one number at a time."""

import math

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


def mix(x, lam, other):
    """One clip x (C, T, H, W); other(j) is what to mix into frame j."""
    return torch.stack([(1 - lam) * x[:, j] + lam * other(j) for j in range(T)], dim=1)


# The order of the draws is part of the definition: lam, then the partner, then the frame, then the rest.


def slow_none(x, draws):
    return x


def slow_intra(x, draws):
    lam, k = draws.rand(B) * GAMMA, draws.randint(T, B)
    return torch.stack([mix(x[i], lam[i].double(), lambda j, i=i: x[i, :, k[i]]) for i in range(B)])


def slow_batch_lam(x, draws):
    lam, k = draws.rand(B)[0] * GAMMA, draws.randint(T, B)
    return torch.stack([mix(x[i], lam.double(), lambda j, i=i: x[i, :, k[i]]) for i in range(B)])


def slow_inter(x, draws):
    lam, shift, k = draws.rand(B) * GAMMA, draws.randint(B - 1, B), draws.randint(T, B)
    rows = [(i + 1 + shift[i].item()) % B for i in range(B)]
    return torch.stack([mix(x[i], lam[i].double(), lambda j, i=i: x[rows[i], :, k[i]]) for i in range(B)])


def slow_noise(x, draws):
    lam, noise = draws.rand(B) * GAMMA, draws.randn(B, C, 1, H, W).double()
    return torch.stack([mix(x[i], lam[i].double(), lambda j, i=i: noise[i, :, 0]) for i in range(B)])


def slow_mixup(x, draws):
    lam, shift = draws.rand(B) * GAMMA, draws.randint(B - 1, B)
    rows = [(i + 1 + shift[i].item()) % B for i in range(B)]
    return torch.stack([mix(x[i], lam[i].double(), lambda j, i=i: x[rows[i], :, j]) for i in range(B)])


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
    "none": slow_none,
    "gaussian-noise": slow_noise,
    "video-mixup": slow_mixup,
    "video-cutmix": slow_cutmix,
    "inter-video-frame": slow_inter,
    "intra-video-frame": slow_intra,
    "intra-video-frame-batch-lam": slow_batch_lam,
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


@pytest.mark.parametrize("name", ["video-mixup", "video-cutmix"])
def test_the_other_two_change_the_motion(name):
    x = clips()
    before, after = x.diff(dim=2).flatten(1), ERASE[name](x, Draws(0, 1), GAMMA).diff(dim=2).flatten(1)
    assert (torch.cosine_similarity(before, after) < 0.999).any()


def recovered(n, name):
    """lam and k of n erased clips, read off their pixels: frame j of every clip is the one-hot vector e_j."""
    x = torch.eye(T).view(1, 1, T, 1, T).expand(n, 1, T, 1, T)
    out = ERASE[name](x, Draws(3, 0), GAMMA)[:, 0, :, 0]  # (n, T, T): (1 - lam) e_j + lam e_k
    share = (out.sum(dim=1) - 1) / T  # (n, T): lam e_k, less lam / T everywhere
    k = share.argmax(1)
    return share.amax(1) / (1 - 1 / T), k


def test_lam_is_uniform_up_to_gamma_and_k_over_the_frames():
    lam, k = recovered(4000, "intra-video-frame")
    assert lam.min() >= 0 and lam.max() <= GAMMA + 1e-6
    at = lam.sort().values / GAMMA
    gap = (at - torch.linspace(0, 1, len(at))).abs().max()
    assert gap < 1.63 / math.sqrt(len(at))  # Kolmogorov-Smirnov, 1 %
    expected = len(k) / T
    chi2 = ((torch.bincount(k, minlength=T) - expected) ** 2 / expected).sum()
    assert chi2 < 11.3  # 3 degrees of freedom, 1 %
    assert abs(torch.corrcoef(torch.stack([lam, k.float()]))[0, 1]) < 0.05  # drawn apart


def test_batch_lam_shares_lam_but_not_k():
    lam, k = recovered(64, "intra-video-frame-batch-lam")
    assert lam.max() - lam.min() < 1e-6 and len(k.unique()) == T


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


def test_cutmix_takes_the_share_lam_of_the_area():
    n, S = 64, 50
    x = torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1, 1).expand(n, 1, 2, S, S)
    taken = (ERASE["video-cutmix"](x, Draws(0, 0), GAMMA) != x).float().mean(dim=(1, 2, 3, 4))
    lam = Draws(0, 0).rand(n) * GAMMA
    # A box of side s pixels covers s - 1 to s + 1 pixel centres.
    assert ((taken - lam).abs() <= 2 * lam.sqrt() / S + 1 / S**2).all()
    assert abs(taken.mean() - lam.mean()) < 0.005


@pytest.mark.parametrize("name", BY_ROW)
def test_two_processes_erase_what_one_erases(name):
    x = clips(n=6)
    whole = ERASE[name](x, Draws(0, 0), GAMMA)
    halves = [ERASE[name](x[3 * r : 3 * r + 3], Draws(0, 0, rank=r, world=2), GAMMA) for r in (0, 1)]
    assert torch.equal(whole, torch.cat(halves))


def test_before_or_after_normalisation_is_the_same_but_for_noise():
    x = clips().abs()
    scale, shift = torch.tensor([2.0, 3.0, 4.0]).double().view(3, 1, 1, 1), 0.5
    for name in SLOW:
        late = ERASE[name](scale * x + shift, Draws(0, 0), GAMMA)
        early = scale * ERASE[name](x, Draws(0, 0), GAMMA) + shift
        assert torch.allclose(late, early, rtol=0, atol=1e-12) == (name != "gaussian-noise")
