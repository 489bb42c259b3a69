"""Background Erasing: add one static frame of a clip to every frame of it.

A frozen frame is background without motion. Mixed into every frame it makes the background of the clip unreliable and
leaves its motion in place. Draw one weight lam ~ U[0, gamma] and one frame k:

    x          a   b   c   d          the frames j of a clip
    k                  c              one of them, frozen
    x_hat      a'  b'  c'  d'         each is (1 - lam) itself + lam c

    Eq. 1      x_hat[j]      = (1 - lam) x[j] + lam x[k]
    Eq. 2      d x_hat / dt  = (1 - lam) dx / dt             the frozen frame has no derivative

Training pulls the features of x and x_hat together. The two clips share their motion, weakened by 1 - lam, but not
their background. So the features must rest on motion.

Erasing comes last, on the augmented, normalised clip. The order does not matter for mixes of frames, because
normalisation is affine. It does for `gaussian-noise`, whose unit variance is about that of normalised frames.

All functions take x: float (B, C, T, H, W), draws: the random numbers of the step (`augment.Draws`), gamma: in [0, 1],
and return a clip of the shape, type and memory layout of x, which is left as it was. Draws for a single clip do not
depend on the number of processes. "Another video" is another row of the *local* batch, which therefore needs two; that
choice, and `batch-lam`, do depend on it.
"""

import torch


def intra_video_frame(x, draws, gamma):
    """Background Erasing, Eq. 1: one lam and one frame k of the clip itself, per clip."""
    lam = draw_lam(x, draws, gamma)
    return torch.lerp(x, draw_frame(x, draws), lam)  # lerp(x, y, lam) = (1 - lam) x + lam y


def intra_video_frame_batch_lam(x, draws, gamma):
    """As released: a frame k per clip, but one lam for all of the local batch."""
    lam = draw_lam(x, draws, gamma)[:1]
    return torch.lerp(x, draw_frame(x, draws), lam)


def inter_video_frame(x, draws, gamma):
    """One frame of another video: the motion is kept, the static frame is foreign."""
    lam = draw_lam(x, draws, gamma)
    return torch.lerp(x, draw_frame(x, draws, draw_partner(x, draws)), lam)


def gaussian_noise(x, draws, gamma):
    """One frame of white noise of unit variance. The paper "adds" it; here it is mixed in, as a frame is."""
    B, C, _, H, W = x.shape
    lam = draw_lam(x, draws, gamma)
    return torch.lerp(x, draws.randn(B, C, 1, H, W).to(x.dtype), lam)


def video_mixup(x, draws, gamma):
    """Another video, frame by frame: x_hat[j] = (1 - lam) x[j] + lam y[j]. Its motion comes along."""
    lam = draw_lam(x, draws, gamma)
    return torch.lerp(x, x[draw_partner(x, draws)], lam)


def video_cutmix(x, draws, gamma):
    """A box of every frame gives way to the same box of one frame of another video. The box stays in place over the
    clip and inside the frame. It has the frame's aspect and, up to rounding, lam of its area, so that on average it is
    as strong as the others."""
    H, W = x.shape[-2:]
    side = draw_lam(x, draws, gamma).float().sqrt()  # (B, 1, 1, 1, 1), 1 = the side of the frame
    patch = draw_frame(x, draws, draw_partner(x, draws))  # (B, C, 1, H, W)
    top, left = (draws.rand(len(x), 2).view(-1, 2, 1, 1, 1, 1) * (1 - side[:, None])).unbind(1)
    row = ((torch.arange(H, device=x.device) + 0.5) / H)[:, None]  # (H, 1) pixel centres, in (0, 1)
    col = (torch.arange(W, device=x.device) + 0.5) / W  # (W,)
    box = (top <= row) & (row < top + side) & (left <= col) & (col < left + side)  # (B, 1, 1, H, W)
    return torch.where(box, patch, x)


def none(x, draws, gamma):
    """No distraction, Table 4's baseline: x itself, not a copy."""
    return x


def draw_lam(x, draws, gamma):
    """lam ~ U[0, gamma] for each clip. -> (B, 1, 1, 1, 1), of the type of x"""
    return (gamma * draws.rand(len(x))).to(x.dtype).view(-1, 1, 1, 1, 1)


def draw_frame(x, draws, row=None):
    """The frame k ~ U{0, .., T-1} of each clip, or of the clips x[row]. -> (B, C, 1, H, W)"""
    row = torch.arange(len(x), device=x.device) if row is None else row
    return x[row, :, draws.randint(x.shape[2], len(x))].unsqueeze(2)


def draw_partner(x, draws):
    """For each clip the row of another one, uniform over all others of the local batch. -> int64 (B,)"""
    B = len(x)
    if B < 2:
        raise ValueError(f"this erasing takes another video of the local batch, which holds only {B}")
    return (torch.arange(B, device=x.device) + 1 + draws.randint(B - 1, B)) % B


PARTNERED = ("video-mixup", "video-cutmix", "inter-video-frame")  # take another video of the local batch

# Table 4, and the released code's form of its last row.
ERASE = {
    "none": none,
    "gaussian-noise": gaussian_noise,
    "video-mixup": video_mixup,
    "video-cutmix": video_cutmix,
    "inter-video-frame": inter_video_frame,
    "intra-video-frame": intra_video_frame,
    "intra-video-frame-batch-lam": intra_video_frame_batch_lam,
}
