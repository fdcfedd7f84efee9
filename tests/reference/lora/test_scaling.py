"""The scale of an adapter: against PEFT's merge of what its `save_pretrained` writes, and settings that are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.lora.adapter import Adapter
from qwen_image_engine.reference.lora.file import LoraFile
from tests.support.edit_checkpoint import edit_json, edit_tensors
from tests.support.lora import factors, write_lora
from tests.support.oracles import load_transformer

TARGETS = ["to_q", "to_k", "to_out.0", "img_mlp.proj", "img_in"]
RANKS = {"to_k": 2, r"^transformer_blocks.0.attn.to_q": 8, r"\w+\.1\.attn\.(to_q|to_out.0)": 3}
ALPHAS = {"to_[qk]": 2.0, r"^img_in": 9.0, "1.attn.to_out.0": 5.0}


@pytest.fixture(scope="module")
def peft_folder(random_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> Callable[..., tuple[Path, Any]]:
    """`peft_folder(**settings) -> (folder, weights)`: what PEFT saves, and what PEFT merges."""
    from peft import LoraConfig, get_peft_model

    def folder(**settings: Any) -> tuple[Path, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        config = LoraConfig(target_modules=TARGETS, init_lora_weights=False, **settings)
        model = get_peft_model(load_transformer(random_checkpoint()), config)
        path = tmp_path_factory.mktemp("peft")
        model.save_pretrained(path)
        return path, model.merge_and_unload().state_dict()

    return folder


def opened(checkpoint: Path, path: Path, scale: float = 1.0) -> tuple[Adapter, dict[str, torch.Tensor]]:
    found = Checkpoint.open(checkpoint, loras=[LoraFile(path, scale)])
    component = found.components["transformer"]
    return found.adapters[0], {name: component.read(name) for name in component.tensors}


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 16},
        {"r": 4, "lora_alpha": 6, "rank_pattern": RANKS, "alpha_pattern": ALPHAS},
        {"r": 4, "lora_alpha": 3, "use_rslora": True, "rank_pattern": {"to_q": 9}},
        {"r": 4, "lora_alpha": 3, "fan_in_fan_out": True},  # PEFT takes it back for linears
    ],
    ids=["plain", "patterns", "rank-stabilised", "fan-in"],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True:UserWarning")
def test_weights_are_those_that_peft_merges(
    random_checkpoint: Callable[..., Path],
    peft_folder: Callable[..., tuple[Path, Any]],
    settings: dict[str, Any],
    within: Callable[[str, float, float], None],
) -> None:
    folder, expected = peft_folder(**settings)
    adapter, found = opened(random_checkpoint(), folder)
    assert (adapter.writers, adapter.notes) == (("PEFT",), ())
    assert adapter.scale_from == "in adapter_config.json beside it"
    for name, tensor in expected.items():
        # Both add in float32, PEFT whole matrices at a time.
        within("merged_relative_l2", float((found[name] - tensor).norm() / tensor.norm()), 1e-7)
    _, of_file = opened(random_checkpoint(), folder / "adapter_model.safetensors")
    assert all(torch.equal(of_file[name], found[name]) for name in found)


def test_settings_count_in_the_identity(
    random_checkpoint: Callable[..., Path], peft_folder: Callable[..., tuple[Path, Any]]
) -> None:
    folder, _ = peft_folder(r=4, lora_alpha=16)
    before = Checkpoint.open(random_checkpoint(), loras=[LoraFile(folder)])
    assert before.name == f"{random_checkpoint().name} + {folder.name}"
    assert [file.name for file in before.weight_files[-2:]] == ["adapter_model.safetensors", "adapter_config.json"]
    identity = before.weights_sha256()
    edit_json(folder / "adapter_config.json", "lora_alpha", value=8)
    after = Checkpoint.open(random_checkpoint(), loras=[LoraFile(folder)])
    assert after.adapters[0].factors == (2.0,)
    assert after.weights_sha256() != identity


def test_keys_without_their_prefix_keep_their_settings(
    random_checkpoint: Callable[..., Path], peft_folder: Callable[..., tuple[Path, Any]]
) -> None:
    folder, _ = peft_folder(r=4, lora_alpha=16)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {key.removeprefix("base_model.model."): item for key, item in tensors.items()}, folder / "bare.safetensors"
    )
    adapter, _ = opened(random_checkpoint(), folder / "bare.safetensors")
    assert (adapter.writers, adapter.factors, adapter.notes) == (("no prefix",), (4.0,), ())


def test_settings_of_a_neighbour_do_not_count(
    random_checkpoint: Callable[..., Path], peft_folder: Callable[..., tuple[Path, Any]]
) -> None:
    folder, _ = peft_folder(r=4, lora_alpha=16)
    updates = factors(random_checkpoint())
    for name, alpha in (("transformer.{}", None), ("transformer.{}", 2.0), ("{}", 2.0)):
        path = write_lora(folder / "neighbour.safetensors", updates, name=name.format, alpha=alpha)
        assert opened(random_checkpoint(), path)[0].factors == (1.0 if alpha is None else alpha / 4,)


def test_scale_that_cannot_be_known(
    random_checkpoint: Callable[..., Path], peft_folder: Callable[..., tuple[Path, Any]]
) -> None:
    folder, _ = peft_folder(r=4, lora_alpha=16)
    weights = folder / "adapter_model.safetensors"
    query = "base_model.model.transformer_blocks.0.attn.to_q"
    for change, word in (
        (
            lambda: edit_json(folder / "adapter_config.json", "r", value=8),
            "adapter_config.json: gives .* rank 8, and its weights have rank 4: the settings are of another adapter",
        ),
        (
            lambda: edit_tensors(weights, lambda tensors: tensors.update({f"{query}.alpha": torch.tensor(2.0)})),
            r"alpha is in '.*to_q\.alpha' and in adapter_config.json, expected one of them",
        ),
        (
            lambda: (folder / "adapter_config.json").unlink(),
            "PEFT's save_pretrained, which writes the scale to adapter_config.json, and that file is not beside it",
        ),
    ):
        change()
        with pytest.raises(QwenImageError, match=word):
            opened(random_checkpoint(), folder)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "LoKr": ({"peft_type": "LOKR"}, 'key \'peft_type\' is "LOKR", expected "LORA": adapters of the kind LoKr cannot'),
    "LoHa": ({"peft_type": "LOHA"}, "adapters of the kind LoHa cannot be merged here"),
    "VeRA": ({"peft_type": "VERA"}, "adapters of the kind VERA cannot be merged here"),
    "no text": ({"peft_type": 3}, "key 'peft_type' is 3, expected"),
    "DoRA": ({"use_dora": True}, "key 'use_dora' is true, expected no such setting: adapters of the kind DoRA cannot"),
    "biases": ({"lora_bias": True}, "adapters of the kind LoRA with biases cannot be merged here"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, "adapters of the kind aLoRA cannot be merged here"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "PEFT's path_initial_model_for_weight_conversion"),
    "backtracking": ({"alpha_pattern": {"(.+)+x": 2}}, 'has the key "(.+)+x", expected a regular expression with at'),
    "many repetitions": ({"rank_pattern": {".*.*.*.*.*x": 2}}, "with at most 4 repetitions and groups"),
    "no pattern": ({"rank_pattern": {"[": 2}}, "key 'rank_pattern' has the key \"[\", expected a regular expression ("),
    "no rank": ({"r": 0}, "key 'r' is 0, expected a positive number"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_settings_that_are_refused(random_checkpoint: Callable[..., Path], tmp_path: Path, name: str) -> None:
    settings, word = REFUSED[name]
    write_lora(tmp_path / "adapter_model.safetensors", factors(random_checkpoint()), name="base_model.model.{}".format)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, **settings}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(QwenImageError) as raised:
        opened(random_checkpoint(), tmp_path)
    assert word in str(raised.value)
    assert str(tmp_path / "adapter_config.json") in str(raised.value)
