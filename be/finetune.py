"""Verb `finetune`: a pre-trained backbone under a new linear layer, all layers trained (paper 4.1)."""

import dataclasses

import torch

from be import datasets, objectives
from be.config import Config
from be.evaluate import accuracy, classify, load_backbone
from be.runs import Run, load_weights, make_accelerator, provenance, run_dir
from be.train import check_flip, describe, fit

HELD_OUT = 0.1  # of the training list, with select=holdout


def finetune(cfg: Config):
    """Loads the backbone of `cfg.pretrained` (self: this experiment's own, random), trains, saves.

    The last epoch is what is tested; or, with select=holdout, the one that is best on a tenth of the training list,
    whole source videos that are not trained on. The test list plays no part here.
    """
    accelerator = make_accelerator(cfg)
    samples = datasets.load(cfg.dataset, cfg.data, "train", cfg.split)
    check_flip(cfg, samples)
    run = Run(run_dir(cfg, "finetune"), cfg, write=accelerator.is_main_process)
    if (run.path / "model.safetensors").exists():
        accelerator.print(f"{run.path}: done already; remove the folder to run it again")
        return

    backbone = load_backbone(cfg)  # seeds the initial weights, the head's too; all later draws have seeds of their own
    options = {**dataclasses.asdict(cfg), "classes": len(samples.classes)}
    objective = objectives.build(cfg.method, backbone, options)
    about = {"experiment": cfg.name, "backbone": cfg.backbone, "width": cfg.width, "classes": samples.classes,
             **provenance(samples, accelerator)}
    best = None
    if cfg.select == "holdout":
        samples, held = datasets.holdout(samples, HELD_OUT, cfg.seed)
        best = Best(objective, held, cfg, run, accelerator, about)

    describe(accelerator, cfg, samples, "finetune")
    fit(objective, samples, cfg, run, accelerator, best)
    if best and run.write:
        about |= load_weights(run.path / "best.safetensors", objective)
        accelerator.print(f"epoch {about['epoch']} is the best: {about['holdout_top1']:.1f} % of {len(held)} held out")
    run.save_weights("backbone", objective.backbone, **about)
    run.save_weights("model", objective, **about)
    if run.write:
        (run.path / "best.safetensors").unlink(missing_ok=True)
    accelerator.print(f"model written to {run.path / 'model.safetensors'}")


class Best:
    """Tests `objective` on the list `held` after each epoch; best.safetensors holds the best one's weights."""

    def __init__(self, objective, held: datasets.Samples, cfg: Config, run: Run, accelerator, about: dict):
        self.objective, self.held, self.about = objective, held, about
        self.cfg, self.run, self.accelerator = cfg, run, accelerator

    def __call__(self, epoch: int) -> dict[str, float]:
        probabilities, ok = classify(self.objective, self.held, self.cfg, self.accelerator)
        top1 = accuracy(probabilities, torch.from_numpy(self.held.labels), ok)["top1"]
        before = [line["holdout_top1"] for line in self.run.metrics() if "holdout_top1" in line]
        if round(top1, 6) > max(before, default=-1):  # as rounded in the log; of equals, the first
            self.run.save_weights("best", self.objective, **self.about, epoch=epoch, holdout_top1=top1)
        return {"holdout_top1": top1}
