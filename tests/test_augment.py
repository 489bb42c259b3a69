import torch

from be.augment import denormalise, eval_view


def test_eval_view_is_the_centre_crop():
    clips = torch.randint(0, 256, (2, 3, 20, 30, 3), dtype=torch.uint8)
    size = torch.tensor([[20, 30], [20, 30]])
    x = denormalise(eval_view(clips, size, 16))
    assert torch.allclose(x * 255, clips[:, :, 2:18, 7:23].permute(0, 4, 1, 2, 3).float(), atol=0.01)
