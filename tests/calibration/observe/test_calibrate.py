"""A calibration against activations that hooks of this file's own collect, and one that was interrupted."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from qwen_image_engine.calibration.observe import calibrate as calibrate_module
from qwen_image_engine.calibration.observe.calibrate import HASHING, LOCK, SAMPLING, calibrate
from qwen_image_engine.calibration.observe.partial import PARTIAL
from qwen_image_engine.calibration.observe.record import RECORD, TENSORS, Calibration
from qwen_image_engine.calibration.observe.statistics import RESOLUTION
from qwen_image_engine.calibration.observe.trajectories import Trajectories
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.networks.text_encoder import TextEncoder
from qwen_image_engine.reference.networks.transformer import Transformer
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.system.folder_lock import locked
from tests.support.small_calibration import PROMPTS, SETTINGS

Seen = dict[str, dict[str, list[tuple[int, torch.Tensor]]]]
"""By component and activation: step, rows."""

IN_BLOCK = {
    "text_encoder": ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"),
    "transformer": ("attn.to_q", "attn.to_out.0", "img_mlp.proj", "img_mlp.out"),
}


@pytest.fixture(scope="module")
def seen(shapes: Path) -> Iterator[Seen]:
    """Every linear's input, and the values, as the reference pipeline draws what the calibration draws."""
    found: Seen = {"text_encoder": {}, "prefix": {}, "step": {}}
    running: list[tuple[str, str, dict[torch.nn.Module, str]]] = []
    steps = {"taken": 0}

    def inside(component: str, prefix: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
            running.append((component, prefix, {module: name for name, module in self.named_modules()}))
            result = method(self, *arguments, **options)
            running.pop()
            steps["taken"] += component == "step"
            return result

        return run

    def collect(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if running and isinstance(module, torch.nn.Linear):
            component, prefix, names = running[-1]
            step = steps["taken"] // 2 if component == "step" else 0  # two branches
            name = prefix + names[module]
            found[component].setdefault(name, []).append((step, inputs[0].flatten(0, -2).clone()))
            found[component].setdefault(f"{name}.output", []).append((step, output.flatten(0, -2).clone()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextEncoder, "forward", inside("text_encoder", "model.language_model.", TextEncoder.forward))
        patch.setattr(Transformer, "prefix", inside("prefix", "", Transformer.prefix))
        patch.setattr(Transformer, "step", inside("step", "", Transformer.step))
        hook = register_module_forward_hook(collect)
        for index, (prompt, (width, height)) in enumerate(zip(PROMPTS, SETTINGS["sizes"], strict=True)):
            steps["taken"] = 0
            with reference_pipeline(shapes) as pipeline:  # anew: one that is kept keeps encodings
                encoded, negative = pipeline.encode(prompt), pipeline.encode("")
                trajectory = pipeline.sample(
                    encoded,
                    negative=negative,
                    guidance=3.0,
                    width=width,
                    height=height,
                    steps=SETTINGS["steps"],
                    seed=SETTINGS["seed"] + index,
                )
                assert len(list(trajectory)) == SETTINGS["steps"]
        hook.remove()
    return found


def expected_names(checkpoint: Checkpoint) -> dict[str, set[str]]:
    layers, blocks = checkpoint.text_encoder.num_hidden_layers, checkpoint.transformer.num_layers
    step = {f"transformer_blocks.{i}.{end}" for i in range(blocks) for end in IN_BLOCK["transformer"]}
    step |= {f"transformer_blocks.{i}.attn.to_v.output" for i in range(blocks)}
    last = f"transformer_blocks.{blocks - 1}."
    return {
        "text_encoder": {
            f"model.language_model.layers.{i}.{end}" for i in range(layers) for end in IN_BLOCK["text_encoder"]
        },
        "prefix": step - {f"{last}{end}" for end in ("attn.to_out.0", "img_mlp.proj", "img_mlp.out")},
        "step": step,
    }


def test_statistics_are_those_of_the_reference_pipeline(shapes: Path, calibrated: Path, seen: Seen) -> None:
    checkpoint = Checkpoint.open(shapes)
    calibration = Calibration.open(calibrated, checkpoint)
    names = expected_names(checkpoint)
    assert {component: set(found) for component, found in calibration.components.items()} == names
    for component, found in calibration.components.items():
        for name, statistics in found.items():
            calls = seen[component][name]
            assert len(calls) == len(PROMPTS) * 2 * (SETTINGS["steps"] if component == "step" else 1), name
            rows = torch.cat([values for _, values in calls])
            assert torch.equal(statistics.channel_absmax, rows.abs().amax(dim=0)), name
            mean_square = rows.double().square().mean(dim=0).float()
            torch.testing.assert_close(statistics.channel_mean_square, mean_square, rtol=1e-6, atol=0)
            by_step = [
                max(float(values.abs().max()) for at, values in calls if at == step)
                for step in range(max(at for at, _ in calls) + 1)
            ]
            assert statistics.absmax_by_step.tolist() == by_step, name
            bounds = [torch.quantile(rows.abs().flatten(), 0.999, interpolation=kind) for kind in ("lower", "higher")]
            assert bounds[0] * (1 - RESOLUTION) <= statistics.percentiles[1] <= bounds[1] * (1 + RESOLUTION), name


def test_prefix_and_step_are_apart_and_steps_differ(shapes: Path, calibrated: Path) -> None:
    components = Calibration.open(calibrated, Checkpoint.open(shapes)).components
    name = "transformer_blocks.2.attn.to_q"
    assert not torch.equal(components["prefix"][name].channel_absmax, components["step"][name].channel_absmax)
    assert components["prefix"][name].absmax_by_step.shape == (1,)
    by_step = components["step"][name].absmax_by_step
    assert by_step.shape == (SETTINGS["steps"],)
    assert len(set(by_step.tolist())) == SETTINGS["steps"]


def test_record(calibrated: Path, shapes: Path) -> None:
    assert sorted(path.name for path in calibrated.iterdir()) == [RECORD, TENSORS]
    record = json.loads((calibrated / RECORD).read_text(encoding="utf-8"))
    checkpoint = Checkpoint.open(shapes)
    assert record["checkpoint"] == {
        "name": "checkpoint",
        "config_sha256": checkpoint.config_sha256(),
        "weights_sha256": checkpoint.weights_sha256(),
    }
    assert (record["prompts"], record["seeds"], record["steps"]) == (2, [5, 6], 3)
    assert (record["sizes"], record["guidance"], record["negative_prompt"]) == ([[64, 64], [96, 32]], 3.0, "")
    assert (record["dtype"], record["device"]) == ("fp32", "cpu")
    assert record["versions"]["torch"] == torch.__version__
    opened = Calibration.open(calibrated, checkpoint)
    assert opened.sha256 == record["tensors"]["sha256"]
    assert opened.settings.sizes == ((64, 64), (96, 32))


@pytest.mark.parametrize("steps", [4, 6])  # within the second trajectory, and at its very end
def test_an_interrupted_calibration_goes_on_bit_for_bit(
    shapes: Path, calibrated: Path, tmp_path: Path, begin: Callable[..., None], steps: int
) -> None:
    output = tmp_path / "calibration"
    begin(output, steps)
    assert [path.name for path in output.iterdir()] == [PARTIAL]
    told: list[tuple[str, int, int]] = []
    calibrate(shapes, output, PROMPTS, **SETTINGS, progress=lambda *stage: told.append(stage))
    assert told[0][0] == HASHING
    assert [stage for stage in told if stage[0] == SAMPLING] == [(SAMPLING, done, 6) for done in (3, 4, 5, 6)]
    for name in (TENSORS, RECORD):
        assert (output / name).read_bytes() == (calibrated / name).read_bytes()
    assert not (output / PARTIAL).exists()


def test_interrupted_before_the_result_was_written(
    shapes: Path, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "calibration"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(calibrate_module, "write", full)
        with pytest.raises(QwenImageError, match="cannot be written"):
            calibrate(shapes, output, PROMPTS, **SETTINGS)
    monkeypatch.setattr(Trajectories, "__init__", lambda *_: pytest.fail("everything was drawn already"))
    found = calibrate(shapes, output, PROMPTS, **SETTINGS)
    assert (output / TENSORS).read_bytes() == (calibrated / TENSORS).read_bytes()
    assert found.components["step"]["transformer_blocks.0.attn.to_q"].channel_absmax.shape == (192,)


def test_interrupted_in_the_first_trajectory_leaves_nothing(output: Path, begin: Callable[..., None]) -> None:
    begin(output / "new" / "calibration", 2)


def test_what_is_left_of_a_killed_process_is_no_obstacle(
    shapes: Path, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / f".{PARTIAL}.tmp").write_bytes(b"half")
    (tmp_path / "killed" / LOCK).touch()
    calibrate(shapes, tmp_path / "killed", PROMPTS, **SETTINGS)
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [RECORD, TENSORS]


def test_a_folder_that_another_process_writes_is_refused(shapes: Path, tmp_path: Path) -> None:
    with (
        locked(tmp_path / LOCK, "never"),
        pytest.raises(QwenImageError, match="another calibration is writing it; wait for its end"),
    ):
        calibrate(shapes, tmp_path, PROMPTS, **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_calibration_is_returned(shapes: Path, calibrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trajectories, "__init__", lambda *_: pytest.fail("everything was drawn already"))
    assert calibrate(shapes, calibrated, PROMPTS, **SETTINGS).sha256


def test_device_and_versions_of_a_finished_calibration_do_not_matter(
    shapes: Path, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trajectories, "__init__", lambda *_: pytest.fail("everything was drawn already"))
    output = shutil.copytree(calibrated, tmp_path / "calibration")
    record = json.loads((output / RECORD).read_text(encoding="utf-8"))
    made_by = {"device": "cuda", "versions": {**record["versions"], "torch": "2.0.0"}}
    (output / RECORD).write_text(json.dumps(record | made_by), encoding="utf-8")
    settings = calibrate(shapes, output, PROMPTS, **SETTINGS).settings
    assert (settings.device, settings.versions["torch"]) == ("cuda", "2.0.0")


def test_an_unfinished_one_goes_on_only_where_it_was_begun(
    shapes: Path, tmp_path: Path, begin: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path / "calibration", 4)
    monkeypatch.setattr(torch, "__version__", "2.0.0")
    with pytest.raises(QwenImageError, match=r"partial\.safetensors: was made with versions .*, now .* torch 2\.0\.0 "):
        calibrate(shapes, tmp_path / "calibration", PROMPTS, **SETTINGS)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"steps": 2}, "steps 3, now 2"),
        ({"sizes": [(64, 64)]}, "sizes 64x64 96x32, now 64x64"),
        ({"guidance": 2.0}, "guidance 3, now 2"),
        ({"guidance": 1.0}, "negative prompt '', now none"),
        ({"negative_prompt": "grey"}, "negative prompt '', now 'grey'"),
        ({"seed": 6}, "seed 5, now 6"),
        ({"dtype": "bf16"}, "dtype 'fp32', now 'bf16'"),
        ({"prompts": ("a circle",)}, "2 other prompts, now 1"),
    ],
)
def test_other_settings_are_refused(
    shapes: Path,
    calibrated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    word: str,
) -> None:
    arguments = {"prompts": PROMPTS, **SETTINGS, **changed}
    monkeypatch.setattr(Trajectories, "__init__", lambda *_: pytest.fail("drawn before the settings were compared"))
    before = {path.name: path.read_bytes() for path in calibrated.iterdir()}
    with pytest.raises(QwenImageError) as raised:
        calibrate(shapes, calibrated, **arguments)
    assert word in str(raised.value)
    assert "name another folder" in str(raised.value)
    assert {path.name: path.read_bytes() for path in calibrated.iterdir()} == before


def test_an_unfinished_one_of_other_settings_or_damaged_is_refused(
    shapes: Path, tmp_path: Path, begin: Callable[..., None]
) -> None:
    output = tmp_path / "calibration"
    begin(output, 4)
    with pytest.raises(QwenImageError, match=r"partial\.safetensors: was made with steps 3, now 2"):
        calibrate(shapes, output, PROMPTS, **{**SETTINGS, "steps": 2})
    partial = output / PARTIAL
    partial.write_bytes(partial.read_bytes()[:-10])
    with pytest.raises(QwenImageError, match=r"partial\.safetensors: no unfinished calibration .* remove it"):
        calibrate(shapes, output, PROMPTS, **SETTINGS)


def test_another_checkpoint_under_the_same_name_is_refused(
    shapes: Path, random_checkpoint: Callable[..., Path], tmp_path: Path, begin: Callable[..., None]
) -> None:
    begin(tmp_path / "calibration", 4)
    other = shutil.copytree(random_checkpoint(), tmp_path / "checkpoint")
    with pytest.raises(QwenImageError, match=r"the checkpoint checkpoint \(config .*now checkpoint \(config"):
        calibrate(other, tmp_path / "calibration", PROMPTS, **SETTINGS)


def test_bf16(shapes: Path, calibrated: Path, tmp_path: Path) -> None:
    bf16 = calibrate(shapes, tmp_path / "bf16", PROMPTS[:1], **SETTINGS, dtype="bf16")
    fp32 = Calibration.open(calibrated, Checkpoint.open(shapes))
    name = "transformer_blocks.0.attn.to_q"
    ratio = (
        bf16.components["prefix"][name].channel_mean_square.sum()
        / fp32.components["prefix"][name].channel_mean_square.sum()
    )
    assert 0.8 < ratio < 1.25  # other prompts, but the same network
    values = bf16.components["step"][name].channel_absmax
    assert torch.equal(values, values.bfloat16().float())


def test_a_checkpoint_with_fixed_sigmas_draws_without_guidance(
    random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    found = calibrate(random_checkpoint(turbo=True), tmp_path / "turbo", ["a circle"], sizes=[(64, 64)])
    assert (found.settings.guidance, found.settings.negative_prompt, found.settings.steps) == (1.0, None, 8)
    assert found.components["step"]["transformer_blocks.0.attn.to_q"].absmax_by_step.shape == (8,)


def edited(shapes: Path, folder: Path, name: str, value: float) -> Path:
    """A copy of the checkpoint with one of the transformer's weights set."""
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(shapes, folder / "edited")
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, file, {"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ("transformer_blocks.2.attn.to_v.weight", ("prefix: transformer_blocks.2.attn.to_v.output: ", "of the output")),
        ("txt_in.out_layer.weight", ("prefix: transformer_blocks.0.attn.to_q: ", "of its input")),
        ("img_in.weight", ("step: step 1, transformer_blocks.0.attn.to_q: ", "of its input")),
    ],
)
def test_activations_that_are_not_finite_are_named(
    shapes: Path, tmp_path: Path, output: Path, weight: str, words: tuple[str, ...]
) -> None:
    checkpoint = edited(shapes, tmp_path, weight, float("nan"))
    with pytest.raises(QwenImageError) as raised:
        calibrate(checkpoint, output / "calibration", PROMPTS, **SETTINGS)
    for word in (*words, "are not finite", PROMPTS[0]):
        assert word in str(raised.value)


def test_the_step_that_is_not_finite_is_named(shapes: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen_image_engine.runtime import denoiser

    features = denoiser.time_features
    monkeypatch.setattr(denoiser, "time_features", lambda sigma: features(sigma) * (1 if sigma == 1 else float("nan")))
    with pytest.raises(QwenImageError, match=r"step: step 2, transformer_blocks\.0\.attn\.to_q: .* are not finite"):
        calibrate(shapes, output / "calibration", PROMPTS, **SETTINGS)


def test_an_activation_that_is_always_zero_is_named(shapes: Path, tmp_path: Path) -> None:
    checkpoint = edited(shapes, tmp_path, "transformer_blocks.3.attn.to_v.weight", 0.0)
    with pytest.raises(QwenImageError) as raised:
        calibrate(checkpoint, tmp_path / "calibration", PROMPTS, **SETTINGS)
    assert "prefix, transformer_blocks.3.attn.to_out.0: its range is zero" in str(raised.value)
    assert not (tmp_path / "calibration" / RECORD).exists()


def test_too_little_memory(shapes: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trajectories, "draw", fail)
    with pytest.raises(QwenImageError, match="cpu has too little memory for checkpoint in fp32"):
        calibrate(shapes, output / "calibration", PROMPTS, **SETTINGS)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"prompts": ()}, "no prompts"),
        ({"prompts": "a circle"}, "expected a list"),
        ({"prompts": ("a circle", "a <|image_pad|>")}, "prompt 2 of 2: .*reference image"),
        ({"prompts": ("a circle", "a " * 1200)}, "prompt 2 of 2: .*at most"),
        ({"sizes": ()}, "no sizes"),
        ({"device": "tpu"}, "expected cpu or cuda"),
        ({"dtype": "fp8"}, "expected fp32, bf16, fp16"),
    ],
)
def test_what_cannot_be_calibrated(shapes: Path, output: Path, changed: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        calibrate(shapes, output / "calibration", **{"prompts": PROMPTS, **SETTINGS, **changed})
