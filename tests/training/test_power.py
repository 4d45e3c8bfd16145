"""Power profiles: their lengths, their recursion, their inner products, and sums of them."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde import UsageError
from scoresde.training.power import LONGEST, Profile, combination, gamma_of, length_of, power_decay, products

LENGTHS = (0.05, 0.1)  # of the averages that are kept


def shares(gamma, step):
    """The share of the weights after step 1, 2, ... in the average after `step`: the integral of the profile there."""
    edges = (torch.arange(step + 1, dtype=torch.float64) / step) ** (gamma + 1)
    return edges.diff()


@pytest.mark.parametrize("gamma", [0, 1e-6, 0.1, 1, 6.94, 16.97, 1e3, 1e6])
def test_length_and_exponent_are_inverse(gamma):
    assert gamma_of(length_of(gamma)) == pytest.approx(gamma, rel=1e-12, abs=1e-14)


def test_exponents_are_those_that_were_published():
    """Karras et al. 2024, section 3.1: lengths of 0.05 and 0.10 have gamma 16.97 and 6.94."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=5e-3)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=5e-3)
    assert gamma_of(LONGEST) == 0


@pytest.mark.parametrize("length", [0, -0.1, 0.29, math.nan, math.inf])
def test_a_length_that_no_profile_has_is_named(length):
    with pytest.raises(UsageError, match=rf"length={length}: need 0 < length <= 0\.2887"):
        gamma_of(length)


@pytest.mark.parametrize("gamma", [0, 0.5, 6.94, 300])
def test_the_recursion_is_the_weighted_sum(gamma):
    weights = torch.sin(torch.arange(1, 41, dtype=torch.float64) ** 2)
    average = 7.0  # before the first step, and forgotten
    for step in range(1, 41):
        beta = power_decay(gamma, step)
        average = beta * average + (1 - beta) * weights[step - 1].item()
        assert average == pytest.approx((shares(gamma, step) @ weights[:step]).item(), rel=1e-11)


@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.25])
def test_the_deviation_of_the_shares_is_the_length_in_the_limit(length):
    """The weights of a step count at its middle: the error falls with the square of the number of steps."""
    errors = []
    for step in (400, 800, 1600):
        share = shares(gamma_of(length), step)
        middle = (torch.arange(step, dtype=torch.float64) + 0.5) / step
        variance = share @ middle**2 - (share @ middle) ** 2
        errors.append(abs(variance.sqrt().item() - length))
    assert errors[-1] < 1e-5
    assert all(coarse / fine == pytest.approx(4, rel=0.05) for coarse, fine in itertools.pairwise(errors))


def test_inner_products_are_integrals():
    """By Gauss's rule of 40 nodes, which is exact for polynomials of degree 79."""
    profiles = [Profile(g, step) for g in (0, 1, 7, 30) for step in (3, 10)]
    nodes, weights = np.polynomial.legendre.leggauss(40)

    def value(p, tau):
        return (p.gamma + 1) / p.step * (tau / p.step) ** p.gamma

    def integral(p, q):
        end = min(p.step, q.step)
        tau = end * (nodes + 1) / 2
        return end / 2 * np.sum(weights * value(p, tau) * value(q, tau))

    expected = [[integral(p, q) for q in profiles] for p in profiles]
    np.testing.assert_allclose(products(profiles, profiles), expected, rtol=1e-12)


def kept(every, last, lengths=LENGTHS):
    """The profiles in snapshots that are kept every some steps."""
    return [Profile(gamma_of(length), step) for step in range(every, last + 1, every) for length in lengths]


@pytest.mark.parametrize("index", [0, 7, 38, 39])
def test_a_profile_that_was_kept_is_itself(index):
    """The factors are solved for to rounding times the condition of the inner products, which is below 1e6 here."""
    profiles = kept(50, 1000)
    size = products(profiles, profiles).diag().sqrt()
    assert torch.linalg.cond(products(profiles, profiles) / size / size[:, None]) < 1e6
    factors, error = combination(profiles, profiles[index])
    assert factors == pytest.approx([float(i == index) for i in range(len(profiles))], abs=1e-9)
    assert error < 1e-7  # the root of the rounding of a difference of ones


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.25])
def test_the_error_falls_as_more_is_kept(length):
    """Each set of snapshots holds the one before, so that least squares cannot become worse; it becomes much better."""
    wanted = Profile(gamma_of(length), 6400)
    errors = []
    for every in (1600, 800, 400, 200, 100):
        factors, error = combination(kept(every, 6400), wanted)
        assert sum(factors) == pytest.approx(1, abs=1e-10)
        errors.append(error)
    assert all(coarse > 2 * fine for coarse, fine in itertools.pairwise(errors[1:])), errors
    assert errors[0] > errors[1]
    three = combination(kept(400, 6400, (*LENGTHS, 0.2)), wanted)[1]
    assert three < errors[2] / 2


def test_the_error_of_a_sum_of_averages_is_below_its_bound():
    """|sum_i x_i theta_hat_i - theta_hat| <= ||sum_i x_i p_i - p|| ||theta - c||, for theta a random walk."""
    last = 640
    walk = torch.randn(8, last, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(1) + 100
    wanted = Profile(gamma_of(0.07), last)
    norm = products([wanted], [wanted]).sqrt().item()
    spread = (walk - walk.mean(1, keepdim=True)).norm(dim=1)
    truth = walk @ shares(wanted.gamma, last)
    for every in (160, 80, 40):
        profiles = kept(every, last)
        factors, error = combination(profiles, wanted)
        averages = torch.stack([walk[:, : p.step] @ shares(p.gamma, p.step) for p in profiles])
        made = torch.tensor(factors, dtype=torch.float64) @ averages
        assert ((made - truth).abs() <= error * norm * spread).all()
        assert (made - truth).abs().max() > 1e-6 * norm * spread.max()  # or the comparison says nothing


def test_the_table_of_errors_in_the_documents_is_true():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    table = page[page.index("| snapshots of lengths") :].split("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip(" %") for cell in line.strip("|").split("|")] for line in table]
    for count, *cells in rows:
        for length, cell in zip(head[1:], cells, strict=True):
            error = combination(kept(1, int(count)), Profile(gamma_of(float(length)), int(count)))[1]
            assert f"{100 * error:.2g}" == cell
