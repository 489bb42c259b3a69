"""The moving picture of README.md: a drawn clip, its distracted twin, and what changes from frame to frame in both.

    python benchmarks/picture.py            -> docs/be.gif
"""

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from be.erase import ERASE
from be.synthetic import Spec, render

ROOT = Path(__file__).parent.parent
SIDE, GAP, TOP = 160, 6, 20
TITLES = ("the clip x", "one frame added: BE(x)", "x: change in time", "BE(x): change in time")


class Strongest:
    """Draws lam = gamma and the first frame, where a training draws at random."""

    def rand(self, *shape):
        return torch.ones(shape)

    def randint(self, high, *shape):
        return torch.zeros(shape, dtype=torch.long)


def main():
    spec = Spec(motion="orbit", scene="brown blobs", actor_seed=3, path_seed=4, camera_seed=0, scene_seed=0, frames=40,
                height=SIDE, width=SIDE, drift=0)
    x = torch.from_numpy(render(spec)[0][::2]).permute(3, 0, 1, 2)[None] / 255  # (1, 3, T, H, W)
    twin = ERASE["intra-video-frame"](x, Strongest(), 0.3)
    changes = [3 * (clip[:, :, 1:] - clip[:, :, :-1]).abs().clamp(max=1 / 3) for clip in (x, twin)]
    font, pictures = ImageFont.load_default(12), []
    for t in range(x.shape[2] - 1):
        page = Image.new("RGB", (4 * SIDE + 3 * GAP, SIDE + TOP), "white")
        for i, clip in enumerate((x, twin, *changes)):
            frame = Image.fromarray((255 * clip[0, :, t]).byte().permute(1, 2, 0).numpy())
            page.paste(frame, (i * (SIDE + GAP), TOP))
            ImageDraw.Draw(page).text((i * (SIDE + GAP) + 2, 3), TITLES[i], "black", font)
        pictures.append(page)
    palette = pictures[len(pictures) // 2].quantize(64)  # one for all, so that only what changes is stored
    pictures = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pictures]
    file = ROOT / "docs/be.gif"
    pictures[0].save(file, save_all=True, append_images=pictures[1:], duration=90, loop=0, optimize=True)


if __name__ == "__main__":
    main()
