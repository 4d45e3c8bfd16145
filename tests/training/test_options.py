"""Options of training: the schedule of the learning rate, and what is refused."""

import math
import re

import pytest

from scoresde import TrainingOptions, UsageError


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.2),  # 1/10 of the way up
        (4, 1.0),
        (9, 2.0),  # the last step of the warm-up reaches lr
        (10, 2.0),  # where the cosine begins
        (60, 2.0 * (0.1 + 0.9 / 2)),  # half way down
        (85, 2.0 * (0.1 + 0.9 * 0.5 * (1 - math.sqrt(0.5)))),
        (110, 0.2),  # lr_final lr
        (10_000, 0.2),
    ],
)
def test_learning_rate_is_a_ramp_and_half_a_cosine(step, lr):
    options = TrainingOptions(num_steps=110, lr=2.0, lr_final=0.1, warmup_steps=10)
    assert options.lr_at(step) == pytest.approx(lr, rel=1e-12)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert TrainingOptions(num_steps=10, lr=0.3, warmup_steps=0).lr_at(0) == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("batch_size", 0),
        ("warmup_steps", -1),
        ("num_steps", 2.5),
        ("weight_decay", -0.1),
        ("weight_decay", math.inf),
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr_final", -0.1),
        ("lr_final", math.nan),
        ("grad_clip", 0.0),
        ("ema_decay", 1.0),
        ("ema_decay", -0.1),
        ("ema_lengths", (0.05, 0.05)),
        ("ema_lengths", (0.0,)),
        ("ema_lengths", (0.3,)),
        ("ema_lengths", ("long",)),
        ("accumulate", 0),
        ("max_bad_steps", 0),
        ("precision", "'half'"),
        ("on_divergence", "'pray'"),
    ],
)
def test_options_that_make_no_sense_are_named(field, value):
    with pytest.raises(UsageError, match=rf"training\.{field}={re.escape(str(value))}"):
        TrainingOptions(**{field: value.strip("'") if isinstance(value, str) else value})
