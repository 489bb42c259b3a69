"""Networks without training: BatchNorms that are not the identity, classifiers for verbs that look at finished runs."""

import torch
from conftest import TINY
from torch import nn
from videos import decode

from be import backbones, config, datasets, objectives
from be.augment import eval_view
from be.evaluate import fit
from be.runs import Run
from be.video import even_clips


def awake(network, seed=0):
    """Eval mode, with BatchNorms that are not the identity they start as."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.eval().modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return network


def hara_names(state):
    """Our R3D's state dict under Hara's names, part by part."""
    out = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "stem":
            parts = [("conv1", "bn1")[int(parts[1])], parts[2]]
        elif parts[2].startswith("conv"):  # layer, block, convN, place in it, what
            parts = [*parts[:2], (parts[2], f"bn{parts[2][-1]}")[int(parts[3])], parts[4]]
        out[".".join(parts)] = tensor
    return out


def tuned(tiny, out, seed=0, knows=None, **more):
    """A run directory: a random backbone, and a head that knows a label of the swapped list by heart.

    knows: samples -> label (N,); by default the class. Returns path, config, model.
    """
    words = [*TINY, f"data={tiny}", f"out={out}", f"seed={seed}", *(f"{k}={v}" for k, v in more.items())]
    cfg = config.load("demo-random", words, "finetune")
    torch.manual_seed(seed)
    model = objectives.Classify(backbones.build("c3d", 4), 8, pool=cfg.pool, frames=cfg.frames, stride=cfg.stride)
    samples = datasets.load("ucf101", tiny, "swapped", 1)
    with torch.no_grad():
        z = torch.cat([model.eval().backbone(clips(samples, i)[0]).mean((2, 3, 4)) for i in range(len(samples))])
    label = knows(samples) if knows else torch.from_numpy(samples.labels)
    model.head.weight.data, model.head.bias.data = fit(z, label.repeat_interleave(3), 8, 1e-4)
    run = Run(config.run_dir(cfg, "finetune"), cfg)
    classes = datasets.load("ucf101", tiny, "test", 1).classes
    run.save_weights("model", model, classes=classes, experiment=cfg.name)
    run.save_weights("backbone", model.backbone)
    run.close()
    return run.path, cfg, model


def clips(samples, i, K=3):
    """What a network is shown of a video in the test: (K, 3, 8, 16, 16), and which frames that is (K, 8)."""
    frames = even_clips(24, K=K, T=8, stride=2)
    stored = torch.from_numpy(decode(samples.path(i), frames, 24))
    return eval_view(stored, torch.tensor(stored.shape[2:4]).expand(K, 2), 16), frames
