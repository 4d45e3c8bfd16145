"""What guided samplers draw, beside the distribution that guidance is said to draw from, p(x)^(1-w) p(x|y)^w.

A mixture of eight correlated modes in the plane with three classes, whose scores are exact; the target is known on a
grid. A line gives the sliced Wasserstein-2 distance of 10,000 samples to 10,000 of the target, as a multiple of that
of two sets of the target, and the network evaluations of a sample:

    python -m benchmarks.guidance [--weights 2,4,8]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from torch import Tensor

from benchmarks.guidance_peers import peers
from samplers import (
    DDIM,
    Ancestral,
    PredictorCorrector,
    TableSampler,
    pilot_corrector,
    power_phi,
    sample,
    sample_particles,
    uniform_log_snr,
)
from samplers.predictor_corrector import GUIDED_STEPS
from scoresde import APG, VPSDE, ClassifierFreeGuidance, ExactLabelledModel
from scoresde.data import labelled_mixture
from scoresde.guidance import Weight, cfg_plus_plus
from scoresde.metrics import PoweredTarget

NUM_SAMPLES = 10_000
LABEL = 0
STEPS = 200
SETS = 3  # of samples of the corrections that a pilot run finds, whose mean distance is given


def problem() -> ExactLabelledModel:
    """Modes on a circle, three of them of the class that is asked for."""
    return ExactLabelledModel(*labelled_mixture(), VPSDE())


def compare(model: ExactLabelledModel, w: float) -> None:
    """The lines of one weight."""
    target = PoweredTarget(model, LABEL, w, NUM_SAMPLES)
    guided = ClassifierFreeGuidance(model, w)

    def report(name: str, *sets: Tensor, nfe: int) -> None:
        distance = sum(target.distance(x) for x in sets) / len(sets)
        print(f"{w:>3g}  {name:44}{nfe:>12}{distance:>12.2f}", flush=True)

    def draw(name: str, sampler: TableSampler, change: Callable[[], ClassifierFreeGuidance] | None, steps: int) -> None:
        asked = guided if change is None else change()
        found = sample(asked, sampler, NUM_SAMPLES, num_steps=steps, cond=LABEL)
        report(name, found.x, nfe=found.nfe)

    def plus_plus() -> Weight:
        return cfg_plus_plus(w / 10, model.sde, uniform_log_snr(model.sde, 25))

    draw("reverse SDE", Ancestral(), None, STEPS)
    draw("flow", DDIM(), None, STEPS)
    draw("flow, in the interval 0.1 to 2", DDIM(), lambda: ClassifierFreeGuidance(model, w, (0.1, 2.0)), STEPS)
    draw(
        "reverse SDE, in the interval 0.1 to 2",
        Ancestral(),
        lambda: ClassifierFreeGuidance(model, w, (0.1, 2.0)),
        STEPS,
    )
    draw(f"CFG++, strength {w / 10:g}, 25 steps", DDIM(), lambda: ClassifierFreeGuidance(model, plus_plus()), 25)
    draw("flow, APG of eta 0", DDIM(), lambda: ClassifierFreeGuidance(model, w, rule=APG()), STEPS)
    for steps, corrections, snr in ((40, 4, 0.4), (160, 8, 0.2)):
        grid = power_phi(model.sde, steps, 2.0, model.sigma_data)
        sampler = PredictorCorrector(Ancestral(), snr, corrections)
        found = sample(guided, sampler, NUM_SAMPLES, grid=grid, cond=LABEL)
        report(f"{steps} steps, {corrections} corrections of snr {snr:g}", found.x, nfe=found.nfe)
    for steps, lowest in ((40, 0.0), (GUIDED_STEPS, 0.0), (GUIDED_STEPS, 0.05)):
        piloted = pilot_corrector(guided, LABEL, steps, lowest=lowest)
        sets = [sample(guided, piloted, NUM_SAMPLES, num_steps=steps, cond=LABEL, seed=seed) for seed in range(SETS)]
        above = f" above {lowest:g}" if lowest else ""
        name = f"pilot, {steps} steps, {piloted.corrector_steps} corrections{above}"
        report(name, *(found.x for found in sets), nfe=sets[0].nfe)
    for steps in (100, 400):
        particles = sample_particles(guided, 1, NUM_SAMPLES, num_steps=steps, cond=LABEL)
        report(f"particles, {steps} steps", particles.x[0], nfe=particles.nfe)
    for name, x, nfe in peers(model, w, LABEL, NUM_SAMPLES):
        report(name, x, nfe=nfe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="2,4,8", help="of guidance")
    options = parser.parse_args()
    print(f"{'w':>3}  {'':44}{'evaluations':>12}{'x the floor':>12}")
    for w in map(float, options.weights.split(",")):
        compare(problem(), w)


if __name__ == "__main__":
    main()
