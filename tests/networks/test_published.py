"""The settings of published networks: sizes as published, and what their switches do."""

import pytest
import torch

from scoresde import VPSDE, DiT, MPUNet, NetworkScoreModel, UNet, UsageError
from scoresde.networks.dit import _patches, _samples, positions
from scoresde.networks.embedding import Features
from scoresde.networks.presets import ADM, DDPM, DDPMPP, EDM, NCSNPP
from scoresde.parametrization import NoiseParametrization

SIZES = {  # parameters, and frozen frequencies, of the published weights
    "ddpm": (UNet, {"channels_in": 3} | DDPM, 35_746_307),  # google/ddpm-cifar10-32
    "ddpm of Song": (UNet, {"channels_in": 3} | DDPM | {"attention_up": "last"}, 35_218_947),
    "ddpm++": (UNet, {"channels_in": 3} | DDPMPP, 61_804_419),
    "ddpm++ deep": (UNet, {"channels_in": 3} | DDPMPP | {"num_blocks": 8}, 106_632_579),
    "ncsn++": (UNet, {"channels_in": 3} | NCSNPP, 62_758_915),
    "ncsn++ deep": (UNet, {"channels_in": 3} | NCSNPP | {"num_blocks": 8}, 107_587_075),
    "edm": (UNet, {"channels_in": 3} | EDM, 55_733_891 - 9 * 128),  # without its map of augmentations
    "adm": (UNet, {"channels_in": 3, "num_classes": 1000} | ADM, 295_904_454),
    "dit-xl/2": (
        DiT,
        {
            "channels_in": 4,
            "width": 1152,
            "depth": 28,
            "num_heads": 16,
            "num_classes": 1000,
            "label_dropout": 0.1,
            "learned_variance": True,
            "noise_embedding": "positional",
        },
        675_129_632 - 256 * 1152,  # without its table of positions
    ),
    "edm2-s": (
        MPUNet,
        {
            "channels_in": 4,
            "channels": 192,
            "multipliers": (1, 2, 3, 4),
            "num_blocks": 3,
            "num_classes": 1000,
            "attention_levels": (2, 3),
        },
        280_213_093,  # 280.2 M in table 2, with its frequencies and phases
    ),
}


@pytest.mark.parametrize(("kind", "arguments", "size"), SIZES.values(), ids=SIZES.keys())
def test_it_is_as_large_as_published(kind, arguments, size):
    with torch.device("meta"):
        network = kind(**arguments)
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == size


def moved(network):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.double()


CHECKPOINTED = {
    "unet": lambda on: UNet(1, 8, attention_levels=(0,), resample="biggan", checkpointing=on),
    "mp unet": lambda on: MPUNet(1, 8, checkpointing=on),
    "dit": lambda on: DiT(1, width=16, depth=2, checkpointing=on),
}


@pytest.mark.parametrize("make", CHECKPOINTED.values(), ids=CHECKPOINTED.keys())
def test_checkpointing_computes_the_same_gradients_and_stores_less(make, device):
    stored = []
    grads = []
    for on in (False, True):
        torch.manual_seed(0)
        network = moved(make(on)).to(device)
        count = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, count=count: count.append(t.numel()) or t, lambda t: t):
            loss = network(torch.ones(2, 1, 8, 8, dtype=torch.float64, device=device), torch.zeros(2).to(device)).sum()
        loss.backward()
        stored.append(sum(count))
        grads.append([p.grad for p in network.parameters()])
    assert stored[1] < stored[0] / 2
    for first, second in zip(*grads, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)


def test_dropout_is_for_training_only(device):
    x = torch.ones(2, 1, 8, 8, dtype=torch.float64, device=device)
    t = torch.zeros(2, dtype=torch.float64, device=device)
    for make in (lambda p: UNet(1, 8, dropout=p), lambda p: MPUNet(1, 8, dropout=p), lambda p: DiT(1, dropout=p)):
        torch.manual_seed(0)
        network = moved(make(0.5)).to(device)
        torch.manual_seed(1)
        outs = [network(x, t) for _ in range(2)]
        assert not torch.equal(*outs)
        torch.manual_seed(0)
        whole = moved(make(0.0)).to(device).eval()(x, t)
        torch.testing.assert_close(network.eval()(x, t), whole, rtol=1e-10, atol=1e-12)


CONTEXT = {
    "unet": lambda **more: UNet(1, 8, attention_levels=(1,), context_channels=5, **more),
    "dit": lambda **more: DiT(1, width=16, depth=2, context_channels=5, **more),
}


@pytest.mark.parametrize("make", CONTEXT.values(), ids=CONTEXT.keys())
class TestTokens:
    """Conditions of tokens: a set of vectors of which some may only pad."""

    x = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    t = torch.zeros(3, dtype=torch.float64)
    tokens = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def test_padding_is_not_seen_and_tokens_are(self, make):
        network = moved(make())
        whole = network(self.x, self.t, {"tokens": self.tokens[:, :2]})
        mask = torch.tensor([[True, True, False, False]]).expand(3, 4)
        masked = network(self.x, self.t, {"tokens": self.tokens, "mask": mask})
        torch.testing.assert_close(masked, whole, rtol=1e-12, atol=1e-12)
        other = network(self.x, self.t, {"tokens": self.tokens[:, 2:]})
        assert (other - whole).flatten(1).norm(dim=1).min() > 1e-4

    def test_they_are_a_set(self, make):
        network = moved(make())
        first = network(self.x, self.t, {"tokens": self.tokens})
        torch.testing.assert_close(
            first, network(self.x, self.t, {"tokens": self.tokens.flip(1)}), rtol=1e-11, atol=1e-11
        )

    def test_hidden_tokens_are_none(self, make):
        network = moved(make(num_classes=3, label_dropout=0.1))
        cond = {"tokens": self.tokens, "label": torch.tensor([0, 1, 2])}
        network.check_cond(cond)
        hidden = network.null_cond(cond, torch.tensor([True, False, True]))
        network.check_cond(hidden)
        out = network(self.x, self.t, hidden)
        none = network(self.x, self.t)
        given = network(self.x, self.t, cond)
        torch.testing.assert_close(out[::2], none[::2], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(out[1], given[1], rtol=1e-12, atol=1e-12)
        assert (given - none).flatten(1).norm(dim=1).min() > 1e-4

    def test_its_gradient_reaches_every_parameter(self, make):
        network = moved(make(num_classes=3))
        cond = {"tokens": self.tokens, "label": torch.tensor([0, 1, 2])}
        network(self.x, self.t, cond).square().sum().backward()
        assert [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9] == []

    @pytest.mark.parametrize(
        "cond",
        [
            None,
            torch.zeros(3, dtype=torch.long),
            {"mask": torch.ones(3, 4, dtype=torch.bool)},
            {"tokens": torch.zeros(3, 4, 6)},
            {"tokens": torch.zeros(3, 5)},
            {"tokens": torch.zeros(3, 4, 5), "mask": torch.ones(3, 4)},
            {"tokens": torch.zeros(3, 4, 5), "label": torch.zeros(3, dtype=torch.long)},
        ],
    )
    def test_mistakes_are_named(self, make, cond):
        with pytest.raises(UsageError, match=r"cond.*tokens' \(B, L, 5\)"):
            make().check_cond(cond)


def test_magnitudes_are_preserved():
    """Features of unit variance leave every layer of a new network with about unit variance, at any depth."""
    torch.manual_seed(0)
    network = MPUNet(3, 32, (1, 2, 2), 3, attention_levels=(1, 2), head_channels=16)
    seen = []
    for block in (*network.down, *network.middle, *network.up):
        block.register_forward_hook(lambda module, given, out: seen.append(out.square().mean().sqrt().item()))
    with torch.no_grad():
        network.gain.fill_(1)
        out = network(torch.randn(8, 3, 16, 16), torch.randn(8))
    assert min(seen) > 0.7
    assert max(seen) < 1.3
    assert 0.7 < out.square().mean().sqrt() < 1.3


def test_only_the_direction_of_a_magnitude_preserving_weight_counts():
    torch.manual_seed(0)
    network = MPUNet(1, 8).double()
    with torch.no_grad():
        network.gain.fill_(1)
        x, t = torch.randn(2, 1, 6, 6, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        before = network.eval()(x, t)
        for block in network.down:
            block.first.weight *= 7
        torch.testing.assert_close(network(x, t), before, rtol=1e-10, atol=1e-10)
    network.train()(x, t)
    norms = network.down[0].first.weight.flatten(1).square().mean(1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-10, atol=1e-10)


def test_two_uses_of_a_network_in_one_graph_can_be_differentiated():
    """Forced normalisation writes to weights that the first use's graph holds."""
    network = MPUNet(1, 8)
    x, t = torch.randn(2, 1, 6, 6), torch.zeros(2)
    (network(x, t) + network(network(x, t), t)).sum().backward()
    assert network.gain.grad is not None


@pytest.mark.parametrize("shift", [0, 1])
def test_positional_features_are_the_transformers(shift):
    features = Features("positional", 8, shift)(torch.tensor([3.0], dtype=torch.float64))
    exponents = torch.arange(4, dtype=torch.float64) / (4 - shift)
    phases = 3 / 10000**exponents
    torch.testing.assert_close(features[0], torch.cat([phases.cos(), phases.sin()]), rtol=1e-12, atol=1e-12)


def test_xavier_weights_have_their_variance_and_layers_of_zeros_stay():
    torch.manual_seed(0)
    network = UNet(3, **DDPMPP | {"channels": 64, "num_blocks": 1, "multipliers": (1, 2)})
    block = network.down[0]
    fan_in, fan_out = 64 * 9, 64 * 9
    assert block.conv_in.weight.var().item() == pytest.approx(2 / (fan_in + fan_out), rel=0.05)
    assert not block.conv_in.bias.any()
    assert not block.conv_out.weight.any()
    assert not network.last.weight.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(1, dims=4), "dims=4: need 1 for series"),
        (lambda: UNet(1, attention_levels=(2,)), r"attention_levels=\(2,\).*from 0, the finest, to 1"),
        (lambda: UNet(1, attention_up="first"), "attention_up='first': need 'every' or 'last'"),
        (lambda: UNet(1, resample="pool"), "resample='pool': need 'conv', 'biggan' or 'adm'"),
        (lambda: UNet(1, fir=(1.0, 2.0, 1.0)), r"fir=\(1.0, 2.0, 1.0\): need a symmetric kernel of 4 taps"),
        (lambda: UNet(1, num_heads=3), "num_heads=3: does not divide the 32 channels"),
        (lambda: UNet(1, dropout=1.0), "dropout=1.0"),
        (lambda: UNet(1, noise_embedding="learned"), "noise_embedding='learned': need octaves, positional, fourier"),
        (lambda: UNet(1, input_pyramid="both"), "input_pyramid='both'"),
        (lambda: UNet(1, output_pyramid="both"), "output_pyramid='both'"),
        (lambda: UNet(1, channels=3, noise_embedding="positional"), "embedding_channels=3"),
        (lambda: MPUNet(1, 50, attention_levels=(0,), head_channels=16), "head_channels=16: does not divide the 50"),
        (lambda: DiT(1, width=0), r"width=0 of DiT: need a multiple of num_heads=4, such as 4$"),
        (lambda: DiT(1, width=4, dims=3), r"width=4 of DiT: need at least 2 features for each of 3 axes"),
        (lambda: DiT(1, mlp_ratio=0), r"mlp_ratio=0 of DiT: must be positive"),
        (lambda: UNet(1, fir=(1.0, -1.0, -1.0, 1.0)), r"fir=.*: need taps of a positive sum"),
        (lambda: UNet(1, noise_embedding="fourier", embedding_channels=-4), "embedding_channels=-4: need at least 1"),
        (lambda: DiT(1, width=30), r"width=30 of DiT: need a multiple of num_heads=4, such as 28 or 32"),
        (
            lambda: DiT(1, patch_size=3)(torch.zeros(1, 1, 9, 10), torch.zeros(1)),
            r"patch_size=3 does not divide 10.*9 or 12",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize("make", [UNet, MPUNet, DiT])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8), (2, 1, 8, 8, 8)])
def test_samples_of_other_channels_or_axes_are_named(make, shape):
    with pytest.raises(UsageError, match=r"x of shape \(2, .*: this network takes \(B, 1, \*sizes\) with 2 sizes"):
        make(1)(torch.zeros(shape), torch.zeros(2))


def test_a_transformers_positions_are_told_apart_and_its_patches_put_back():
    x = torch.randn(1, 2, 4, 6)
    patches = _patches(x, 2)  # (B, N, C p p)
    channels_last = patches.unflatten(2, (2, 4)).transpose(2, 3).flatten(2)
    assert torch.equal(_samples(channels_last, (2, 3), 2), x)
    table = positions((4, 6), 32)
    assert torch.cdist(table, table).add(torch.eye(24) * 9).min() > 0.1


def test_a_transformer_begins_as_its_authors():
    """Layers of patches and blocks by Glorot and Bengio, embeddings with a deviation of 0.02, and no biases."""
    torch.manual_seed(0)
    network = DiT(4, width=192, num_classes=30)
    assert network.blocks[0].qkv.weight.var().item() == pytest.approx(2 / (4 * 192), rel=0.03)
    for layer in (network.conditioning.noise, network.conditioning.mix, network.conditioning.label):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not any(value.any() for name, value in network.named_parameters() if name.endswith("bias"))


def test_a_half_precision_network_keeps_its_frequencies():
    model = NetworkScoreModel(
        UNet(3, **NCSNPP | {"channels": 8}), VPSDE(), NoiseParametrization(), (3, 8, 8)
    ).bfloat16()
    assert model.network.conditioning.features.frequencies.dtype == torch.float32
