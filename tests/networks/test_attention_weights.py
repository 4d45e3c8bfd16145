"""Weights of attention to tokens: those that the fused operation uses, seen only by who watches."""

import pytest
import torch

from scoresde import UNet
from scoresde.networks import DiT
from scoresde.networks.attention_weights import watching
from scoresde.networks.layers import attend_to_tokens

NETWORKS = {
    "unet": (lambda: UNet(1, 8, attention_levels=(0, 1), context_channels=4), {64, 16}),
    "dit": (lambda: DiT(1, 2, width=16, depth=2, num_heads=2, context_channels=4), {16}),
}


def watched(function):
    """What a function gives, and the weights and masks that were shown meanwhile."""
    seen = []
    with watching(lambda weights, mask: seen.append((weights, mask))):
        return function(), seen


@pytest.mark.parametrize("masked", [False, True])
def test_weights_times_values_are_what_attention_gives(device, masked):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 7, 4, generator=generator).to(device)
    kv = torch.randn(2, 5, 2 * 3 * 4, generator=generator).to(device)
    mask = (torch.arange(5) < torch.tensor([[2], [5]])).to(device) if masked else None
    attended, [(weights, shown)] = watched(lambda: attend_to_tokens(q, kv, mask))
    values = kv.unflatten(2, (2, 3, 4))[:, :, 1].transpose(1, 2)
    torch.testing.assert_close(weights @ values, attended)
    torch.testing.assert_close(weights.sum(3), torch.ones(2, 3, 7, device=device))
    assert shown is mask
    if masked:
        assert not weights[0, :, :, 2:].any()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_every_layer_is_seen_and_the_output_is_the_same(device, name):
    build, places = NETWORKS[name]
    torch.manual_seed(0)
    network = build().to(device).eval()
    for parameter in network.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    x, c_noise = torch.randn(2, 1, 8, 8, device=device), torch.zeros(2, device=device)
    cond = {"tokens": torch.randn(2, 3, 4, device=device)}
    output, seen = watched(lambda: network(x, c_noise, cond))
    assert torch.equal(output, network(x, c_noise, cond))
    assert {weights.shape[2] for weights, _ in seen} == places
    assert {weights.shape[3] for weights, _ in seen} == {4}  # the network's own token, and three


def test_nobody_is_shown_anything_after_an_error():
    seen = []
    with pytest.raises(RuntimeError), watching(lambda weights, mask: seen.append(weights)):
        raise RuntimeError
    attend_to_tokens(torch.zeros(1, 1, 2, 4), torch.zeros(1, 3, 8), None)
    assert seen == []
