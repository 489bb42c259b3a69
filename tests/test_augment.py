"""Views against plain slicing, a slow sampler and torchvision; draws against their contract."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF

from be.augment import Draws, ViewParams, apply_view, crop, denormalise, draw_view, eval_view, normalise, recolour

ALL = dict(scale=(0.3, 1.0), flip=0.5, rotate=10.0, jitter=(0.5, 0.5, 0.25, 0.5))  # everything on


def noise_clips(B=3, T=4, H=24, W=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (B, T, H, W, 3), dtype=torch.uint8, generator=generator)


def full_size(clips):
    return torch.tensor([clips.shape[2:4]] * len(clips))


def address_clips(B, H, W):
    """One frame a clip, whose red is the row and whose green is the column of the pixel."""
    clips = torch.zeros(B, 1, H, W, 3, dtype=torch.uint8)
    clips[..., 0] = torch.arange(H).view(H, 1)
    clips[..., 1] = torch.arange(W)
    return clips


def params(position=(0.5, 0.5), flip=False, angle=0.0, colour=(1, 1, 1, 0)):
    position, angle, colour = (torch.tensor([v], dtype=torch.float32) for v in (position, angle, colour))
    return ViewParams(position, None, torch.tensor([flip]), angle, colour)


def pixels(view):
    """Undo the normalisation: (B, 3, T, S, S) -> float (B, T, S, S, 3) in 0..255"""
    return denormalise(view).permute(0, 2, 3, 4, 1) * 255


# ---- geometry ----


@pytest.mark.parametrize("H, W", [(24, 32), (25, 31), (31, 16), (16, 16)])
def test_eval_view_is_the_centre_slice_pixel_for_pixel(H, W):
    S, clips = 16, noise_clips(H=35, W=37)  # frames of H x W in the corner, the rest is padding
    view = eval_view(clips, torch.tensor([[H, W]] * 3), S)
    top, left = (H - S + 1) // 2, (W - S + 1) // 2
    assert view.shape == (3, 3, 4, S, S) and view.dtype == torch.float32 and view.is_contiguous()
    assert (pixels(view) - pixels(view).round()).abs().max() < 0.01
    assert torch.equal(pixels(view).round().byte(), clips[:, :, top : top + S, left : left + S])


def test_random_crops_are_slices_uniform_over_all_places():
    B, H, W, S = 2000, 20, 19, 16
    clips = address_clips(B, H, W)
    view = pixels(apply_view(clips, full_size(clips), draw_view(Draws(0, 0), B), S)).round().byte()
    start = view[:, 0, 0, 0, :2].long()  # (B, 2) row and column of the first pixel
    whole = torch.arange(S)
    assert torch.equal(view[:, 0, :, 0, 0].long(), start[:, :1] + whole)
    assert torch.equal(view[:, 0, 0, :, 1].long(), start[:, 1:] + whole)
    places = (H - S + 1) * (W - S + 1)
    seen = torch.bincount(start[:, 0] * (W - S + 1) + start[:, 1], minlength=places)
    assert ((seen - B / places) ** 2 / (B / places)).sum() < 36.2  # chi-square, 19 degrees of freedom, 1 %


@pytest.mark.parametrize("position", [0.0, 1 - 2**-24])
def test_the_outermost_windows_stay_inside(position):
    clips = address_clips(1, 33, 48)
    view = pixels(apply_view(clips, full_size(clips), params(position=(position, position)), 16)).round()
    first = (0, 0) if position == 0 else (33 - 16, 48 - 16)
    assert tuple(view[0, 0, 0, 0, :2].tolist()) == first
    assert tuple(view[0, 0, -1, -1, :2].tolist()) == (first[0] + 15, first[1] + 15)


def slow_sample(frame, start, side, angle, S):
    """Bilinear sampling of a rotated square window, pixel by pixel. frame: (H, W, 3) floats."""
    H, W, _ = frame.shape
    out = np.zeros((S, S, 3))
    theta = math.radians(angle)
    for i in range(S):
        for j in range(S):
            # Offset from the centre of the window; y points down. The picture turns by +angle to the
            # eye, so that the pixel shown here lay at the offset turned by -angle.
            right, up = ((j + 0.5) / S - 0.5) * side, -((i + 0.5) / S - 0.5) * side
            right, up = (
                right * math.cos(-theta) - up * math.sin(-theta),
                right * math.sin(-theta) + up * math.cos(-theta),
            )
            y = min(max(start[0] + side / 2 - up, 0.5), H - 0.5) - 0.5  # 0 = centre of the first pixel
            x = min(max(start[1] + side / 2 + right, 0.5), W - 0.5) - 0.5
            y0, x0 = min(int(y), H - 2), min(int(x), W - 2)
            a, b = y - y0, x - x0
            out[i, j] = (1 - a) * ((1 - b) * frame[y0, x0] + b * frame[y0, x0 + 1])
            out[i, j] += a * ((1 - b) * frame[y0 + 1, x0] + b * frame[y0 + 1, x0 + 1])
    return out


@pytest.mark.parametrize("resized", [False, True])
def test_crop_flip_and_rotation_against_a_slow_sampler(resized):
    clips, S = noise_clips(B=6, T=2), 12
    size = torch.tensor([[24, 32], [14, 32], [24, 13], [24, 32], [20, 20], [9, 11]])
    drawn = draw_view(Draws(5, 0), 6, scale=(0.2, 1.0) if resized else None, flip=0.5, rotate=40.0)
    got = pixels(apply_view(clips, size, drawn, S))
    assert 0 < drawn.flip.sum() < 6
    for b, (H, W) in enumerate(size.tolist()):
        side = round(math.sqrt(drawn.area[b].item()) * min(H, W)) if resized else min(S, H, W)
        top, left = drawn.position[b].tolist()
        start = math.floor(top * (H - side + 1)), math.floor(left * (W - side + 1))
        for t in range(2):
            want = slow_sample(clips[b, t, :H, :W].double().numpy(), start, side, drawn.angle[b].item(), S)
            want = want[:, ::-1] if drawn.flip[b] else want
            np.testing.assert_allclose(got[b, t].numpy(), want, rtol=0, atol=0.02)


def test_eval_view_scales_frames_below_S_up():
    clips, size, S = noise_clips(T=1), torch.tensor([[24, 11], [13, 32], [7, 9]]), 16
    for got, clip, (H, W) in zip(pixels(eval_view(clips, size, S)), clips, size.tolist(), strict=True):
        side = min(H, W)
        start = (H - side + 1) // 2, (W - side + 1) // 2
        want = slow_sample(clip[0, :H, :W].double().numpy(), start, side, 0.0, S)
        np.testing.assert_allclose(got[0].numpy(), want, rtol=0, atol=0.02)


@pytest.mark.parametrize("angle", [-10.0, 7.0])
def test_rotation_is_torchvisions(angle):
    clips = noise_clips(B=1, T=2, H=40, W=48)
    frames = clips[0].permute(0, 3, 1, 2).float()  # (T, 3, H, W)
    want = TF.center_crop(TF.rotate(frames, angle, interpolation=TF.InterpolationMode.BILINEAR), [20, 20])
    got = pixels(apply_view(clips, full_size(clips), params(angle=angle), 20))[0].permute(0, 3, 1, 2)
    torch.testing.assert_close(got, want, rtol=0, atol=0.1)


def test_padding_is_never_read():
    black, size = noise_clips(B=64, T=1), torch.tensor([[17, 19]] * 64)
    inside = torch.zeros(24, 32, 1, dtype=torch.bool)
    inside[:17, :19] = True
    white = torch.where(inside, black // 2, 255)
    black = torch.where(inside, black // 2, 0)
    drawn = draw_view(Draws(0, 0), 64, scale=(0.2, 1.0), flip=0.5, rotate=45.0)
    for look in (lambda clips: apply_view(clips, size, drawn, 16), lambda clips: eval_view(clips, size, 24)):
        assert torch.equal(look(black), look(white))
        assert pixels(look(white)).max() < 128


# ---- colour ----


def picture(low=0.0, high=1.0, B=2):
    return low + (high - low) * torch.rand(B, 3, 1, 9, 9, generator=torch.Generator().manual_seed(2))


def change(x, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0):
    return recolour(x, torch.tensor([[brightness, contrast, saturation, hue]]).expand(len(x), 4))


@pytest.mark.parametrize("op", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.5])
def test_each_factor_is_torchvisions(op, factor):
    x = picture()
    want = getattr(TF, f"adjust_{op}")(x[:, :, 0], factor)
    torch.testing.assert_close(change(x, **{op: factor})[:, :, 0], want, rtol=0, atol=1e-3)


def test_factors_compose_in_order_while_nothing_clamps():
    x = picture(0.4, 0.6)
    want = TF.adjust_saturation(TF.adjust_contrast(TF.adjust_brightness(x[:, :, 0], 1.3), 0.7), 1.4)
    torch.testing.assert_close(change(x, 1.3, 0.7, 1.4)[:, :, 0], want, rtol=0, atol=1e-3)
    torch.testing.assert_close(change(change(x, 1.3, 0.7, 1.4), hue=0.1), change(x, 1.3, 0.7, 1.4, 0.1))


def test_hue_turns_about_the_grey_axis():
    x = picture(0.4, 0.6)
    torch.testing.assert_close(change(x, hue=1 / 3)[:, [1, 2, 0]], x)  # red to green to blue to red
    torch.testing.assert_close(change(change(x, hue=0.2), hue=-0.2), x)
    grey = picture()[:, :1].expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(change(grey, saturation=1.7, hue=0.37), grey)
    red = torch.tensor([0.5, 0.3, 0.3]).view(1, 3, 1, 1, 1)
    small = change(red, hue=0.02)  # towards yellow, as in HSV
    assert small[0, 1] > small[0, 2]


def test_contrast_is_about_the_mean_of_the_clip():
    x = torch.cat([picture(0.2, 0.4), picture(0.6, 0.8)], dim=2)  # (B, 3, 2, 9, 9), a dark and a bright frame
    weights = torch.tensor([0.299, 0.587, 0.114])
    mean = (x.mean(dim=(2, 3, 4)) * weights).sum(1).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(change(x, contrast=0.5), (x + mean) / 2)


# ---- a clip is augmented as one ----


def test_one_augmentation_for_all_frames_another_for_each_clip():
    still = noise_clips(B=1, T=1).expand(6, 5, -1, -1, -1)
    view = apply_view(still, full_size(still), draw_view(Draws(0, 0), 6, **ALL), 16)
    assert torch.equal(view, view[:, :, :1].expand_as(view))
    for i in range(6):
        for j in range(i):
            assert (view[i] - view[j]).abs().mean() > 0.1


def test_views_are_out_of_place_contiguous_and_whole_precision_under_autocast():
    clips = noise_clips()
    before, drawn = clips.clone(), draw_view(Draws(0, 0), 3, **ALL)
    view = apply_view(clips, full_size(clips), drawn, 16)
    assert torch.equal(clips, before)
    assert view.shape == (3, 3, 4, 16, 16) and view.dtype == torch.float32 and view.is_contiguous()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(apply_view(clips, full_size(clips), drawn, 16), view, rtol=0, atol=1e-6)


def test_two_processes_see_the_views_one_sees():
    clips = noise_clips(B=6)
    whole = apply_view(clips, full_size(clips), draw_view(Draws(0, 3), 6, **ALL, jitter_ops="one"), 16)
    for rank in (0, 1):
        part = clips[3 * rank : 3 * rank + 3]
        drawn = draw_view(Draws(0, 3, rank, world=2), 3, **ALL, jitter_ops="one")
        view = apply_view(part, full_size(part), drawn, 16)
        torch.testing.assert_close(view, whole[3 * rank : 3 * rank + 3], rtol=0, atol=1e-6)


# ---- what is drawn ----


def test_ranges_of_the_parameters():
    drawn = draw_view(Draws(0, 0), 4000, scale=(0.2, 0.9), flip=0.25, rotate=10.0, jitter=(0.5, 1.5, 0.25, 0.1))
    assert abs(drawn.flip.float().mean() - 0.25) < 0.03
    table = [
        (drawn.position[:, 0], 0, 1),
        (drawn.position[:, 1], 0, 1),
        (drawn.area, 0.2, 0.9),
        (drawn.angle, -10, 10),
        (drawn.colour[:, 0], 0.5, 1.5),
        (drawn.colour[:, 1], 0, 2.5),  # no factor below 0
        (drawn.colour[:, 2], 0.75, 1.25),
        (drawn.colour[:, 3], -0.1, 0.1),
    ]
    for values, low, high in table:
        at = (values.sort().values - low) / (high - low)
        assert at[0] >= -1e-6 and at[-1] <= 1 + 1e-6
        assert (at - torch.linspace(0, 1, 4000)).abs().max() < 2.2 / math.sqrt(4000)  # Kolmogorov, 1e-4
    together = torch.corrcoef(torch.stack([values for values, _, _ in table]))
    assert (together - torch.eye(8)).abs().max() < 0.06  # drawn apart


def test_jitter_of_one_op_chooses_each_as_often():
    drawn = draw_view(Draws(0, 0), 4000, jitter=(0.5, 0.5, 0.25, 0.5), jitter_ops="one")
    changed = (drawn.colour - torch.tensor([1.0, 1, 1, 0])).abs() > 0
    assert (changed.sum(1) <= 1).all()
    count = changed.sum(0).float()
    assert ((count - 1000) ** 2 / 1000).sum() < 11.3  # chi-square, 3 degrees of freedom, 1 %
    assert (drawn.position != draw_view(Draws(0, 0), 4000).position).sum() == 0  # options do not shift draws


def test_defaults_are_a_plain_crop():
    drawn = draw_view(Draws(0, 0), 5)
    assert torch.equal(drawn.colour, torch.tensor([[1.0, 1, 1, 0]]).expand(5, 4))
    assert drawn.area is None and not drawn.flip.any() and (drawn.angle == 0).all()


def test_wrong_clips_are_named():
    for clips in (noise_clips().float(), noise_clips()[0], noise_clips().permute(0, 4, 1, 2, 3)):
        with pytest.raises(ValueError, match="uint8"):
            crop(clips, torch.tensor([[24, 32]]), *(torch.zeros(1, 2), torch.ones(1), torch.zeros(1)), 16)


# ---- normalisation ----


def test_normalisation_is_torchvisions_and_has_an_inverse():
    x = torch.rand(2, 3, 4, 5, 6)
    want = TF.normalize(x.transpose(1, 2), mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    torch.testing.assert_close(normalise(x).transpose(1, 2), want)
    torch.testing.assert_close(denormalise(normalise(x)), x)
    torch.testing.assert_close(normalise(x)[:, :, 0], normalise(x[:, :, 0]))  # pictures as well


# ---- Draws ----

CALLS = {
    "rand": lambda d, n: d.rand(n, 2),
    "randn": lambda d, n: d.randn(n, 3, 2),
    "randint": lambda d, n: d.randint(1000, n),
    "dropout": lambda d, n: d.dropout(torch.ones(n, 7), 0.5),
}


@pytest.mark.parametrize("name", CALLS)
def test_draws_are_a_function_of_seed_and_step_alone(name):
    call = CALLS[name]
    draws = Draws(1, 2)
    first, second = call(draws, 8), call(draws, 8)
    assert not torch.equal(first, second)
    again = Draws(1, 2)
    assert torch.equal(first, call(again, 8)) and torch.equal(second, call(again, 8))
    for seed, step in ((1, 3), (2, 2), (2, 1), (12, 0)):
        assert not torch.equal(first, call(Draws(seed, step), 8))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_out_the_rows_of_the_global_batch(name, world):
    call, n = CALLS[name], 8 // world
    one, many = Draws(1, 2), [Draws(1, 2, rank, world) for rank in range(world)]
    for _ in range(3):
        assert torch.equal(call(one, 8), torch.cat([call(draws, n) for draws in many]))
        permutations = [draws.randperm(n) for draws in many] + [one.randperm(8)]
        assert all(torch.equal(p, permutations[0]) for p in permutations)
        assert sorted(permutations[0].tolist()) == list(range(8))


def test_distributions():
    draws = Draws(0, 0)
    u, z, i = draws.rand(20000), draws.randn(20000), draws.randint(5, 20000)
    assert u.dtype == z.dtype == torch.float32 and i.dtype == torch.int64
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.003
    assert abs(z.mean()) < 0.03 and abs(z.var() - 1) < 0.04 and abs((z**4).mean() - 3) < 0.3
    assert ((torch.bincount(i, minlength=5) - 4000.0) ** 2 / 4000).sum() < 13.3 and i.max() == 4


def test_dropout():
    x = torch.randn(100, 200, requires_grad=True)
    out = Draws(0, 0).dropout(x, 0.3)
    kept = out != 0
    assert abs(kept.float().mean() - 0.7) < 0.01
    torch.testing.assert_close(out, torch.where(kept, x / 0.7, torch.zeros(())))
    out.sum().backward()
    torch.testing.assert_close(x.grad, kept.float() / 0.7)
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(Draws(0, 0).dropout(x, 0.0), x)
    assert Draws(0, 0).dropout(x.bfloat16(), 0.3).dtype == torch.bfloat16


def test_draws_are_not_those_of_the_loader():
    """The loader seeds numpy by (seed, epoch, index), of which numpy takes (3, 4, 0) for (3, 4)."""
    loader = np.random.default_rng((3, 4, 0)).random(8, dtype=np.float32)
    assert not np.array_equal(Draws(3, 4).rand(8).numpy(), loader)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_draws_and_shows_what_the_cpu_does():
    assert torch.equal(Draws(0, 0, device="cuda").randn(8, 5).cpu(), Draws(0, 0).randn(8, 5))
    clips = noise_clips()
    size = full_size(clips)
    want = apply_view(clips, size, draw_view(Draws(0, 0), 3, **ALL), 16)
    got = apply_view(clips.cuda(), size.cuda(), draw_view(Draws(0, 0, device="cuda"), 3, **ALL), 16)
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=1e-3)


def test_framed_as_keeps_angle_and_colours_and_takes_the_window():
    """What the hard negative is seen under with `a1`."""
    one, other = (draw_view(Draws(0, step), 5, **ALL) for step in (0, 1))
    mixed = one.framed_as(other)
    for name in ("position", "area", "flip"):
        assert torch.equal(getattr(mixed, name), getattr(other, name))
    for name in ("angle", "colour"):
        assert torch.equal(getattr(mixed, name), getattr(one, name))
