"""Verb `finetune`: a pre-trained backbone under a new linear layer, all layers trained (paper 4.1)."""

import dataclasses

import torch

from be import backbones, datasets, objectives
from be.config import Config
from be.runs import Run, load_weights, make_accelerator, run_dir
from be.train import describe, fit


def finetune(cfg: Config):
    """Loads the backbone of `cfg.pretrained` (null: this experiment's own, none: random init), trains, saves.

    The last epoch is what is tested; the test list plays no part here.
    """
    accelerator = make_accelerator(cfg)
    samples = datasets.load(cfg.dataset, cfg.data, "train", cfg.split)
    run = Run(run_dir(cfg, "finetune"), cfg, write=accelerator.is_main_process)
    if (run.path / "model.safetensors").exists():
        accelerator.print(f"{run.path}: done already; remove the folder to run it again")
        return

    torch.manual_seed(cfg.seed)  # of the initial weights; all later draws have seeds of their own
    backbone = backbones.build(cfg.backbone, cfg.width)
    if cfg.pretrained == "none":
        accelerator.print("backbone from random initialisation")
    else:
        load_weights(run_dir(cfg, "pretrain", cfg.pretrained) / "backbone.safetensors", backbone)
    options = {**dataclasses.asdict(cfg), "classes": len(samples.classes)}
    objective = objectives.build(cfg.method, backbone, options)

    describe(accelerator, cfg, samples, "finetune")
    fit(objective, samples, cfg, run, accelerator)
    about = {"experiment": cfg.name, "backbone": cfg.backbone, "width": cfg.width, "classes": samples.classes}
    run.save_weights("backbone", objective.backbone, **about)
    run.save_weights("model", objective, **about)
    accelerator.print(f"model written to {run.path / 'model.safetensors'}")
