"""What the record of a run says of where its model and data come from."""

import json

from logramed.trainer import build_model
from logramed.trainer.checkpoints.provenance import find_base_models, find_phantoms
from logramed.trainer.phantoms import generate_phantoms


def test_base_models_are_followed_from_folder_to_folder(tmp_path):
    joined, trained, unknown = (tmp_path / name for name in ("joined", "trained", "unknown"))
    for folder in (joined, trained, unknown):
        folder.mkdir()
    (joined / "parts.json").write_text(json.dumps({"vision": "openai/clip", "language": "lmsys/vicuna"}))
    (trained / "run.json").write_text(json.dumps({"starts": [{"base_models": find_base_models(str(joined))}]}))
    assert find_base_models(str(trained)) == ["openai/clip", "lmsys/vicuna"]
    assert find_base_models("someone/model") == ["someone/model"]
    assert find_base_models(str(unknown)) == find_base_models(None) == []


def test_joining_models_notes_their_names(tmp_path, monkeypatch):
    class Saved:
        dtype, config = "float32", type("Config", (), {"num_image_tokens": 4})

        def save_pretrained(self, folder):
            folder.mkdir(parents=True, exist_ok=True)

        def num_parameters(self):
            return 1

    monkeypatch.setattr(build_model, "join_models", lambda *arguments, **options: (Saved(), Saved()))
    build_model.main(["--vision", "openai/clip", "--language", "lmsys/vicuna", "--output", str(tmp_path / "new")])
    assert json.loads((tmp_path / "new" / "parts.json").read_text()) == {
        "vision": "openai/clip",
        "language": "lmsys/vicuna",
    }


def test_data_are_known_to_be_phantoms_only_if_all_of_them_are(tmp_path):
    folder = generate_phantoms(tmp_path / "data", num_train=2, num_validation=2, num_test=2, seed=3)
    phantoms = [str(folder / name) for name in ("train.json", "validation.json")]
    assert find_phantoms(phantoms)["arguments"]["seed"] == 3
    assert find_phantoms([*phantoms, str(tmp_path / "other.json")]) is None
    assert find_phantoms([]) is None
