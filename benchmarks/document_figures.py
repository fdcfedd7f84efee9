"""Figures within sentences of README.md and docs/, from the committed results."""

from collections.abc import Callable, Mapping

from document_tables import ONNXRUNTIME, OPENVINO, result, speed_ratio


def percent(found: Mapping[str, float]) -> str:
    return f"{found['rate']:.1%}"


def shapes_rates() -> str:
    found = result("shapes")
    two, three, edits = (percent(found[key]) for key in ("one or two shapes", "three shapes", "edits"))
    return f"{two} of held-out prompts of one or two shapes, {three} of three, {edits} of edits"


def from_nothing_rates() -> str:
    found = result("shapes-from-nothing")
    two, three = (percent(found[key]) for key in ("one or two shapes", "three shapes"))
    return f"{two} of 200 held-out prompts of one or two shapes and {three} of three"


def from_nothing_minutes() -> str:
    return str(result("shapes-from-nothing")["training"]["wall_s"] // 60)


def judge_of_prompts() -> str:
    return _accepts("judge accepts")


def judge_of_edits() -> str:
    return _accepts("judge accepts edits")


def _accepts(of: str) -> str:
    found = dict(result("shapes")[of])
    return f"{found.pop('own'):.0%} of the recipe's own, and at most {max(found.values()):.0%}"


def onnxruntime_small() -> str:
    return speed_ratio(1024, ONNXRUNTIME)


def onnxruntime_small_fp32() -> str:
    return speed_ratio(1024, ONNXRUNTIME, "fp32")


def openvino_small() -> str:
    return speed_ratio(1024, OPENVINO)


def openvino_small_fp32() -> str:
    return speed_ratio(1024, OPENVINO, "fp32")


def openvino_large() -> str:
    return speed_ratio(4096, OPENVINO)


def products_fp32() -> str:
    return f"{result('speed')['products_gop_per_s']['fp32'] / 1000:.2f}"


def products_bf16() -> str:
    return f"{result('speed')['products_gop_per_s']['bf16'] / 1000:.2f}"


def products_int8() -> str:
    return f"{result('speed')['products_gop_per_s']['int8'] / 1000:.2f}"


def int8_share() -> str:
    return f"{result('speed')['transformer_sizes']['released']['int8_share']:.1%}"


def onnxruntime_small_fp32_zen4() -> str:
    return speed_ratio(1024, ONNXRUNTIME, "fp32", "speed-zen4")


def openvino_small_fp32_zen4() -> str:
    return speed_ratio(1024, OPENVINO, "fp32", "speed-zen4")


def step_1024_minutes() -> str:
    return f"{_stages_s('step-1024', 'run step') / 60:.1f}"


def step_2048_minutes() -> str:
    return f"{_stages_s('step-2048', 'run step') / 60:.0f}"


def step_2048_core_s() -> str:
    return f"{result('full-size-step-2048-onnxruntime')['process_cpu_s']:,.0f}"


def decode_2048_minutes() -> str:
    return f"{_stages_s('decode-2048', 'vae_decoder') / 60:.1f}"


def final_latents() -> str:
    (found,) = (row for row in result("parity")["figures"] if row["figure"].startswith("final latents of the pipeline"))
    return f"at most {found['worst']:.1e} over {found['checks']} checks"


def _stages_s(run: str, stage: str) -> float:
    stages = result(f"full-size-{run}-onnxruntime")["stages"]
    return sum(float(item["seconds"]) for item in stages if stage in item["stage"])


FIGURES: Mapping[str, Callable[[], str]] = {
    figure.__name__: figure
    for figure in (
        shapes_rates,
        from_nothing_rates,
        from_nothing_minutes,
        judge_of_prompts,
        judge_of_edits,
        onnxruntime_small,
        onnxruntime_small_fp32,
        onnxruntime_small_fp32_zen4,
        openvino_small,
        openvino_small_fp32,
        openvino_small_fp32_zen4,
        openvino_large,
        products_fp32,
        products_bf16,
        products_int8,
        int8_share,
        step_1024_minutes,
        step_2048_minutes,
        step_2048_core_s,
        decode_2048_minutes,
        final_latents,
    )
}
