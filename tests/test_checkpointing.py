"""Activation checkpointing changes what is kept for backward, and nothing else."""

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from be import objectives
from be.augment import Draws
from be.backbones import BACKBONES, build


def both(name):
    torch.manual_seed(0)
    plain = build(name, width=4)
    thrifty = build(name, width=4, checkpointing=True)
    thrifty.load_state_dict(plain.state_dict())  # strict: the names are the same
    return plain, thrifty


def kept(network, clips):
    """Bytes of activations that autograd keeps between forward and backward, and the output."""
    storages = {}

    def count(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in (clips, *network.parameters(), *network.buffers())}
    with saved_tensors_hooks(count, lambda tensor: tensor):
        out = network(clips)
    return sum(nbytes for pointer, nbytes in storages.items() if pointer not in own), out


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_same_outputs_gradients_and_statistics_from_less_memory(name):
    plain, thrifty = both(name)
    clips = torch.randn(2, 3, 16, 48, 48)
    memory, out = {}, {}
    for _ in range(2):  # the second time with statistics of the first
        for network in (plain, thrifty):
            memory[network], out[network] = kept(network, clips)
            (out[network] * torch.linspace(-1, 1, out[network].numel()).view_as(out[network])).sum().backward()
    assert torch.equal(out[plain], out[thrifty])
    for (key, p), q in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), key
    for (key, p), q in zip(plain.named_buffers(), thrifty.buffers(), strict=True):
        assert torch.equal(p, q), key
    assert memory[thrifty] < 0.35 * memory[plain], f"{memory[thrifty] / memory[plain]:.2f}"
    with torch.no_grad():
        assert torch.equal(plain.eval()(clips), thrifty.eval()(clips))


def test_moco_steps_are_the_same():
    """With a copy of the backbone as momentum encoder, BatchNorm groups, and the query's hard negative."""
    states = []
    for backbone in both("r3d18"):
        torch.manual_seed(1)
        moco = objectives.build("moco", backbone, dict(frames=8, stride=1, dim=8, K=6, m=0.5, bn_group=2,
                                                       hard_negative_encoder="query"))  # fmt: skip
        optimizer = torch.optim.SGD([p for p in moco.parameters() if p.requires_grad], lr=0.1)
        for step in range(2):
            views = [torch.randn(4, 3, 8, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(3)]
            loss, _ = moco(views, None, torch.arange(4), Draws(0, step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append(copy.deepcopy(moco.state_dict()))
    torch.testing.assert_close(*states, rtol=0, atol=0)
