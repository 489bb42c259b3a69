"""Verb `finetune`: a pre-trained backbone under a new linear layer, all layers trained (paper 4.1)."""

import dataclasses

from be import datasets, objectives
from be.config import Config
from be.evaluate import load_backbone
from be.runs import Run, make_accelerator, run_dir
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

    backbone = load_backbone(cfg)  # seeds the initial weights, the head's too; all later draws have seeds of their own
    options = {**dataclasses.asdict(cfg), "classes": len(samples.classes)}
    objective = objectives.build(cfg.method, backbone, options)

    describe(accelerator, cfg, samples, "finetune")
    fit(objective, samples, cfg, run, accelerator)
    about = {"experiment": cfg.name, "backbone": cfg.backbone, "width": cfg.width, "classes": samples.classes}
    run.save_weights("backbone", objective.backbone, **about)
    run.save_weights("model", objective, **about)
    accelerator.print(f"model written to {run.path / 'model.safetensors'}")
