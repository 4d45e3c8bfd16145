"""Folders with a card; the hub itself is not at hand."""

import re

import huggingface_hub
import pytest
import torch

import samplers
from scoresde import VPSDE, EDMParametrization, NetworkScoreModel, Scaling, UNet, UsageError
from scoresde.interop import from_pretrained, push_to_hub, save_pretrained


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = UNet(1, 8, num_classes=3)
    return NetworkScoreModel(network, VPSDE(), EDMParametrization(0.6), (1, 4, 4), Scaling(127.5, 127.5)).eval()


def test_a_folder_gives_the_model_back_and_its_card_runs(tmp_path, model, monkeypatch):
    save_pretrained(model, tmp_path / "digits", description="Digits.", license="mit")
    card = (tmp_path / "digits" / "README.md").read_text()
    assert "license: mit" in card
    assert "1,0" not in card.splitlines()[0]
    assert f"{sum(p.numel() for p in model.network.parameters()):,} parameters" in card
    back = from_pretrained(tmp_path / "digits")
    x, t, y = torch.randn(2, 1, 4, 4), torch.tensor([0.2, 0.8]), torch.tensor([0, 2])
    assert torch.equal(back.denoise(x, t, y), model.denoise(x, t, y))
    monkeypatch.chdir(tmp_path)
    scope = {"samplers": samplers}
    exec(re.search(r"```python\n(.*?)```", card, flags=re.S)[1], scope)
    assert scope["images"].shape == (16, 1, 4, 4)


def test_a_model_is_uploaded_with_its_card(tmp_path, model, monkeypatch):
    seen = {}

    class Hub:
        def create_repo(self, name, private, exist_ok):
            seen["made"] = (name, private, exist_ok)

        def upload_folder(self, repo_id, folder_path):
            seen["files"] = sorted(path.name for path in folder_path.iterdir())
            seen["card"] = (folder_path / "README.md").read_text()
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert push_to_hub(model, "me/digits", private=True) == "https://hub/me/digits"
    assert seen["made"] == ("me/digits", True, True)
    assert seen["files"] == ["README.md", "model.safetensors"]
    assert 'from_pretrained("me/digits")' in seen["card"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path, model):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match=r"folder='.*taken': cannot be made \(File exists\); choose another"):
        save_pretrained(model, tmp_path / "taken")


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no model\.safetensors"):
        from_pretrained(tmp_path / "empty")

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UsageError, match=r"not to be had from the hub \(no network\)"):
        from_pretrained("me/none")
