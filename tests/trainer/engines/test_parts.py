import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from logramed import LoGraMedForConditionalGeneration
from logramed.eval.models import load_model
from logramed.trainer import train
from logramed.trainer.engines.parts import (
    PARTS,
    complete_adapters,
    count_trained,
    find_projectors,
    find_tower,
    find_weights,
    freeze_parts,
    parse_parts,
    unquantized_modules,
)
from logramed.trainer.trainer import LoGraMedTrainer
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_inputs
from tests.trainer.test_trainer import arguments, small_model
from tests.vlm_models import tiny_gemma3_model, tiny_llava_model, tiny_qwen2_5_vl_model, tiny_smolvlm_model


pytestmark = pytest.mark.usefixtures("default_text_encoder")


MODELS = [small_model, tiny_llava_model, tiny_qwen2_5_vl_model, tiny_gemma3_model, tiny_smolvlm_model]


def add_adapters(model, parts, target_modules=None):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=target_modules)
    return get_peft_model(model, complete_adapters(config, model, parts))


def changed_weights(model, before):
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


def saved_model(folder):
    """A model and its processor in a folder, as `--model` takes it. Sizes are multiples that 4 bits can hold."""
    model = small_model(vision_sizes={"intermediate_size": 32})
    model.save_pretrained(folder / "base")
    tiny_processor().save_pretrained(folder / "base")
    return folder / "base"


def run(folder, base, data_file, *options, name="run"):
    values = {
        "model": base,
        "train_data": data_file,
        "output_dir": folder / name,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "use_cpu": True,
    }
    argv = [text for key, value in values.items() for text in (f"--{key}", str(value))]
    assert train.main([*argv, *options]) == 0
    return folder / name


def test_parts_are_read_and_others_refused():
    assert parse_parts(None) == ("projector", "language", "vision")
    assert parse_parts(None, use_peft=True) == ("projector", "language")
    assert parse_parts(" projector, vision") == ("projector", "vision")
    with pytest.raises(ValueError, match=r"must name some of projector, language, vision.*'tower'"):
        parse_parts("tower")
    with pytest.raises(ValueError, match="must name some of"):
        parse_parts(",")
    with pytest.raises(ValueError, match="`train` must name `language` and not `vision`; got 'projector'"):
        parse_parts("projector", use_peft=True)


@pytest.mark.parametrize("build", MODELS)
def test_every_weight_of_a_model_belongs_to_one_part(build):
    model = build()
    weights = find_weights(model)
    assert tuple(weights) == PARTS
    assert all(weights.values())
    found = [id(weight) for part in weights.values() for weight in part]
    assert sorted(found) == sorted(id(weight) for weight in model.parameters())


@pytest.mark.parametrize("build", MODELS)
def test_adapters_are_on_the_decoders_linear_layers_alone(build):
    base = build()
    linear = {module for module in base.get_decoder().modules() if isinstance(module, torch.nn.Linear)}
    head = base.get_output_embeddings()
    model = add_adapters(base, ("projector", "language"))
    adapted = {module.base_layer for module in model.modules() if isinstance(module, LoraLayer)}
    assert adapted == linear
    assert head not in adapted
    trained = {part for part, (number, _) in count_trained(model).items() if number}
    assert trained == {"projector", "language"}
    in_tower = {name for name, weight in find_tower(base).named_parameters() if weight.requires_grad}
    assert all("modules_to_save" in name for name in in_tower)


@pytest.mark.parametrize("build", MODELS)
def test_quantized_loading_skips_tower_projector_and_head(build):
    model = build()
    kept = [model.get_submodule(name) for name in unquantized_modules(model)]
    assert {id(module) for module in kept} == {
        id(module) for module in (find_tower(model), *find_projectors(model), model.get_output_embeddings())
    }
    assert not any(module in kept for module in model.get_decoder().modules())


@pytest.mark.parametrize("parts", [("projector",), ("projector", "language"), ("vision",)])
def test_only_the_parts_named_change_in_training(tmp_path, rows, parts):
    model = small_model()
    freeze_parts(model, parts)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = LoGraMedTrainer(model, arguments(tmp_path), processing_class=tiny_processor(), train_dataset=rows)
    trainer.train()
    changed = changed_weights(model, before)
    changed = {id(weight) for name, weight in model.named_parameters() if name in changed}
    found = {part for part, weights in find_weights(model).items() if changed & {id(weight) for weight in weights}}
    assert found == set(parts)
    assert model.model.vision_tower.training == ("vision" in parts)


def test_adapters_leave_all_but_themselves_and_the_projector_alone(tmp_path, rows):
    model = add_adapters(small_model(), ("projector", "language"))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    LoGraMedTrainer(model, arguments(tmp_path), processing_class=tiny_processor(), train_dataset=rows).train()
    changed = changed_weights(model, before)
    assert all("lora_" in name or "modules_to_save" in name for name in changed)
    assert all(any(mark in name for name in changed) for mark in ("lora_B", "multi_modal_projector"))


def test_adapted_layers_are_refused_by_names_that_there_are_not():
    with pytest.raises(ValueError, match="names qkv, but the language model has the linear layers down_proj"):
        add_adapters(small_model(), ("language",), ["qkv"])


@pytest.mark.parametrize("options", [[], ["--load_in_4bit", "true"]])
def test_adapters_are_saved_alone_load_alone_and_answer_as_in_training(tmp_path, data_file, options):
    base = saved_model(tmp_path)
    folder = run(tmp_path, base, data_file, "--use_peft", "true", "--lora_r", "4", *options)
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert all("lora_" in name or "multi_modal_projector" in name for name in names)
    assert not (folder / "model.safetensors").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    loaded = PeftModel.from_pretrained(LoGraMedForConditionalGeneration.from_pretrained(base), folder).eval()
    inputs = tiny_inputs(loaded)
    with torch.no_grad():
        logits = loaded(**inputs).logits
        evaluated = load_model(str(folder))[0](**inputs).logits
        untrained = LoGraMedForConditionalGeneration.from_pretrained(base).eval()(**inputs).logits
        merged = loaded.merge_and_unload()(**inputs).logits
    torch.testing.assert_close(evaluated, logits)
    torch.testing.assert_close(merged, logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(untrained, logits, atol=1e-2)


def test_a_resumed_run_with_adapters_has_the_losses_of_the_uninterrupted_one(tmp_path, data_file):
    base = saved_model(tmp_path)
    options = ["--use_peft", "true", "--lora_dropout", "0.1", "--lr_scheduler_type", "constant"]
    options += ["--alignment_schedule", "constant"]
    whole = run(tmp_path, base, data_file, *options, "--max_steps", "4", name="whole")
    run(tmp_path, base, data_file, *options, "--max_steps", "2", name="parts")
    options += ["--max_steps", "4", "--resume_from_checkpoint", "true"]
    parts = run(tmp_path, base, data_file, *options, name="parts")
    losses = [
        [entry["loss"] for entry in json.loads((folder / "train_metrics.json").read_text())["log_history"][:4]]
        for folder in (whole, parts)
    ]
    assert losses[0] == losses[1]


def test_a_push_uploads_the_adapter_and_no_weights_of_the_base(tmp_path, rows, monkeypatch):
    pushed = []

    def create_repo(self, repo_id, **kwargs):
        return SimpleNamespace(repo_id=repo_id)

    def create_commit(self, operations, **kwargs):
        pushed.extend(operation.path_in_repo for operation in operations)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    model = add_adapters(small_model(), ("projector", "language"))
    trainer = LoGraMedTrainer(model, arguments(tmp_path), processing_class=tiny_processor(), train_dataset=rows)
    trainer.model.push_to_hub("someone/adapter", token="none")
    assert "adapter_model.safetensors" in pushed
    assert "adapter_config.json" in pushed
    assert not any(name.startswith("model") for name in pushed)


def test_numbers_of_trained_weights_are_told_by_part(tmp_path, data_file, capsys):
    run(tmp_path, saved_model(tmp_path), data_file, "--train", "projector", "--alignment_weight", "0")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Trained: projector"))
    model = small_model()
    freeze_parts(model, ("projector",))
    trained, total = count_trained(model)["projector"]
    assert trained == total == sum(weight.numel() for weight in model.model.multi_modal_projector.parameters())
    assert f"projector {trained:,} of {total:,}, language 0 of" in line


def test_four_bits_without_adapters_are_refused():
    with pytest.raises(ValueError, match="`load_in_4bit` needs `use_peft`"):
        train.parse_arguments(["--model", "any", "--train_data", "any", "--load_in_4bit", "true"])
