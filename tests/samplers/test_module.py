"""A whole sampler as one module."""

import pytest
import torch

from samplers import DDIM, Ancestral, Heun, ProbabilityFlow
from samplers.module import SamplerModule
from scoresde import DiscreteVPSDE, NetworkScoreModel, NoiseParametrization, Scaling, UNet, UsageError


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = UNet(1, 4, num_classes=3, learned_variance=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    rule = NoiseParametrization(0.5)
    return NetworkScoreModel(network, DiscreteVPSDE(num_levels=100), rule, (1, 4, 4), Scaling(127.5, 127.5)).eval()


def test_a_step_of_ddim_to_clean_data_gives_the_denoiser_in_raw_units(model):
    z = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 2, 1])
    module = SamplerModule(model, DDIM(), torch.tensor([1.0, 0.0], dtype=torch.float64))
    with torch.no_grad():
        denoised = model.denoise(model.sde.sigma(torch.tensor(1.0)) * z, torch.tensor(1.0), y)
        found = module(z, y)
    assert module.nfe == 1
    torch.testing.assert_close(found, 127.5 * denoised + 127.5, rtol=1e-5, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_a_learned_variance_is_a_graph_for_any_batch(model):
    module = SamplerModule(model, DDIM(), num_steps=2).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    given = (torch.randn(3, 1, 4, 4), torch.tensor([0, 2, 1]))
    with torch.no_grad():
        graph = torch.export.export(module, given, dynamic_shapes=({0: batch}, {0: batch})).module()
        other = (torch.randn(5, 1, 4, 4), torch.tensor([0, 2, 1, 1, 0]))
        torch.testing.assert_close(graph(*other), module(*other), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("sampler", "num_steps"), [(Ancestral(), 4), (ProbabilityFlow(), None)])
def test_samplers_that_draw_noise_or_adapt_are_refused(model, sampler, num_steps):
    with pytest.raises(UsageError, match="draws noise on its way, or adapts its steps"):
        SamplerModule(model, sampler, num_steps=num_steps)


def test_it_counts_its_evaluations(model):
    assert SamplerModule(model, Heun(), num_steps=5).nfe == 9
