"""What a user can build on the library without touching it: each capability in a page, compared with what is exact."""

import ast
from pathlib import Path

import pytest
import torch

from samplers import DPMSolver, Heun, UniPC, fit_sampler, log_prob, prepare, sample
from scoresde import (
    MLP,
    VESDE,
    VPSDE,
    DiscreteVPSDE,
    EDMParametrization,
    ExactScoreModel,
    Gaussian,
    GaussianMixture,
    Network,
    NetworkScoreModel,
    Noise,
    NoiseParametrization,
    TimeInput,
    TrainingOptions,
    UsageError,
    fit,
    load_model,
    save_model,
)
from tests.exercises.consistency import ConsistencyObjective
from tests.exercises.embedding import EmbeddingCodec, RoundingObjective, SentenceNetwork
from tests.exercises.foreign import ForeignNetwork
from tests.exercises.guidance import GuidedModel
from tests.exercises.inpainting import RePaint, keep
from tests.exercises.latent_text import OrthonormalAutoencoder, TextNetwork
from tests.exercises.posterior import LikelihoodGuidedModel, measurement

FOLDER = Path(__file__).parent / "exercises"


@pytest.mark.parametrize("name", ["guidance", "posterior", "inpainting", "consistency"])
def test_it_takes_at_most_forty_lines_of_public_names(name):
    source = (FOLDER / f"{name}.py").read_text()
    assert sum(bool(line.strip()) for line in source.splitlines()) <= 40
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not any(part.startswith("_") for part in node.module.split(".")), node.module
        if isinstance(node, ast.Attribute | ast.Name):
            used = node.attr if isinstance(node, ast.Attribute) else node.id
            assert not used.startswith("_") or used == "__init__", used


class TwoClasses(Network):
    """The exact denoiser of classes 0 and 1, which are N(-1, 0.1) and N(1, 0.1), and for label 2 of both together."""

    cond_dropout = 0.5

    def __init__(self, sde, rule):
        super().__init__()
        self.sde = sde
        self.rule = rule
        self.register_buffer("anchor", torch.zeros(1, dtype=torch.float64))
        self.parts = [Gaussian(torch.tensor([m]).double(), torch.tensor([0.1]).double()) for m in (-1.0, 1.0)]

    def denoiser(self, x_t, level, label):
        means = torch.stack([part.denoise(x_t, level.alpha, level.sigma) for part in self.parts])
        logs = torch.stack([part.log_prob(x_t, level.alpha, level.sigma) for part in self.parts])
        both = (logs.softmax(0)[..., None] * means).sum(0)
        return torch.stack([*means, both])[label, torch.arange(len(label))]

    def forward(self, x, c_noise, cond=None):
        level = self.sde.level(self.sde.time(-8 * c_noise))
        wide = level.match_rank(x)
        x_t = x / self.rule.c_in(wide)
        return (self.denoiser(x_t, level, cond) - self.rule.c_skip(wide) * x_t) / self.rule.c_out(wide)

    def check_cond(self, cond):
        if cond is None or int(cond.max()) > 2:
            raise UsageError("cond: need labels 0..2")

    def null_cond(self, cond, hidden):
        return cond.masked_fill(hidden, 2)


@pytest.fixture
def two_classes():
    sde, rule = VPSDE(), EDMParametrization(1.0)
    return NetworkScoreModel(TwoClasses(sde, rule), sde, rule, (1,))


def test_guidance_is_the_extrapolation_of_two_denoisers(two_classes):
    x_t = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    label = torch.arange(9) % 2
    level = two_classes.sde.level(torch.full((9,), 0.4, dtype=torch.float64))
    exact = two_classes.network
    given, null = exact.denoiser(x_t, level, label), exact.denoiser(x_t, level, torch.full((9,), 2))
    found = GuidedModel(two_classes, 3.0).denoise(x_t, 0.4, label)
    torch.testing.assert_close(found, null + 3 * (given - null), rtol=1e-6, atol=1e-6)


def test_guidance_of_scale_one_changes_no_bit(two_classes):
    label = torch.arange(20) % 2
    for sampler in (DPMSolver(2), UniPC(), Heun()):
        plain = sample(two_classes, sampler, 20, num_steps=10, cond=label)
        guided = sample(GuidedModel(two_classes, 1.0), sampler, 20, num_steps=10, cond=label)
        assert torch.equal(plain.x, guided.x)
        assert guided.nfe == 2 * plain.nfe


def test_a_guided_model_is_a_model_everywhere(two_classes):
    guided = GuidedModel(two_classes, 2.0)
    label = torch.arange(40) % 2
    under, _ = sample(guided.under(VESDE()), UniPC(), 40, num_steps=15, cond=label)
    assert bool((under.sign()[:, 0] == 2 * label - 1).all())
    fitted = fit_sampler(guided, cond=label)
    quick, _ = sample(guided, fitted, 40, num_steps=8, cond=label)
    assert (quick.sign()[:, 0] == 2 * label - 1).all()
    assert log_prob(guided, under, label, num_evaluations=16).log_prob.isfinite().all()


def test_a_classifier_makes_a_mixture_one_of_its_components():
    mixture = GaussianMixture(
        torch.tensor([0.3, 0.7]).double(),
        torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double(),
        torch.full((2,), 0.2).double(),
    )
    sde = VPSDE()
    components = [Gaussian(m, v.expand(2)) for m, v in zip(mixture.means, mixture.variances, strict=True)]

    def classifier(x_t, x0_hat, level, cond):
        level = level.map(lambda part: part.reshape(-1).expand(len(x_t)))
        logs = [part.log_prob(x_t, level.alpha, level.sigma) for part in components]
        return (torch.stack(logs, 1) + mixture.weights.log()).log_softmax(1).gather(1, cond["label"][:, None])[:, 0]

    guided = LikelihoodGuidedModel(ExactScoreModel(mixture, sde), classifier)
    x_t = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (0.05, 0.4, 1.0):
        found = guided.denoise(x_t, t, {"label": torch.ones(50, dtype=torch.long)})
        torch.testing.assert_close(found, ExactScoreModel(components[1], sde).denoise(x_t, t), rtol=1e-8, atol=1e-8)
    x, _ = sample(guided, Heun(), 50, num_steps=20, cond={"label": torch.arange(50) % 2}, batch_size=7)
    of_class = torch.stack([part.log_prob(x, torch.ones(()), torch.zeros(())) for part in components], 1)
    assert (of_class.argmax(1) == torch.arange(50) % 2).float().mean() > 0.85  # the classes overlap by 4 %


def test_a_measurement_of_a_unit_gaussian_gives_its_posterior():
    data = Gaussian(torch.zeros(3).double(), torch.ones(3).double())
    sde, noise_std = VPSDE(), 0.5
    guided = LikelihoodGuidedModel(ExactScoreModel(data, sde), measurement(lambda x: x[:, :1], noise_std))
    y = torch.linspace(-2, 2, 30, dtype=torch.float64)[:, None]
    variance = noise_std**2 / (1 + noise_std**2)
    x_t = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (0.05, 0.4, 1.0):
        found = guided.denoise(x_t, t, {"y": y})
        level = sde.level(torch.tensor(t, dtype=torch.float64))
        spread = torch.tensor([variance, 1.0, 1.0]).double()
        for k in range(30):
            mean = torch.cat([y[k] / (1 + noise_std**2), torch.zeros(2).double()])
            exact = Gaussian(mean, spread).denoise(x_t[k : k + 1], level.alpha, level.sigma)
            torch.testing.assert_close(found[k : k + 1], exact, rtol=1e-8, atol=1e-8)


def inpainted(model, sampler, count, **options):
    noise = Noise(0, torch.arange(count))
    mask = torch.tensor([True, False])
    known = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return prepare(model, sampler, **options).draw(noise, project=keep(known, mask, noise)).x


def test_inpainting_keeps_what_is_known_and_repeats_find_the_rest():
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double()
    model = ExactScoreModel(Gaussian(torch.zeros(2).double(), covariance), VPSDE())
    means = {}
    for repeats in (1, 5, 20):
        x = inpainted(model, RePaint(repeats), 4000, num_steps=30)
        assert bool((x[:, 0] == 1).all())
        means[repeats] = x[:, 1].mean().item()
    assert means[1] < 0.7  # a projection alone comes too late: the rest of the sample was drawn without it
    assert means[1] < means[5] < means[20]
    assert means[20] == pytest.approx(0.8, abs=4 * 0.6 / 4000**0.5 + 0.02)
    # deterministic multistep solvers keep their history under a projection
    assert bool((inpainted(model, UniPC(), 100, num_steps=30)[:, 0] == 1).all())


def test_consistency_distillation_finds_the_end_of_each_path():
    mean, variance, sde = 0.5, 0.25, VPSDE(t_min=1e-2)
    data = Gaussian(torch.tensor([mean]), torch.tensor([variance]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MLP(1, width=48, depth=2)
    model = NetworkScoreModel(network, sde, EDMParametrization(0.5), (1,))
    objective = ConsistencyObjective(ExactScoreModel(data, sde), num_levels=12)
    options = TrainingOptions(num_steps=600, batch_size=128, lr=4e-3, ema_decay=0.95, warmup_steps=20)
    trained = fit(model, data.sample(4000, torch.Generator().manual_seed(0)), objective=objective, options=options)
    x_t = torch.linspace(-2, 2, 41)[:, None]
    level = sde.level(torch.tensor(sde.t_max))
    exact = mean + (x_t - level.alpha * mean) * (variance / (level.alpha**2 * variance + level.sigma**2)) ** 0.5
    found = trained.denoise(x_t, sde.t_max)
    one_step_of_a_denoiser = ExactScoreModel(data, sde).denoise(x_t, sde.t_max)
    assert (one_step_of_a_denoiser - exact).square().mean().sqrt() > 0.5
    assert (found - exact).square().mean().sqrt() < 0.1


def test_a_latent_model_learns_what_its_text_says(tmp_path):
    """Token k writes the k-th digit of the latent; an image is decoded from what the text wrote."""
    generator = torch.Generator().manual_seed(0)
    codec = OrthonormalAutoencoder(4, 2)
    tokens = torch.randint(1, 4, (3000, 2), generator=generator)
    written = torch.tensor([0.0, -1.0, 0.0, 1.0])
    latents = written[tokens] + 0.1 * torch.randn(3000, 2, generator=generator)
    text = {
        "tokens": torch.cat([tokens, tokens.new_zeros(3000, 1)], 1),
        "mask": torch.tensor([[True, True, False]] * 3000),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TextNetwork(2, 4)
    model = NetworkScoreModel(network, VPSDE(), EDMParametrization(0.8), (2,), codec)
    options = TrainingOptions(num_steps=400, batch_size=128, lr=4e-3, ema_decay=0.98, warmup_steps=20)
    trained = fit(model, codec.decode(latents), text, options=options)
    save_model(trained, tmp_path / "text.safetensors")
    loaded = load_model(tmp_path / "text.safetensors")
    asked = {"tokens": torch.tensor([[3, 3, 0], [1, 1, 0]] * 50), "mask": torch.tensor([[True, True, False]] * 100)}
    x, _ = sample(loaded, Heun(), 100, num_steps=12, cond=asked, batch_size=33)
    assert loaded.codec.decode(x).shape == (100, 1, 4, 4)
    torch.testing.assert_close(x[::2].mean(0), torch.ones(2), rtol=0, atol=0.2)
    torch.testing.assert_close(x[1::2].mean(0), -torch.ones(2), rtol=0, atol=0.2)
    guided, _ = sample(GuidedModel(loaded, 1.5), Heun(), 20, num_steps=12, cond={k: v[:20] for k, v in asked.items()})
    assert bool(guided.isfinite().all())
    with pytest.raises(UsageError, match=r"cond\['tokens'\]: 9"):
        sample(loaded, Heun(), 1, cond={"tokens": torch.tensor([[9]]), "mask": torch.tensor([[True]])})


def test_a_model_of_sentences_writes_sentences(tmp_path):
    sentences = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [4, 4, 0, 0]])
    raw = sentences[torch.arange(1500) % 3]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SentenceNetwork(4, 8)
    codec = EmbeddingCodec(5, 8)
    before = codec.table.detach().clone()
    model = NetworkScoreModel(network, VPSDE(), EDMParametrization(1.0), (4, 8), codec)
    options = TrainingOptions(num_steps=400, batch_size=96, lr=4e-3, ema_decay=0.98, warmup_steps=20)
    trained = fit(model, raw, objective=RoundingObjective(), options=options)
    assert not torch.equal(trained.codec.table, before)
    save_model(trained, tmp_path / "words.safetensors")
    loaded = load_model(tmp_path / "words.safetensors")
    x, _ = sample(loaded, Heun(), 200, num_steps=15)
    words = loaded.codec.decode(x)
    known = (words[:, None] == sentences).all(2)
    assert known.any(1).float().mean() > 0.9
    assert bool((known.float().mean(0) > 0.15).all())  # none of the three is forgotten


def test_a_foreign_network_is_trained_moved_and_saved(tmp_path):
    sde = DiscreteVPSDE(betas=tuple(torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double().square().tolist()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ForeignNetwork(2)
    rule = NoiseParametrization(input=TimeInput(scale=1000, offset=-1))
    model = NetworkScoreModel(network, sde, rule, (2,))
    data = 0.2 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, -1.0])
    options = TrainingOptions(num_steps=500, batch_size=128, lr=4e-3, ema_decay=0.98, warmup_steps=20)
    trained = fit(model, data, options=options)
    save_model(trained, tmp_path / "foreign.safetensors")
    loaded = load_model(tmp_path / "foreign.safetensors").to("cpu", torch.float64)
    x, _ = sample(loaded, DPMSolver(2), 500, num_steps=20)
    assert x.dtype == torch.float64
    torch.testing.assert_close(x.mean(0), torch.tensor([1.0, -1.0]).double(), rtol=0, atol=0.15)
    seen = []
    trained.network.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], inputs[1])))
    x_t = torch.ones(1, 2)
    trained.denoise(x_t, 0.5)
    assert torch.equal(seen[-1][0], x_t)  # no scaling of the input
    assert seen[-1][1].item() == pytest.approx(499)
