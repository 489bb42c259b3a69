"""Background Erasing: add one static frame of a clip to every frame of it.

A static frame is background with no motion. Mixed into every frame, it makes the background of the
clip unreliable and leaves its motion as it was. Draw one weight lam ~ U[0, gamma] and one frame k:

    x          a  b  c  d           the frames j of a clip
    k = 2            c              one of them, frozen
    x_hat      a' b' c' d'          j' = (1 - lam) j + lam c

    Eq. 1      x_hat[j]       = (1 - lam) x[j] + lam x[k]
    Eq. 2      d x_hat / dt   = (1 - lam) dx / dt             the frame k has no derivative

Training then pulls the features of x and x_hat together, which a model can do only by looking at
what the two share: the motion.

Where erasing happens: last, on the augmented and normalised clip. For a convex mix of frames this
equals erasing before normalisation, because normalisation is affine and the weights sum to one.
`gaussian-noise` is the exception: its unit variance is that of the normalised space, where an
ImageNet pixel has about unit variance too, so lam means the same strength as it does for a frame.
"""

import torch


def none(x, draws, gamma):
    """The baseline without distraction: x itself."""
    return x


def gaussian_noise(x, draws, gamma):
    """One white-noise frame of unit variance, the same on every frame of the clip."""
    B, C, _, H, W = x.shape
    noise = draws.randn(B, C, 1, H, W).to(x.dtype)  # (B, C, 1, H, W)
    return torch.lerp(x, noise, weight(x, draws, gamma))


def video_mixup(x, draws, gamma):
    """Another video, frame by frame: x_hat[j] = (1 - lam) x[j] + lam y[j]. Its motion comes along."""
    return torch.lerp(x, x[partner(x, draws)], weight(x, draws, gamma))


def video_cutmix(x, draws, gamma):
    """A box of every frame is replaced by the same box of one frame of another video.

    The box keeps its place over the clip and lies inside the frame. It takes the share lam of the
    area with the aspect of the frame, so that as much of the clip is lost as in the other variants.
    """
    H, W = x.shape[-2:]
    patch = frame(x, partner(x, draws), draws)  # (B, C, 1, H, W)
    side = weight(x, draws, gamma).sqrt()  # of the box, as a share of the side of the frame
    y0, x0 = draws.rand(len(x), 2)[:, :, None, None, None, None].unbind(1)  # (B, 1, 1, 1, 1)
    y0, x0 = y0 * (1 - side), x0 * (1 - side)
    row = ((torch.arange(H, device=x.device) + 0.5) / H)[:, None]  # (H, 1) centres of the pixels, in [0, 1]
    col = (torch.arange(W, device=x.device) + 0.5) / W  # (W,)
    box = (row >= y0) & (row < y0 + side) & (col >= x0) & (col < x0 + side)  # (B, 1, 1, H, W)
    return torch.where(box, patch, x)


def inter_video_frame(x, draws, gamma):
    """One static frame of another video: the motion is kept, but the frame is not the own background."""
    return torch.lerp(x, frame(x, partner(x, draws), draws), weight(x, draws, gamma))


def intra_video_frame(x, draws, gamma):
    """Background Erasing (Eq. 1): one static frame of the clip itself."""
    own = torch.arange(len(x), device=x.device)
    return torch.lerp(x, frame(x, own, draws), weight(x, draws, gamma))


def intra_video_frame_batch_lam(x, draws, gamma):
    """Background Erasing as released: one lam for the whole (local) batch, a frame k per clip."""
    own = torch.arange(len(x), device=x.device)
    return torch.lerp(x, frame(x, own, draws), weight(x, draws, gamma)[:1])


def weight(x, draws, gamma):
    """lam ~ U[0, gamma], one per clip. -> (B, 1, 1, 1, 1) of the type of x"""
    return (gamma * draws.rand(len(x))).to(x.dtype)[:, None, None, None, None]


def frame(x, row, draws):
    """One random frame of the clips x[row], k ~ U{0..T-1} for each. -> (B, C, 1, H, W)"""
    k = draws.randint(x.shape[2], len(x))
    return x[row, :, k].unsqueeze(2)


def partner(x, draws):
    """For each clip the row of another one of the local batch, uniform over the others. -> (B,)"""
    B = len(x)
    if B < 2:
        raise ValueError(f"this way of erasing needs another video in the batch, but the batch holds {B}")
    return (torch.arange(B, device=x.device) + 1 + draws.randint(B - 1, B)) % B


# The rows of Table 4, and the released code's way with lam. Each is fn(x, draws, gamma) -> x_hat.
ERASE = {
    "none": none,
    "gaussian-noise": gaussian_noise,
    "video-mixup": video_mixup,
    "video-cutmix": video_cutmix,
    "inter-video-frame": inter_video_frame,
    "intra-video-frame": intra_video_frame,
    "intra-video-frame-batch-lam": intra_video_frame_batch_lam,
}
