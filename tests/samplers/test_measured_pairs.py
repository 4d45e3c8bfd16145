"""Models of posteriors, operators, noises, SDEs, samplers and priors: each pair that goes together occurs."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from samplers import (
    DDIM,
    DDRM,
    Ancestral,
    DPMSolver,
    Heun,
    PredictorCorrector,
    RePaint,
    Replacement,
    SDEDPMSolver,
    SplitGibbs,
    sample,
)
from scoresde import EDMParametrization, ExactScoreModel, NetworkScoreModel, UNet
from scoresde.inverse import DPS, MMPS, DiffPIR, MeasuredModel, PiGDM
from scoresde.operators import (
    JPEG,
    BlockAverage,
    Blur,
    FourierMagnitude,
    FourierSubsampling,
    FunctionOperator,
    Grey,
    LinearFunctionOperator,
    LinearOperator,
    Mask,
    PoissonNoise,
    gaussian_kernel,
    motion_kernel,
    random_projection,
)
from tests.analytic import SDES, mixture
from tests.operators.cases import differences, randn

SHAPE = (2, 4, 4)

METHODS = {
    "DPS": DPS,
    "PiGDM": PiGDM,
    "DiffPIR": DiffPIR,
    "MMPS": MMPS,
    "MMPS, exact": lambda *given: MMPS(*given, iterations=None),
    "measured": MeasuredModel,
}
OPERATORS = {
    "mask": Mask.random(SHAPE, 0.4),
    "box": Mask.box(SHAPE, (1, 1), (3, 3)),
    "grey": Grey(SHAPE),
    "blocks": BlockAverage(SHAPE, 2),
    "blur": Blur(SHAPE, gaussian_kernel(0.6, 2, 1)),
    "motion": Blur(SHAPE, motion_kernel(2.0, 30.0), "reflect"),
    "strided": Blur(SHAPE, gaussian_kernel(0.6, 2, 1), "none", 2),
    "frequencies": FourierSubsampling.lines(SHAPE, 2.0),
    "projection": random_projection(SHAPE, 6),
    "linear function": LinearFunctionOperator(differences, SHAPE),
    "function": FunctionOperator(torch.tanh, SHAPE),
    "magnitudes": FourierMagnitude(SHAPE, 1.0),
    "jpeg": JPEG(SHAPE, 20),
}
NOISES = {"none": 0.0, "gaussian": 0.1, "poisson": PoissonNoise(40.0, offset=4.0)}
PLAIN = {
    "Ancestral": Ancestral(),
    "DDIM": DDIM(eta=0.5),
    "Heun": Heun(),
    "DPMSolver": DPMSolver(2),
    "PredictorCorrector": PredictorCorrector(snr=0.1),
    "SDEDPMSolver": SDEDPMSolver(2),
}
OWN = {
    "Replacement": Replacement(),
    "Replacement of Heun": Replacement(Heun()),
    "RePaint": Replacement(RePaint(2, 2)),
    "DDRM": DDRM(),
    "SplitGibbs": SplitGibbs(),
}
FACTORS = {
    "method": tuple(METHODS),
    "operator": tuple(OPERATORS),
    "noise": tuple(NOISES),
    "sde": tuple(SDES),
    "sampler": (*PLAIN, *OWN),
    "prior": ("exact", "network"),
}


def goes_together(case):
    """Whether the documentation says that a combination, or a part of one, makes sense."""
    linear = isinstance(OPERATORS.get(case.get("operator"), Mask.random(SHAPE, 0.5)), LinearOperator)
    method, noise, sampler = case.get("method"), case.get("noise"), case.get("sampler")
    own = sampler in OWN
    if method is not None and sampler is not None and own != (method == "measured"):
        return False
    if method in ("PiGDM", "DiffPIR") and not linear:
        return False
    if method in ("MMPS", "MMPS, exact") and noise == "none":
        return False
    few = case.get("operator") in (None, "projection", "blocks")
    if method == "MMPS, exact" and case.get("prior") == "network" and not few:  # a pass back for each measured value
        return False
    if own and sampler != "SplitGibbs" and (noise == "poisson" or not linear):
        return False
    return not (own and not linear and noise == "none")


def wanted_pairs():
    """All pairs of values of two factors that go together."""
    return {
        ((one, a), (other, b))
        for one, other in itertools.combinations(FACTORS, 2)
        for a, b in itertools.product(FACTORS[one], FACTORS[other])
        if goes_together({one: a, other: b})
    }


def pairs_of(case):
    return set(itertools.combinations(case.items(), 2))


def covering(seed=0, candidates=12):
    """Cases in which every pair occurs; for each that does not yet, the best of some random cases that have it."""
    chance, left, cases = random.Random(seed), wanted_pairs(), []
    while left:
        pair = dict(min(left))
        found = []
        for _ in range(10_000):
            case = {name: pair.get(name) or chance.choice(values) for name, values in FACTORS.items()}
            if goes_together(case):
                found.append(case)
                if len(found) == candidates:
                    break
        best = max(found, key=lambda case: len(pairs_of(case) & left))
        left -= pairs_of(best)
        cases.append(best)
    return cases


CASES = covering()


def network(sde):
    """A small one with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = UNet(2, 4)
        torch.nn.init.normal_(net.last.weight, std=0.1)
    return NetworkScoreModel(net, sde, EDMParametrization(0.9), SHAPE)


PRIORS = {
    "exact": lambda sde: ExactScoreModel(mixture(shape=SHAPE).to(dtype=torch.float32), sde),
    "network": network,
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: ", ".join(case.values()))
def test_what_goes_together_runs(case, device, monkeypatch):
    """Two images, float32; with few Langevin steps, as it is not asked where they end."""
    monkeypatch.setattr("samplers.measured.split_gibbs.LANGEVIN_STEPS", 5)
    sde, operator = SDES[case["sde"]], OPERATORS[case["operator"]]
    prior = (
        ExactScoreModel(mixture(shape=SHAPE).to(dtype=torch.float32), sde) if case["prior"] == "exact" else network(sde)
    )
    model = METHODS[case["method"]](prior.to(device), operator, NOISES[case["noise"]])
    y = operator.to(dtype=torch.float32)(0.5 * randn(2, *SHAPE).float())
    sampler = (PLAIN | OWN)[case["sampler"]]
    x, nfe = sample(model, sampler, 2, num_steps=5, cond=y)
    assert x.shape == (2, *SHAPE)
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    assert nfe > 4


def test_every_pair_that_goes_together_occurs():
    assert set().union(*(pairs_of(case) for case in CASES)) >= wanted_pairs()
    assert all(goes_together(case) for case in CASES)
