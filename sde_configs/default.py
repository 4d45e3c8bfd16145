"""The configuration that all recipes start from: class-conditional handwritten digits under the VP SDE.

The comment behind a field is its documentation: `--help` prints it. The fields of a sampler, config.sampling.NAME, are
those of its class, with the class's defaults and documentation.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from sde_configs.build import SAMPLERS, sampler_options


def get_config() -> ConfigDict:
    """The default configuration."""
    config = ConfigDict()
    config.seed = 0  # of the weights, batches, times and noises
    _data(config)
    _network(config)
    _sde(config)
    _parametrization(config)
    _objective(config)
    _training(config)
    _logging(config)
    _sampling(config)
    return config


def _data(config: ConfigDict) -> None:
    """What is learned."""
    config.data = ConfigDict()
    config.data.name = "digits"  # digits, digits_text, hf:NAME; 2-D: moons modes swiss_roll rings blobs and others
    config.data.path = ""  # own data instead: a folder of images, .parquet, .npy, .npz, IDX; see docs/your-own-data.md
    config.data.labels_path = ""  # labels of a .npy file, or of an IDX file if they do not lie beside it
    config.data.split = "train"  # which one, of data that has several
    config.data.held_out = 0.25  # share of the samples that is not trained on
    config.data.autoencoder = ""  # a run or a checkpoint of --mode train_autoencoder: its latents are learned
    config.data.text_encoder = ""  # of captions: a run of --mode train_text_encoder, minilm, a folder, or hf:NAME
    config.data.captions = ""  # texts to train on: own (beside images, in tables), classes, digits (made from labels)
    config.data.class_conditional = True  # give labels to the network, if the data has them
    config.data.center = ()  # one number, or one a column or channel: raw values of 0 in the model; (): from the data
    config.data.scale = ()  # raw values of a unit of the model, with data.center
    config.data.image_size = (0,)  # one number, or (height, width); 0: as the files are
    config.data.resize_mode = "crop"  # how to reach that size: crop, pad (with black), squash, or center (no scaling)
    config.data.channels = 0  # 1: grey; 3: colour; 0: as the files are
    config.data.max_unreadable = 0.01  # share of the images that may be unreadable, and are left out
    config.data.max_gigabytes = 8.0  # largest size in memory; above it is an error before anything is unpacked
    config.data.from_disk = False  # read each batch from disk, for data larger than memory
    config.data.cache = ""  # a folder for what is converted once to be read from disk: all but .npy files


def _network(config: ConfigDict) -> None:
    """The network."""
    config.network = ConfigDict()
    config.network.name = "UNet"  # UNet, MPUNet or DiT (series, images, volumes), MLP (vectors); docs/networks.md
    config.network.channels = 16  # features at the finest level
    config.network.multipliers = (1, 2)  # features of each level, as multiples; each level halves the image
    config.network.num_blocks = 1  # residual blocks a level
    config.network.label_dropout = 0.0  # share of labels hidden in training; above 0 the model also works without
    config.network.learned_variance = False  # a second output for the reverse steps' variance, of HybridObjective


def _sde(config: ConfigDict) -> None:
    """The SDE."""
    config.sde = ConfigDict()
    config.sde.name = "VPSDE"  # class of the SDE; its fields follow
    config.sde.beta_min = 0.1  # beta(0)
    config.sde.beta_max = 20.0  # beta(1)
    config.sde.t_min = 1e-5  # earliest time
    config.sde.t_max = 1.0  # time of the prior
    config.sde.t_end = 1e-3  # where the default sampling grids end, before the step to clean data


def _parametrization(config: ConfigDict) -> None:
    """What the network sees and emits."""
    config.parametrization = ConfigDict()
    config.parametrization.name = "EDMParametrization"  # Noise-, Denoised-, Score-, Velocity-, Flow-, EDM-
    config.parametrization.sigma_data = 0.0  # root mean square of the data in the model; 0: measured


def _objective(config: ConfigDict) -> None:
    """What the network is trained on."""
    config.objective = ConfigDict()
    config.objective.name = "DenoisingObjective"  # or Hybrid- (learned variance), VariationalObjective (its own times)
    config.objective.times = ConfigDict({"name": "UniformTimes"})  # or Discrete-, LadderTimes, LogNormalNoiseLevels
    config.objective.weighting = ConfigDict({"name": "NoiseWeighting"})  # class of scoresde.objective, Likelihood- too


def _training(config: ConfigDict) -> None:
    """How it is trained."""
    config.training = ConfigDict()
    config.training.num_steps = 3000  # optimiser steps; the learning rate's cosine ends with them
    config.training.batch_size = 64  # samples a step
    config.training.lr = 2e-3  # largest learning rate
    config.training.lr_final = 0.02  # last learning rate, as a share of lr (half a cosine)
    config.training.warmup_steps = 100  # steps of linear warm-up
    config.training.weight_decay = 0.0  # AdamW's
    config.training.grad_clip = 1.0  # largest norm of the gradient
    config.training.ema_decay = 0.995  # decay of the averaged weights
    config.training.ema_lengths = ()  # (0.05, 0.1): snapshots of two more averages, for any other by --mode average
    config.training.accumulate = 1  # micro-batches that a batch is computed in, to save memory
    config.training.precision = "float32"  # of the network's arithmetic: float32 or bfloat16
    config.training.compile = False  # compile the network by torch.compile: minutes at first, then faster steps
    config.training.cuda_graph = False  # with compile, on CUDA: launch the kernels of small networks all at once
    config.training.tf32 = False  # on CUDA: all products of float32 in TF32, not those of convolutions alone
    config.training.channels_last = False  # images: weights with the channels last, faster with bfloat16 on CUDA
    config.training.flip = False  # mirror half of the images of each batch
    config.training.dequantize = False  # spread whole numbers evenly over their unit intervals: for likelihoods
    config.training.shard = False  # several processes: each holds a part of the weights, not all of them
    config.training.max_bad_steps = 20  # steps in a row without a finite gradient that count as divergence
    config.training.on_divergence = "stop"  # or rollback: to the last checkpoint, with half the learning rate


def _logging(config: ConfigDict) -> None:
    """What is kept of a run, and how often."""
    config.logging = ConfigDict()
    config.logging.every = 50  # steps a line of metrics.jsonl
    config.logging.checkpoint_every = 500  # steps a checkpoint, with the held-out loss
    config.logging.snapshot_every = 500  # steps a snapshot of the averages of training.ema_lengths; all are kept
    config.logging.keep = 2  # last checkpoints kept, beside the one of the least held-out loss
    config.logging.wandb = "disabled"  # disabled, offline or online


def _sampling(config: ConfigDict) -> None:
    """How samples are drawn."""
    config.sampling = ConfigDict()
    config.sampling.batch_size = 0  # samples at a time, training apart; 0: as many as training leaves memory for
    config.sampling.threshold = "none"  # static or dynamic: keep the denoiser within the data's range
    config.sampling.quantile = 0.995  # of a sample's entries, which dynamic thresholding rescales into the range
    config.sampling.low_noise = 0.1  # of a cascade: s, noise on what an upsampler is given, in its units
    config.sampling.guidance = ConfigDict()
    config.sampling.guidance.rescale = 0.0  # with --guidance: how far each sample's deviation is brought back (0.7)
    config.sampling.guidance.eta = 1.0  # with --guidance: what is kept of its part along the estimate (APG: 0)
    config.sampling.guidance.radius = 0.0  # with --guidance: largest norm of the estimates' difference; 0: any
    config.sampling.guidance.momentum = 0.0  # with --guidance: of the difference, over steps (APG: -0.75 to 0)
    config.sampling.task = ConfigDict()
    config.sampling.task.noise = 0.05  # of measurements (--mode solve): its deviation, in units of the model
    config.sampling.task.gain = 0.0  # counts for a unit of the model: Poisson noise instead; 0: Gaussian
    config.sampling.task.share = 0.3  # inpaint: of the places, seen; cs: measured values over those of a sample
    config.sampling.task.box = ()  # inpaint: (top, left, bottom, right), hidden instead; outpaint: seen; (): the middle
    config.sampling.task.factor = 2  # superres: each block of so many entries a side is one
    config.sampling.task.blur = 1.0  # deblur: deviation of the kernel, in pixels
    config.sampling.task.length = 5.0  # motion: of the line, in pixels
    config.sampling.task.angle = 45.0  # motion: in degrees, from the horizontal
    config.sampling.task.acceleration = 3.0  # mri: all lines over those that are measured
    config.sampling.task.oversampling = 2.0  # phase: padded size over size
    config.sampling.task.quality = 10  # jpeg: 1 to 100
    config.sampling.method = ConfigDict()
    config.sampling.method.iterations = 3  # mmps: backward passes of an evaluation
    config.sampling.method.zeta = 0.3  # dps: length of a step
    config.sampling.method.strength = 1.0  # diffpir: weight of the model against the measurement
    config.sampling.method.repeats = 5  # repaint: how often each stretch is gone down
    config.sampling.method.jump = 5  # repaint: steps of a stretch
    config.sampling.method.particles = 256  # particles: of each measurement
    config.sampling.compile = False  # compile the network by torch.compile: minutes at first, pays for large networks
    config.sampling.cuda_graph = False  # on CUDA: record a batch's kernels once and replay them for the other batches
    for name, cls in SAMPLERS.items():
        config.sampling[name] = ConfigDict(sampler_options(cls))
    config.sampling.pc.snr = 0.0  # signal-to-noise ratio of a Langevin step; 0: chosen by a pilot run
    config.sampling.pc.corrector_steps = 1  # Langevin steps at each level; 1 with --guidance: chosen by the pilot
