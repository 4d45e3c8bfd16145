"""Bad configurations, command lines and checkpoints: one line of `UsageError` or something that works, nothing else."""

from __future__ import annotations

import contextlib
import copy
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes

from scoresde import checkpoint, registry
from scoresde.app.config import load_config, of_checkpoint, override
from scoresde.app.files import flat
from scoresde.data import ArrayData
from scoresde.data.info import DataInfo
from scoresde.errors import UsageError
from scoresde.noise import BatchNoise
from scoresde.objective import Batch
from sde_configs import build
from tests.checkpoints import make_model

NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([10**15, -(10**18), 2**63, 2**64, 1e308, -0.0, 1e-320]),
    st.floats(allow_nan=True, allow_infinity=True, width=32).filter(lambda v: not 40 < abs(v) < 1e9),
)  # nothing that would only be large: a network of a million channels is no mistake that can be told from a wish
LEAVES = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(list(registry.classes(object)))
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=8,
)
TRAIN = ArrayData(torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3)
PLAIN = json.loads(load_config("vp", None).to_json())
SMALL = {"network.channels": 4, "network.multipliers": [1]}


def examples(count):
    """Hypothesis with a fixed course; a second for an example is a hang."""
    return settings(
        max_examples=count, deadline=10_000, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


def answered(action):
    """Runs it; a mistake must be told in one line that can be printed."""
    with contextlib.suppress(UsageError):  # which is one line by its making
        action()


def put(tree, path, value):
    """Sets the value at a dotted path, making what is missing on the way."""
    *way, last = path.split(".")
    for key in way:
        tree = tree.setdefault(key, {}) if isinstance(tree, dict) else {}
    if isinstance(tree, dict):
        tree[last] = value


def paths(tree):
    """Places in a description: its fields, its sections, and some that do not exist."""
    fields = list(flat(tree))
    sections = sorted({field.rpartition(".")[0] for field in fields} - {""})
    return st.sampled_from([*fields, *sections, "new", "sde.new", "network.new.newer"])


def build_all(config):
    """What training makes of a configuration before its first step."""
    model = build.build_model(config, TRAIN)
    objective = build.build_objective(config)
    build.build_options(config)
    for name in build.SAMPLERS:
        build.build_sampler(config, name, None)
    batch = Batch(TRAIN.values[:4], TRAIN.labels[:4])
    draws = objective.draw(model, batch, BatchNoise(0, 0, 4, torch.arange(4)))
    assert {len(draw) for draw in draws.values()} == {4}


def fuzz_configs(folder, count):
    path = folder / "c.json"

    @examples(count)
    @given(st.lists(st.tuples(paths(PLAIN), JSON), min_size=1, max_size=3))
    def run(changes):
        config = copy.deepcopy(PLAIN)
        for place, value in [*SMALL.items(), *changes]:
            put(config, place, value)
        path.write_text(json.dumps(config))
        answered(lambda: build_all(load_config(None, str(path))))

    run()


def fuzz_config_bytes(folder, count):
    path = folder / "c.json"
    sound = json.dumps(PLAIN).encode()

    @examples(count)
    @given(st.one_of(st.binary(max_size=200), st.tuples(st.integers(0, len(sound)), st.binary(max_size=6))))
    def run(damage):
        content = damage if isinstance(damage, bytes) else sound[: damage[0]] + damage[1] + sound[damage[0] + 3 :]
        path.write_bytes(content)
        answered(lambda: load_config(None, str(path)))

    run()


def fuzz_command_lines(folder, count):
    field = st.sampled_from([f"--config.{name}" for name in flat(PLAIN)])
    word = st.one_of(field, st.just("--config"), st.text(max_size=10), st.text(max_size=6).map(lambda s: f"--{s}"))
    value = st.one_of(st.text(max_size=12), NUMBERS.map(str), JSON.map(lambda v: json.dumps(v)), st.just("(1, 2"))

    @examples(count)
    @given(st.lists(st.one_of(word, st.tuples(word, value).map(lambda p: f"{p[0]}={p[1]}"), value), max_size=4))
    def run(arguments):
        config = load_config("vp", None)
        config.network.channels = 4
        answered(lambda: (override(config, arguments), build_all(config)))

    run()


def run_checkpoint():
    """Header and tensors of a run's checkpoint."""
    model = make_model()
    tensors = {f"ema.score.{name}": value for name, value in checkpoint.model_state(model).items()}
    info = DataInfo(-1.5, 2.0, 3, ("ant", "bee", "cat"), False, "some digest").to_json()
    models = {"score": checkpoint.describe_model(model)}
    return json.loads(json.dumps({"models": models, "data": info, "config": PLAIN})), tensors


def use(path):
    """What sampling reads of a checkpoint."""
    loaded = checkpoint.load(path)
    loaded.model()
    DataInfo.from_json(loaded.description.get("data", {}), "checkpoint")
    of_checkpoint(loaded.description.get("config", {}))


def fuzz_headers(folder, count):
    """The checksum fits, unless it is itself what is changed."""
    path = folder / "step-1.safetensors"
    description, tensors = run_checkpoint()
    header = {"format": checkpoint.FORMAT, "step": 1, "digest": ""} | description

    @examples(count)
    @given(st.lists(st.tuples(paths(header), JSON), min_size=1, max_size=3))
    def run(changes):
        changed = copy.deepcopy(header)
        for place, value in changes:
            put(changed, place, value)
        if changed.get("digest") == "":
            changed["digest"] = checkpoint.digest(tensors, changed)
        path.write_bytes(to_bytes(tensors, {"scoresde": json.dumps(changed)}))
        answered(lambda: use(path))

    run()


def fuzz_checkpoint_bytes(folder, count):
    path = folder / "step-1.safetensors"
    description, tensors = run_checkpoint()
    checkpoint.save(path, 1, description, tensors)
    use(path)  # which is sound
    sound = path.read_bytes()
    near_the_head = st.integers(0, 6000)

    @examples(count)
    @given(
        st.one_of(near_the_head, st.integers(0, len(sound))),
        st.binary(max_size=8),
        st.sampled_from(["replace", "insert", "cut"]),
    )
    def run(at, new, kind):
        tail = {"replace": sound[at + len(new) :], "insert": sound[at:], "cut": b""}[kind]
        path.write_bytes(sound[:at] + new + tail)
        answered(lambda: use(path))

    run()


FUZZERS = [fuzz_configs, fuzz_config_bytes, fuzz_command_lines, fuzz_headers, fuzz_checkpoint_bytes]


@pytest.mark.parametrize("fuzz", FUZZERS)
def test_bad_input_is_answered(tmp_path, fuzz):
    fuzz(tmp_path, 60)


@pytest.mark.slow
@pytest.mark.parametrize("fuzz", FUZZERS)
def test_much_bad_input_is_answered(tmp_path, fuzz):
    fuzz(tmp_path, 2500)
