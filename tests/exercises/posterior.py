"""Guidance by a gradient: D + sigma^2 / alpha grad log p(y | x_t), with y in the condition."""

import torch

from scoresde import WrappedModel


class LikelihoodGuidedModel(WrappedModel):
    """A model of p(x) made one of p(x | y) by Bayes' rule."""

    def __init__(self, model, log_likelihood, scale=1.0):
        super().__init__(model)
        self.log_likelihood = log_likelihood
        self.scale = scale

    def check_cond(self, cond):
        """Every condition is the likelihood's own."""

    def denoise_at(self, x_t, level, cond=None):
        with torch.inference_mode(False), torch.enable_grad():
            x_t = x_t.detach().clone().requires_grad_()
            x0_hat = self.model.denoise_at(x_t, level)
            log_p = self.log_likelihood(x_t, x0_hat, level.match_rank(x_t), cond)
            gradient = torch.autograd.grad(log_p.sum(), x_t)[0]
        level = level.match_rank(x_t)
        return x0_hat.detach() + self.scale * level.sigma**2 / level.alpha * gradient


def measurement(operator, noise_std):
    """log N(y; A x0_hat, noise_std^2 + r^2), r^2 = sigma^2 / (alpha^2 + sigma^2): PiGDM (Song et al. 2023)."""

    def log_likelihood(x_t, x0_hat, level, cond):
        variance = noise_std**2 + level.sigma**2 / (level.alpha**2 + level.sigma**2)
        return -((cond["y"] - operator(x0_hat)) ** 2 / (2 * variance)).flatten(1).sum(1)

    return log_likelihood
