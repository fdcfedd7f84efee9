"""Adapters merged into the transformer: against diffusers with PEFT, and every refusal by name."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import load_network
from qwen_image_engine.reference.lora.file import LoraFile
from qwen_image_engine.reference.storage import tensor_blocks
from tests.support.edit_checkpoint import edit_tensors
from tests.support.lora import LINEARS, factors, flat, weights, write_lora
from tests.support.oracles import load_pipeline
from tests.support.single_file import write_single_file

COMFY = "diffusion_model.{}".format
BARE = "{}".format
KOHYA = (".lora_down.weight", ".lora_up.weight")
CONFIG = {"r": 4, "lora_alpha": 6, "target_modules": [*LINEARS], "rank_pattern": {}, "alpha_pattern": {}}

SPELLINGS: dict[str, dict[str, Any]] = {
    "diffusers": {},
    "diffusers, alpha in the metadata": {"config": CONFIG},
    "diffusers, alpha by pattern": {
        "config": {**CONFIG, "alpha_pattern": {"0.attn.to_q": 3.0, "to_[qk]": 2.0, "img_mlp.out": 9.0}}
    },
    "diffusers, rank-stabilised": {"config": {**CONFIG, "use_rslora": True}},
    "PEFT's default adapter": {"name": BARE, "endings": (".lora_A.default.weight", ".lora_B.default.weight")},
    "ComfyUI": {"name": COMFY},
    "ComfyUI, alpha": {"name": COMFY, "alpha": 2.0},
    "no prefix, alpha": {"name": BARE, "endings": KOHYA, "alpha": 8.0},
    "kohya": {"name": flat, "endings": KOHYA, "alpha": 1.0},
}


def merged(checkpoint: Path, *loras: LoraFile, **options: Any) -> dict[str, torch.Tensor]:
    component = Checkpoint.open(checkpoint, loras=loras, **options).components["transformer"]
    return {name: component.read(name) for name in component.tensors}


@pytest.fixture
def lora(random_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return write_lora(tmp_path / "style.safetensors", factors(random_checkpoint()))


@pytest.mark.parametrize("spelling", list(SPELLINGS))
def test_weights_are_those_that_diffusers_fuses(
    random_checkpoint: Callable[..., Path], tmp_path: Path, spelling: str, within: Callable[[str, float, float], None]
) -> None:
    folder, options = random_checkpoint(), SPELLINGS[spelling]
    # diffusers takes gate_layer for two words in kohya's spelling.
    linears = [name for name in LINEARS if options.get("name") is not flat or "gate" not in name]
    path = write_lora(tmp_path / "style.safetensors", factors(folder, linears), **options)
    pipeline = load_pipeline(folder)
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora(lora_scale=0.7)
    pipeline.unload_lora_weights()
    expected = pipeline.transformer.state_dict()
    found, stored = merged(folder, LoraFile(path, 0.7)), weights(folder)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        changed = name.removesuffix(".weight").endswith(tuple(linears))
        assert torch.equal(tensor, stored[name]) != changed, name
        # Both add in float32; the products are summed in another order.
        error = (found[name] - tensor).norm() / tensor.norm()
        within("merged_relative_l2", float(error), 3e-7)


def test_every_linear_has_a_name_in_every_spelling(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = random_checkpoint()
    linears = [name.removesuffix(".weight") for name, tensor in weights(folder).items() if tensor.dim() == 2]
    updates = factors(folder, linears)
    assert {"img_in", "modulation.1", "txt_in.in_layer", "proj_out"} < updates.keys()
    found = [
        merged(folder, LoraFile(write_lora(tmp_path / f"{index}.safetensors", updates, name=name, endings=endings)))
        for index, (name, endings) in enumerate(
            [("transformer.{}".format, KOHYA), (flat, KOHYA), (BARE, (".lora.down.weight", ".lora.up.weight"))]
        )
    ]
    for name, tensor in weights(folder).items():
        if name.removesuffix(".weight") in updates:
            down, up = updates[name.removesuffix(".weight")]
            torch.testing.assert_close(found[0][name], tensor + up @ down, rtol=1e-6, atol=1e-6)
        assert all(torch.equal(other[name], found[0][name]) for other in found[1:])


@pytest.mark.parametrize("name", [COMFY, flat])
def test_stacked_gate_and_up_rows(
    random_checkpoint: Callable[..., Path], tmp_path: Path, name: Callable[[str], str]
) -> None:
    folder = random_checkpoint()
    gate, up = "transformer_blocks.1.img_mlp.gate_layer", "transformer_blocks.1.img_mlp.proj"
    updates = factors(folder, [gate, up])
    (down, gate_rows), (_, up_rows) = updates[gate], updates[up]
    stacked = {"transformer_blocks.1.img_mlp.gate_up": (down, torch.cat([gate_rows, up_rows]))}
    path = write_lora(tmp_path / "stacked.safetensors", stacked, name=name, alpha=8.0)
    apart = write_lora(tmp_path / "apart.safetensors", {gate: (down, gate_rows), up: (down, up_rows)}, alpha=8.0)
    found, expected = merged(folder, LoraFile(path)), merged(folder, LoraFile(apart))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    single = write_single_file(folder, tmp_path / "comfy.safetensors")
    in_single = merged(folder, LoraFile(path), transformer_file=single)
    assert all(torch.equal(in_single[key], expected[key]) for key in expected)


def test_several_add_up_in_float32(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = random_checkpoint(dtype="bfloat16")
    first, second = factors(folder, ["to_q"]), factors(folder, ["to_q", "to_k"], rank=2, seed=1)
    half = {linear: (down.bfloat16(), up.bfloat16()) for linear, (down, up) in second.items()}
    loras = [
        LoraFile(write_lora(tmp_path / "first.safetensors", first), 0.5),
        LoraFile(write_lora(tmp_path / "second.safetensors", half, alpha=4.0), -1.5),
    ]
    found = merged(folder, *loras)
    for name, stored in weights(folder).items():
        expected, linear = stored.float(), name.removesuffix(".weight")
        if linear in first:
            expected = expected + 0.5 * first[linear][1] @ first[linear][0]
        if linear in half:
            expected = expected - 1.5 * 2 * half[linear][1].float() @ half[linear][0].float()
        assert found[name].dtype == (torch.float32 if linear in second else torch.bfloat16)
        torch.testing.assert_close(found[name].float(), expected, rtol=1e-6, atol=1e-6)
    network = load_network(Checkpoint.open(folder, loras=loras), "transformer", torch.bfloat16)
    query = "transformer_blocks.0.attn.to_q.weight"
    assert torch.equal(network.get_parameter(query), found[query].bfloat16())  # rounded once


def test_rows_are_merged_a_few_at_a_time(
    random_checkpoint: Callable[..., Path], lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = merged(random_checkpoint(), LoraFile(lora))
    monkeypatch.setattr(tensor_blocks, "ROW_BLOCK_BYTES", 7 * 96 * 4)  # 96 rows are no multiple of 7
    component = Checkpoint.open(random_checkpoint(), loras=[LoraFile(lora)]).components["transformer"]
    query = component.tensors["transformer_blocks.0.attn.to_q.weight"]
    blocks = [len(block) for block in tensor_blocks.tensor_blocks(query)]
    assert blocks == [7 * 96 * 4] * 13 + [5 * 96 * 4]
    streamed = torch.cat([rows.clone() for rows in tensor_blocks.row_blocks(query)])
    assert torch.equal(streamed, component.read(query.name))
    torch.testing.assert_close(streamed, whole[query.name], rtol=1e-6, atol=1e-6)


def test_identity_covers_files_scales_and_their_order(
    random_checkpoint: Callable[..., Path], lora: Path, tmp_path: Path
) -> None:
    folder = random_checkpoint()
    other = write_lora(tmp_path / "other.safetensors", factors(folder, seed=1))
    ways = [(), (LoraFile(lora),), (LoraFile(lora, 0.5),), (LoraFile(other),)]
    ways += [(LoraFile(lora), LoraFile(other)), (LoraFile(other), LoraFile(lora)), (LoraFile(lora), LoraFile(lora))]
    opened = [Checkpoint.open(folder, loras=way) for way in ways]
    assert len({checkpoint.weights_sha256() for checkpoint in opened}) == len(ways)
    assert len({checkpoint.config_sha256() for checkpoint in opened}) == 1
    assert opened[0].weights_sha256() == Checkpoint.open(folder).weights_sha256()
    assert opened[2].name == f"{folder.name} + style.safetensors:0.5"
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(lora.read_bytes())
    assert Checkpoint.open(folder, loras=[LoraFile(moved)]).weights_sha256() == opened[1].weights_sha256()
    plain, changed = opened[0].components["transformer"], opened[1].components["transformer"]
    assert (changed.nbytes, changed.dtypes, list(changed.tensors)) == (plain.nbytes, plain.dtypes, list(plain.tensors))


@pytest.mark.process
def test_opening_needs_no_torch(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = write_lora(tmp_path / "style.safetensors", factors(random_checkpoint()), alpha=2.0)
    script = (
        "import sys\n"
        "from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint\n"
        "from qwen_image_engine.reference.lora.file import LoraFile\n"
        "Checkpoint.open(sys.argv[1], loras=[LoraFile.parse(sys.argv[2])])\n"
        "print('torch' in sys.modules)\n"
    )
    words = [sys.executable, "-c", script, str(random_checkpoint()), f"{path}:0.5"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_file_and_scale(tmp_path: Path) -> None:
    assert LoraFile.parse("a/b.safetensors") == LoraFile(Path("a/b.safetensors"), 1.0)
    assert LoraFile.parse("b.safetensors:0.8") == LoraFile(Path("b.safetensors"), 0.8)
    assert LoraFile.parse("b.safetensors:-1") == LoraFile(Path("b.safetensors"), -1.0)
    assert LoraFile.parse("b:strong") == LoraFile(Path("b:strong"), 1.0)
    assert str(LoraFile.parse("b.safetensors:0.8")) == "b.safetensors:0.8"
    (tmp_path / "b:2").touch()
    assert LoraFile.parse(f"{tmp_path}/b:2") == LoraFile(tmp_path / "b:2")
    for number in ("nan", "inf", "-inf"):
        with pytest.raises(UsageError, match=f"the scale is {number}, expected a finite number"):
            LoraFile.parse(f"b.safetensors:{number}")


QUERY = "transformer.transformer_blocks.0.attn.to_q"
DOWN, UP = f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight"
Change = Callable[[dict[str, torch.Tensor]], object]


def added(key: str, *shape: int) -> Change:
    return lambda tensors: tensors.update({key: torch.ones(shape)})


def replaced(key: str, value: torch.Tensor) -> Change:
    return lambda tensors: tensors.update({key: value})


REFUSED: dict[str, tuple[Change, str]] = {
    "an unknown form": (added(f"{QUERY}.lora_C.weight", 4, 4), f"1 of no form that is known ({QUERY}.lora_C.weight)"),
    "another layer": (
        added("transformer.transformer_blocks.7.attn.to_q.lora_A.weight", 4, 96),
        "1 of no linear of the transformer (transformer.transformer_blocks.7.attn.to_q.lora_A.weight)",
    ),
    "another network": (
        added("unet.layers.0.q_proj.lora_A.weight", 4, 96),
        "1 of no linear of the transformer (unet.layers.0.q_proj.lora_A.weight)",
    ),
    "a norm": (
        added("transformer.transformer_blocks.0.attn.norm_q.lora_A.weight", 4, 32),
        "1 of no linear of the transformer (transformer.transformer_blocks.0.attn.norm_q.lora_A.weight)",
    ),
    "half a pair": (lambda tensors: tensors.pop(UP), f"1 without a counterpart ({DOWN})"),
    "alpha alone": (
        lambda tensors: (tensors.pop(UP), tensors.pop(DOWN), tensors.update({f"{QUERY}.alpha": torch.tensor(2.0)})),
        f"1 without a counterpart ({QUERY}.alpha)",
    ),
    "two spellings": (
        added("diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight", 4, 96),
        "1 that are there in another spelling (",
    ),
    "stacked and apart": (
        lambda tensors: tensors.update(
            {
                "transformer_blocks.0.img_mlp.gate_up.lora_A.weight": torch.ones(4, 96),
                "transformer_blocks.0.img_mlp.gate_up.lora_B.weight": torch.ones(576, 4),
            }
        ),
        "are of one weight",
    ),
    "another width": (replaced(DOWN, torch.ones(4, 64)), f"'{DOWN}' is (4, 64), expected (rank, 96)"),
    "other rows": (replaced(UP, torch.ones(64, 4)), f"'{UP}' is (64, 4), expected (96, 4)"),
    "two ranks": (replaced(UP, torch.ones(96, 8)), f"'{UP}' is (96, 8), expected (96, 4)"),
    "a convolution": (replaced(DOWN, torch.ones(4, 96, 1, 1)), f"'{DOWN}' is (4, 96, 1, 1), expected (rank, 96)"),
    "no rank": (replaced(DOWN, torch.ones(0, 96)), f"'{DOWN}' is (0, 96), expected (rank, 96)"),
    "integers": (
        replaced(DOWN, torch.ones(4, 96).to(torch.int8)),
        f"'{DOWN}' has dtype I8, expected one of F64, F32, BF16, F16, F8_E4M3, F8_E5M2",
    ),
    "alphas": (added(f"{QUERY}.alpha", 2), f"'{QUERY}.alpha' is F32 (2,), expected one number"),
    "alpha is no number": (
        replaced(f"{QUERY}.alpha", torch.tensor(float("nan"))),
        f"'{QUERY}.alpha' is nan, expected a finite number",
    ),
    "nothing": (lambda tensors: tensors.clear(), "holds no tensors, expected low-rank updates"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refusals(random_checkpoint: Callable[..., Path], lora: Path, name: str) -> None:
    change, word = REFUSED[name]
    edit_tensors(lora, change)
    with pytest.raises(QwenImageError) as raised:
        Checkpoint.open(random_checkpoint(), loras=[LoraFile(lora)])
    assert str(lora) in str(raised.value)
    assert word in str(raised.value)


@pytest.mark.parametrize(
    ("metadata", "word"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"transformer.r": 4}', "key 'lora_alpha' is missing"),
        ('{"lora_alpha": -2}', "key 'lora_alpha' is -2, expected a positive number"),
        ('{"lora_alpha": 2, "use_dora": true}', "cannot be merged here"),
        (
            '{"lora_alpha": 2, "alpha_pattern": {"(": 2}}',
            'has the key "(", expected a regular expression',
        ),
        ('{"lora_alpha": 2, "alpha_pattern": [2]}', "key 'alpha_pattern' is [2], expected an object"),
        (
            '{"lora_alpha": 2, "alpha_pattern": {"to_q": NaN}}',
            "'alpha_pattern'.to_q is nan, expected a finite number",
        ),
    ],
)
def test_misshapen_settings(random_checkpoint: Callable[..., Path], tmp_path: Path, metadata: str, word: str) -> None:
    path = tmp_path / "style.safetensors"
    save_file({DOWN: torch.ones(4, 96), UP: torch.ones(96, 4)}, path, {"lora_adapter_metadata": metadata})
    with pytest.raises(QwenImageError) as raised:
        Checkpoint.open(random_checkpoint(), loras=[LoraFile(path)])
    assert word in str(raised.value)


def test_two_alphas(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = write_lora(tmp_path / "style.safetensors", factors(random_checkpoint()), alpha=2.0, config=CONFIG)
    with pytest.raises(QwenImageError, match=r"alpha is in '.*\.alpha' and in lora_adapter_metadata, expected one"):
        Checkpoint.open(random_checkpoint(), loras=[LoraFile(path)])


def test_files_that_are_none(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("none")
    for path, word in (
        (tmp_path / "absent.safetensors", "does not exist, expected an adapter as PATH or PATH:SCALE"),
        (tmp_path, "is a folder with neither .*; expected an adapter"),
        (tmp_path / "text.safetensors", "not a safetensors file"),
    ):
        with pytest.raises(QwenImageError, match=word):
            Checkpoint.open(random_checkpoint(), loras=[LoraFile(path)])


def test_values_that_are_not_finite(random_checkpoint: Callable[..., Path], lora: Path) -> None:
    edit_tensors(lora, lambda tensors: tensors[UP].fill_(float("inf")))
    with pytest.raises(QwenImageError, match=rf"'{UP}' has values that are not finite"):
        merged(random_checkpoint(), LoraFile(lora))


def test_a_weight_of_another_dtype_is_no_base(
    random_checkpoint: Callable[..., Path], tmp_path: Path, lora: Path
) -> None:
    single = write_single_file(random_checkpoint(), tmp_path / "fp64.safetensors")
    key = "model.diffusion_model.transformer_blocks.0.attn.to_q.weight"
    edit_tensors(single, lambda tensors: tensors.update({key: tensors[key].double()}))
    checkpoint = Checkpoint.open(random_checkpoint(), transformer_file=single, loras=[LoraFile(lora)])
    with pytest.raises(QwenImageError, match=r"to_q\.weight' has dtype F64, expected BF16, F16 or F32"):
        load_network(checkpoint, "transformer")
