"""Rehearsals: any experiment on a laptop (`synthetic=true`), and a GPU's work on a GPU that is not there."""

import json
import math
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from conftest import TINY, latest
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from be import analysis, backbones, bias, config, datasets, evaluate, objectives, retrieve, runs, train
from be.augment import Draws, apply_view, draw_view, eval_view
from be.runs import read_metrics

METHODS = {
    "moco": "demo-moco-be",
    "rotnet": "table1-rotnet-be",
    "puzzles": "table1-puzzles-be",
    "clip_order": "table1-clip-order-be",
    "simclr": "more-simclr-be",
    "byol": "more-byol-be",
    "triplet": "more-triplet-be",
    "pace": "more-pace-be",
    "arrow_of_time": "more-arrow-of-time-be",
    "order_verification": "more-order-verification-be",
}


def load(name, tiny, out, stage="pretrain"):
    return config.load(name, [*TINY, "synthetic=true", f"data={tiny}", f"out={out}", "epochs=1"], stage)


@pytest.mark.parametrize("method, name", METHODS.items())
def test_all_stages(tiny, tmp_path, method, name):
    """Every method: pretrain -> finetune -> 10-clip test."""
    cfg = load(name, tiny, tmp_path)
    assert cfg.method == method and cfg.erase != "none"
    train.pretrain(cfg)
    lines = read_metrics(tmp_path / name / "pretrain-seed0")
    assert len(lines) == 4 and all(math.isfinite(line["loss"]) for line in lines)
    assert {"be", "positive"} & lines[0].keys()  # the stats of the method, with BE in it

    train.finetune(load(name, tiny, tmp_path, "finetune"))
    evaluate.evaluate(load(name, tiny, tmp_path, "finetune"))
    path = tmp_path / name / "finetune-ucf101-split1-seed0"
    result = json.loads((path / "result-test.json").read_text())
    assert result["n_scored"] == result["n_expected"] == 16 and 0 <= result["top1"] <= 100


# ---- on a GPU that is not there: tensors that say they lie on one and have no numbers. docs/GPU.md is for a real one

GPU = torch.device("cuda", 0)
BACKBONES = ("c3d", "r3d18", "r3d34", "r3d18tv", "r2plus1d18", "i3d", "s3d")
ERASERS = ("none", "gaussian-noise", "video-mixup", "video-cutmix", "inter-video-frame", "intra-video-frame-batch-lam")
STEPS = [*(f"method={name}" for name in ("classify", *METHODS)), *(f"erase={name}" for name in ERASERS),
         *(f"backbone={name} method=classify bn_group=0" for name in BACKBONES[1:]), "erase_side=both", "accumulate=2",
         "hard_negative_encoder=query", "recipe=strong", "optimizer=adamw"]
COPIES = ("_to_copy", "copy_", "lift_fresh")
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount")  # the host does, of them


def on_gpu(x) -> bool:
    return x.device.type == "cuda"


class Watch(TorchDispatchMode):
    """Every operator has a kernel for CUDA; none makes the host wait, unless `waits`, or works on a clip on the CPU.

    Where the host reads a number of the device, it gets 1; where it asks what is not 0, it is the first element.
    """

    def __init__(self, waits: bool = False):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name == "_pin_memory":
            return args[0]
        if func.namespace == "prim":  # a question about the tensor
            return func(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        gpu = any(map(on_gpu, given))
        masked = name.startswith(("index", "_index")) and any(x.dtype == torch.bool for x in given[1:])
        if gpu and (name in READS or masked):
            self.wait(name)
            if name == "_local_scalar_dense":
                return 1.0 if args[0].is_floating_point() else 1
            if name == "nonzero":
                return args[0].new_zeros(1, args[0].dim(), dtype=torch.long)
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if not isinstance(x, torch.Tensor):
                continue
            moved = any(on_gpu(y) != on_gpu(x) for y in given) and name in COPIES
            if moved and not (on_gpu(x) and (kwargs.get("non_blocking") or args[2:3] == (True,))):
                self.wait(f"{name} to {x.device}")
            if not (on_gpu(x) or name in COPIES or self.waits) and x.is_floating_point() and x.numel() > 2000:
                raise AssertionError(f"{name} is computed on the CPU")
        if gpu and torch.backends.cuda.is_built():
            assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(func.name(), "CUDA"), f"{func} is for CPUs"
        return out

    def wait(self, what):
        if not self.waits:
            raise AssertionError(f"the host waits for the device: {what}")


@pytest.fixture
def gpu(monkeypatch):
    """An accelerator of a GPU that is not there, in bf16. In `with gpu.fake:` tensors have no numbers."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", device_placement=False)
    for state in (AcceleratorState, PartialState):
        monkeypatch.setitem(state._shared_state, "device", GPU)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    accelerator.fake = FakeTensorMode(allow_non_fake_inputs=True)
    yield accelerator
    monkeypatch.undo()  # or it would put the device back into a state that is none
    AcceleratorState._reset_state(True)


def to_gpu(module, *_):
    """In place, as `module.to` does it: a tensor that is neither a parameter nor a buffer stays where it is."""
    moved = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, old in tensors.items():
                if id(old) not in moved and old is not None:
                    new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=GPU)
                    moved[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                tensors[name] = moved.get(id(old))
    return module


def backward(loss):
    """Gradients node by node. Autograd's own engine would ask the driver of the device for its streams."""
    order, stack, seen = [], [(loss.grad_fn, False)], set()
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack += [(node, True), *((below, False) for below, _ in node.next_functions if below)]
    found = {loss.grad_fn: {0: torch.ones_like(loss)}}
    with torch.no_grad():
        for node in reversed(order):
            given = found.pop(node, {})
            if hasattr(node, "variable") and given:  # a leaf; a second part of the batch adds to the first
                leaf = node.variable
                leaf.grad = given[0] if leaf.grad is None else leaf.grad + given[0]
            elif given:
                back = node(*map(given.get, range(len(node._input_metadata))))
                back = back if isinstance(back, tuple) else (back,)
                for (below, place), gradient in zip(node.next_functions, back, strict=True):
                    if below and gradient is not None:
                        sums, like = found.setdefault(below, {}), below._input_metadata[place]
                        gradient = gradient.sum_to_size(like.shape).to(like.dtype)
                        sums[place] = gradient + sums[place] if place in sums else gradient


def test_backward_node_by_node_is_autograds():
    torch.manual_seed(0)
    model = objectives.build("moco", backbones.build("r3d18", 2), dict(frames=4, stride=1, K=6, bn_group=2))
    views = [torch.randn(4, 3, 4, 16, 16) for _ in model.views]
    loss, _ = model(views, None, torch.arange(4), Draws(0, 0))
    learned = [p for p in model.parameters() if p.requires_grad]
    want = torch.autograd.grad(loss, learned, retain_graph=True)
    backward(loss)
    for p, gradient in zip(learned, want, strict=True):
        torch.testing.assert_close(p.grad, gradient)


@pytest.mark.parametrize("waits", [
    lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: bool(x.any()),
    lambda x: x + torch.tensor([1.0], device=GPU), lambda x: x[[0, 1]], lambda x: torch.zeros(2).to(GPU),
    lambda x: x.unique(), lambda x: x.copy_(torch.ones(3)), lambda x: torch.ones(3).copy_(x),
    lambda x: torch.randn(50, 50) * torch.randn(50)])
def test_what_makes_the_host_wait_is_seen(gpu, waits):
    with gpu.fake:
        x = torch.ones(3, device=GPU)
        with pytest.raises(AssertionError, match="the host waits|is computed on the CPU"), Watch():
            waits(x)
        with Watch():
            assert on_gpu(x + torch.arange(3, device=GPU) + torch.ones(3).to(GPU, non_blocking=True))


@pytest.mark.parametrize("words", STEPS)
def test_a_quiet_step_does_not_wait_for_the_gpu(gpu, monkeypatch, words):
    """Views, forward, backward and optimizer, as `train.fit` calls them."""
    cfg = config.load("demo-moco-be", latest(*TINY, "precision=bf16", *words.split()))
    objective = objectives.build(cfg.method, backbones.build(cfg.backbone, cfg.width), {**asdict(cfg), "classes": 8})
    K, T = objective.sampler(99, np.random.default_rng(0)).shape
    clips, size = torch.zeros(8 // cfg.accumulate, K, T, 24, 30, 3, dtype=torch.uint8), torch.tensor([[24, 30]])
    index = torch.arange(len(clips))
    batch = datasets.Batch(clips, size.repeat(len(clips), 1), index, index, None, *np.zeros((2, len(clips))))
    monkeypatch.setattr(train, "place", to_gpu)
    monkeypatch.setattr(train, "check_same", lambda *_: None)
    run = SimpleNamespace(latest=lambda: None, forget_metrics_after=lambda step: None)
    runs.place(objective, torch.device("cpu"), cfg.precision)
    with gpu.fake:
        state = train.State(objective.train(), range(32), cfg, run, gpu)
        with Watch():
            stats = state.advance(iter([batch] * cfg.accumulate))
    assert len(state.losses) == cfg.accumulate and all(on_gpu(x) for x in (*state.losses, *stats.values()))
    first, *_ = (module for module in objective.backbone.modules() if isinstance(module, nn.Conv3d))
    assert first.weight.is_contiguous(memory_format=torch.channels_last_3d)
    moments = [x for of in state.optimizer.state.values() for x in of.values() if isinstance(x, torch.Tensor)]
    assert moments and all(on_gpu(x) or x.dim() == 0 for x in moments)


def moved(x):
    """Tensors, and what holds some, on the GPU."""
    if isinstance(x, bias.Shot):
        return replace(x, **{field.name: moved(getattr(x, field.name)) for field in fields(x)})
    if isinstance(x, dict):
        return {key: moved(value) for key, value in x.items()}
    return tuple(map(moved, x)) if isinstance(x, tuple) else x.to(GPU) if isinstance(x, torch.Tensor) else x


@pytest.fixture
def each_video(gpu, monkeypatch):
    """What a verb computes of each video, it computes of clips on that GPU, and then gets 0.3. -> the shapes of it"""
    shapes = {}
    here = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1, is_main_process=False)

    def each_video(compute, samples, sampler, cfg, accelerator, what, look=evaluate.views):
        i, x = next(look(samples, sampler, cfg, here, what))
        with torch.no_grad(), gpu.fake, Watch(waits=True), accelerator.autocast():
            row = compute(moved(x), i)
            assert on_gpu(row)
        shapes[what] = tuple(row.shape)
        yield from [torch.full(row.shape, 0.3, dtype=row.dtype)] * len(samples)

    for module in (evaluate, retrieve):
        monkeypatch.setattr(module, "each_video", each_video)
    # numpy draws one of some frames: the first
    monkeypatch.setattr(FakeTensor, "__array__", lambda x, *_, **__: np.zeros(x.shape, int), raising=False)
    return shapes


@pytest.mark.parametrize("scene", ["median", "rendered"])
def test_tests_and_analyses_are_computed_on_the_gpu(gpu, each_video, tiny, tmp_path, scene):
    words = [*TINY, f"data={tiny}", f"out={tmp_path}", "precision=bf16", f"scene={scene}"]
    cfg = config.load("demo-moco-be", words, "finetune")
    samples = datasets.load("ucf101", tiny, "test", 1)
    model = objectives.build("classify", backbones.build("c3d", 4), {**asdict(cfg), "classes": 8}).eval()
    with gpu.fake:
        to_gpu(model)
    evaluate.classify(model, samples, cfg, gpu)
    evaluate.features(model.backbone, samples, cfg, gpu)
    bias.measure(model, samples, cfg, gpu)
    tests = each_video.pop("robustness")  # c3d's map of 8 x 16 x 16: 32 channels, one place
    assert each_video == {"test": (8,), "probe": (32,), "masks": ()}
    assert tests[0] > 20 and tests[1] == 8
    with gpu.fake, Watch():
        heat = analysis.activation(model.backbone(torch.randn(2, 3, 8, 16, 16, device=GPU)), 8, 16)
        assert on_gpu(heat) and heat.shape == (2, 8, 16, 16)


def test_retrieval_and_probe_are_computed_on_the_gpu(gpu, each_video, tiny, tmp_path):
    words = [*latest(*TINY, "stride=1"), "precision=bf16", f"data={tiny}", f"out={tmp_path}"]
    cfg, found = config.load("demo-moco-be", words, "retrieve"), {}
    network = backbones.build("r3d18", 4).eval()
    with gpu.fake:
        to_gpu(network)
    network.state_dict = dict  # is hashed, which takes numbers
    for protocol in ("paper", "vcop", "gap"):
        _, found[protocol] = retrieve.extract("test", network, replace(cfg, protocol=protocol), gpu)
    assert each_video == {"paper-test": (3, 32), "vcop-test": (1, 32), "gap-test": (1, 32)}
    assert len(found["paper"]) == 48
    with gpu.fake, Watch(waits=True):
        assert retrieve.search(found["vcop"], found["gap"], 5, 1e-3, GPU).shape == (16, 5)
        x, label = torch.randn(16, 32, device=GPU), torch.arange(16, device=GPU)
        assert on_gpu(evaluate.knn(x, label, x)) and all(map(on_gpu, evaluate.fit(x, label, 16)))
        clips, size = torch.zeros(2, 8, 20, 30, 3, dtype=torch.uint8, device=GPU), torch.ones(2, 2, device=GPU)
        assert on_gpu(eval_view(clips, size, 16))


# ---- torch.compile: one graph, or it is no gain


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_is_one_graph(name):
    network, x = backbones.build(name, 2).eval(), torch.randn(2, 3, 8, 33, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(network, fullgraph=True, backend="eager")(x), network(x))


def test_the_augmentations_are_one_graph():
    """But for their random numbers, which numpy draws on the host."""
    clips, size = torch.randint(256, (2, 4, 20, 24, 3), dtype=torch.uint8), torch.tensor([[20, 24], [18, 20]])
    params = draw_view(Draws(0, 0), 2, scale=(0.2, 1), flip=0.5, rotate=10, jitter=(0.5, 0.5, 0.25, 0.5))
    compiled = torch.compile(apply_view, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(clips, size, params, 16), apply_view(clips, size, params, 16))
