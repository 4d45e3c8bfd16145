"""The configuration that all recipes start from: class-conditional handwritten digits under the VP SDE.

The comment behind a field is its documentation: `--help` prints it.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The default configuration."""
    config = ConfigDict()
    config.seed = 0  # of the weights, batches, times and noises

    config.data = ConfigDict()
    config.data.name = "digits"  # digits, hf:NAME, or 2-D: moons modes swiss_roll checkerboard eight_gaussians rings
    config.data.path = ""  # own data instead: a folder of images, .parquet, .npy, .npz, IDX; see docs/your-own-data.md
    config.data.labels_path = ""  # labels of an IDX file, where they do not lie beside it
    config.data.split = "train"  # which one, of data that has several
    config.data.held_out = 0.25  # share of the samples that is not trained on
    config.data.class_conditional = True  # give labels to the network, where the data has them
    config.data.image_size = (0,)  # one number, or (height, width); 0: as the files are
    config.data.fit = "crop"  # how to reach that size: crop, pad (with black), squash, or center (without scaling)
    config.data.channels = 0  # 1: grey; 3: colour; 0: as the files are
    config.data.max_unreadable = 0.01  # share of the images that may be unreadable, and are left out
    config.data.max_gigabytes = 8.0  # largest size in memory; above it is an error before anything is unpacked

    config.network = ConfigDict()
    config.network.name = "UNet"  # UNet (images) or MLP (vectors)
    config.network.channels = 16  # features at the finest level
    config.network.multipliers = (1, 2)  # features of each level, as multiples; each level halves the image
    config.network.num_blocks = 1  # residual blocks a level
    config.network.label_dropout = 0.0  # share of labels hidden in training; above 0 the model also works without

    config.sde = ConfigDict()
    config.sde.name = "VPSDE"  # class of the SDE; its fields follow
    config.sde.beta_min = 0.1  # beta(0)
    config.sde.beta_max = 20.0  # beta(1)
    config.sde.t_min = 1e-5  # earliest time
    config.sde.t_max = 1.0  # time of the prior
    config.sde.t_end = 1e-3  # where the default sampling grids end, before the step to clean data

    config.parametrization = ConfigDict()
    config.parametrization.name = "EDMParametrization"  # Noise-, Denoised-, Score-, Velocity- or EDMParametrization
    config.parametrization.sigma_data = 0.0  # deviation of the data; 0: measured

    config.objective = ConfigDict()
    config.objective.name = "DenoisingObjective"  # or VariationalObjective, which has its own times and weighting
    config.objective.times = ConfigDict({"name": "UniformTimes"})  # or Discrete-, Ladder-, LogNormalNoiseLevels
    config.objective.weighting = ConfigDict({"name": "NoiseWeighting"})  # class of scoresde.objective, Likelihood- too

    config.training = ConfigDict()
    config.training.num_steps = 3000  # optimiser steps
    config.training.batch_size = 64  # samples a step
    config.training.lr = 2e-3  # largest learning rate
    config.training.lr_final = 0.02  # last learning rate, as a share of lr (half a cosine)
    config.training.warmup_steps = 100  # steps of linear warm-up
    config.training.weight_decay = 0.0  # AdamW's
    config.training.grad_clip = 1.0  # largest norm of the gradient
    config.training.ema_decay = 0.995  # decay of the averaged weights
    config.training.accumulate = 1  # parts that a batch is computed in, to save memory
    config.training.precision = "float32"  # of the network's arithmetic: float32 or bfloat16
    config.training.flip = False  # mirror half of the images of each batch
    config.training.dequantize = False  # spread whole numbers evenly over their unit intervals: for likelihoods
    config.training.max_bad_steps = 20  # steps in a row without a finite gradient that count as divergence
    config.training.on_divergence = "stop"  # or rollback: to the last checkpoint, with half the learning rate

    config.logging = ConfigDict()
    config.logging.every = 50  # steps a line of metrics.jsonl
    config.logging.checkpoint_every = 500  # steps a checkpoint, with the held-out loss
    config.logging.keep = 2  # last checkpoints kept, beside the one of the least held-out loss
    config.logging.wandb = "disabled"  # disabled, offline or online

    config.sampling = ConfigDict()
    config.sampling.batch_size = 500  # samples at a time
    config.sampling.threshold = "none"  # static or dynamic: keep the denoiser within the data's range
    config.sampling.quantile = 0.995  # of a sample's entries, which dynamic thresholding rescales into the range
    config.sampling.compile = False  # compile the network by torch.compile: minutes at first, pays for large networks
    config.sampling.cuda_graph = False  # on CUDA: record a batch's kernels once and replay them for the other batches
    config.sampling.pc = ConfigDict()
    config.sampling.pc.snr = 0.0  # signal-to-noise ratio of a Langevin step; 0: by a pilot run (step norm: 0.16)
    config.sampling.pc.corrector_steps = 1  # Langevin steps for each predictor step
    config.sampling.pc.corrector_first = False  # before the predictor's step instead of after it
    config.sampling.pc.step = "sigma"  # what sizes a Langevin step: sigma, or norm (of the batch's scores)
    config.sampling.langevin = ConfigDict()
    config.sampling.langevin.snr = 0.4  # signal-to-noise ratio of a Langevin step; 0: by a pilot run (norm: 0.16)
    config.sampling.langevin.corrector_steps = 1  # Langevin steps at each level
    config.sampling.langevin.step = "sigma"  # what sizes a Langevin step: sigma, or norm (of the batch's scores)
    config.sampling.ancestral = ConfigDict()
    config.sampling.ancestral.variance = "posterior"  # posterior, or DDPM's larger beta
    config.sampling.euler_maruyama = ConfigDict()
    config.sampling.euler_maruyama.eta = 1.0  # 1: the reverse SDE; 0: Euler on the probability flow
    config.sampling.reverse_diffusion = ConfigDict()
    config.sampling.ode = ConfigDict()
    config.sampling.ode.rtol = 1e-4  # relative tolerance, where the number of steps is not given
    config.sampling.ode.atol = 1e-4  # absolute tolerance
    config.sampling.ddim = ConfigDict()
    config.sampling.ddim.eta = 0.0  # 0: deterministic; 1: ancestral sampling
    config.sampling.heun = ConfigDict()
    config.sampling.heun.integrand = "noise"  # what is integrated: noise, denoised or velocity
    config.sampling.edm = ConfigDict()
    config.sampling.edm.churn = 40.0  # noise added in all; 0: Heun's method
    config.sampling.edm.churn_min = 0.05  # least noise level with churn
    config.sampling.edm.churn_max = 50.0  # largest noise level with churn
    config.sampling.edm.churn_scale = 1.003  # factor of the added noise
    config.sampling.rk4 = ConfigDict()
    config.sampling.rk4.integrand = "velocity"  # what is integrated: noise, denoised or velocity
    config.sampling.trigonometric = ConfigDict()
    config.sampling.trigonometric.num_values = 2  # values that a step knows, 1 to 4; the order is one more
    config.sampling.trigonometric.sd = 0.7  # scale of the data
    config.sampling.adams = ConfigDict()
    config.sampling.adams.num_values = 3  # values that a step knows: the order, 1 to 4
    config.sampling.adams.corrector = True  # correct each step at the next one: one order more
    config.sampling.adams.integrand = "velocity"  # what is integrated: noise, denoised or velocity
    config.sampling.adams.variable = "phi"  # what it is a polynomial in: t, log_snr, noise_level or phi
    config.sampling.adams.sd = 1.0  # scale of the data, in the velocity view and in phi
    config.sampling.deis = ConfigDict()
    config.sampling.deis.order = 3  # 1 to 4
    config.sampling.dpm_solver = ConfigDict()
    config.sampling.dpm_solver.order = 2  # 1 to 3: DPM-Solver++(2M) at 2
    config.sampling.dpm_solver.integrand = "denoised"  # denoised: DPM-Solver++; noise: DPM-Solver
    config.sampling.dpm_solver_single = ConfigDict()
    config.sampling.dpm_solver_single.order = 2  # 1 to 3: DPM-Solver++(2S) at 2
    config.sampling.dpm_solver_single.integrand = "denoised"  # denoised: DPM-Solver++; noise: DPM-Solver
    config.sampling.unipc = ConfigDict()
    config.sampling.unipc.num_values = 3  # 1 to 3; the order with the corrector is one more
    config.sampling.unipc.variant = "B2"  # or B1
    config.sampling.unipc.integrand = "denoised"  # or noise
    config.sampling.sde_dpm_solver = ConfigDict()
    config.sampling.sde_dpm_solver.num_values = 2  # 1 to 3: SDE-DPM-Solver++(2M) at 2
    config.sampling.sde_dpm_solver.eta = 1.0  # 1: the reverse SDE; towards 0: the probability flow
    config.sampling.sde_dpm_solver_single = ConfigDict()
    config.sampling.stochastic_heun = ConfigDict()
    return config
