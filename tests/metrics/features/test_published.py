"""Published networks: EfficientNet with its weights, Inception and DINOv2 as far as they can be had here."""

import hashlib
import sys
import types

import pytest
import torch

from scoresde import UsageError
from scoresde.metrics.features import DINOv2Features, EfficientNetFeatures, InceptionFeatures, Levels, inception
from scoresde.networks.efficientnet import EfficientNetLite0, installed, installed_file

with_weights = pytest.mark.skipif(not installed(), reason="needs scoresde[features]")
ESPRESSO, CATS, TRIPOD = {967}, {281, 282, 285}, {872}


def photo(name):
    """The middle of a photo of scikit-image, (1, channels, size, size)."""
    data = pytest.importorskip("skimage.data")
    image = torch.from_numpy(getattr(data, name)())
    image = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
    size = min(image.shape[1:])
    top, left = ((side - size) // 2 for side in image.shape[1:])
    return image[None, :, top : top + size, left : left + size]


@with_weights
@pytest.mark.parametrize(("name", "classes"), [("coffee", ESPRESSO), ("chelsea", CATS), ("camera", TRIPOD)])
def test_efficientnet_knows_photos(name, classes):
    network = EfficientNetFeatures()
    features = network(photo(name))
    assert features.shape == (1, network.num_features)
    assert network.logits(features).argmax().item() in classes


@with_weights
def test_efficientnet_is_the_network_of_its_parts_also_when_they_are_fused():
    network = EfficientNetFeatures()
    from scoresde.metrics.features.images import resized

    plain = EfficientNetLite0().eval()
    plain.load_state_dict(torch.load(installed_file(), weights_only=True))
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        expected = plain.features((resized(images.float(), 224) - 127) / 128)
    found = network(images)
    assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max().item())
    assert torch.equal(network(images[:, :1]), network(images[:, :1].expand(-1, 3, -1, -1)))
    assert network.tag == "efficientnet-lite0-57934424/224-bilinear-antialias/(x-127)/128/pool"
    assert EfficientNetFeatures(Levels(0, 16)).tag == network.tag + "/levels 0 to 16"


def test_other_weights_are_refused(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(EfficientNetLite0().state_dict(), file)
    with pytest.raises(UsageError, match=r"has the checksum .*, and the published weights have 57934424"):
        EfficientNetFeatures(file=file)
    with pytest.raises(UsageError, match=r"has the checksum .*, and the published weights have 6726825d"):
        InceptionFeatures(file)


class StandIn(torch.nn.Module):
    """Of torch-fidelity's network: the same arguments, bytes in, a tuple of 2,048 features out."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048"]
        self.fc = torch.nn.Linear(2048, 1008)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return (x.float().mean((1, 2, 3))[:, None].expand(-1, 2048),)


def test_inception_is_asked_for_bytes_and_gives_unbiased_logits(tmp_path, monkeypatch):
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = StandIn
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    linear = torch.nn.Linear(2048, 1008)
    file = tmp_path / "weights.pth"
    torch.save({f"fc.{name}": value for name, value in linear.state_dict().items()}, file)
    monkeypatch.setattr(inception, "PUBLISHED", hashlib.sha256(file.read_bytes()).hexdigest()[:8])
    network = InceptionFeatures(file, Levels(0.0, 16.0))
    features = network(torch.full((3, 1, 8, 8), 16, dtype=torch.uint8))
    assert features.shape == (3, network.num_features)
    assert features.unique().item() == 255.0
    assert torch.allclose(network.logits(features), features @ linear.weight.mT, rtol=1e-5)


def test_inception_without_its_library_or_from_a_file_that_runs_code(tmp_path, monkeypatch):
    from tests.runs import TakesAFile

    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pth"
    torch.save(TakesAFile(), file)
    monkeypatch.setattr(inception, "PUBLISHED", hashlib.sha256(file.read_bytes()).hexdigest()[:8])
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UsageError, match="features='inception': needs torch-fidelity"):
        InceptionFeatures(file)
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = StandIn
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    with pytest.raises(UsageError, match="cannot be read as weights"):
        InceptionFeatures(file)
    assert not (tmp_path / "made_by_a_pickle").exists()


def test_dinov2_of_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(tmp_path)
    network = DINOv2Features(tmp_path)
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features = network(images)
    assert features.shape == (2, network.num_features) == (2, 32)
    assert not torch.equal(features[0], features[1])
    assert network.tag.startswith("dinov2-32-")
    with pytest.raises(UsageError, match="cannot be read as a DINOv2 model"):
        DINOv2Features(tmp_path / "none")


def test_dinov2_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match="features='dinov2': needs transformers"):
        DINOv2Features(tmp_path)
