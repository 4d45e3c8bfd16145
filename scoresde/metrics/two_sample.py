"""A classifier two-sample test: can a classifier tell samples from real ones?"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from scoresde.errors import require

FOLDS = 5
HIDDEN = 64
BATCH = 64
PASSES = 50  # over the samples of training


def told_apart(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a classifier that has not seen a sample says rightly which set it is of, `(N,)` and `(M,)`, 0 or 1.

    The mean is 1/2 for equal distributions and 1 for sets that do not overlap (Lopez-Paz and Oquab 2017). The
    classifier is scikit-learn's network with two hidden layers, on features of mean 0 and deviation 1, trained on four
    fifths of the samples and asked about the other fifth, five times. Both sets weigh the same.

    Raises:
        UsageError: for fewer than ten samples in a set.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for name, part in (("first", first), ("second", second)):
        require(len(part) >= 2 * FOLDS, f"{name} of shape {tuple(part.shape)}: need {2 * FOLDS} samples or more")
    count = min(len(first), len(second))
    x = torch.cat([first[:count], second[:count]]).double().numpy()
    label = torch.arange(2).repeat_interleave(count).numpy()
    classifier = make_pipeline(
        StandardScaler(),
        MLPClassifier((HIDDEN, HIDDEN), batch_size=BATCH, max_iter=PASSES, random_state=0),
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        said = cross_val_predict(classifier, x, label, cv=folds)
    right = torch.from_numpy(said == label).double()
    return right[:count], right[count:]
