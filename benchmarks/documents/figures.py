"""Figures in sentences of README.md and docs/, from the committed results."""

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.documents.tables import ONNXRUNTIME, OPENVINO, result, speed_ratio


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


def accepts(of: str) -> str:
    found = dict(result("shapes")[of])
    return f"{found.pop('own'):.0%} of the recipe's own, and at most {max(found.values()):.0%}"


def products(precision: str) -> str:
    return f"{result('speed')['products_gop_per_s'][precision] / 1000:.2f}"


def int8_share() -> str:
    return f"{result('speed')['transformer_sizes']['released']['int8_share']:.1%}"


def step_2048_core_s() -> str:
    return f"{result('full-size-step-2048-onnxruntime')['process_cpu_s']:,.0f}"


def final_latents() -> str:
    (found,) = (row for row in result("parity")["figures"] if row["figure"].startswith("final latents of the pipeline"))
    return f"at most {found['worst']:.1e} over {found['checks']} checks"


def minutes(run: str, stage: str, digits: int) -> str:
    stages = result(f"full-size-{run}-onnxruntime")["stages"]
    return f"{sum(float(item['seconds']) for item in stages if stage in item['stage']) / 60:.{digits}f}"


def fuzzed() -> str:
    found = result("fuzz")
    return f"{found['mutations']:,} mutations, of which {found['bad'] or 'none'} ended badly"


FIGURES: Mapping[str, Callable[[], str]] = {
    "shapes_rates": shapes_rates,
    "from_nothing_rates": from_nothing_rates,
    "from_nothing_minutes": from_nothing_minutes,
    "judge_of_prompts": partial(accepts, "judge accepts"),
    "judge_of_edits": partial(accepts, "judge accepts edits"),
    "onnxruntime_small": partial(speed_ratio, 1024, ONNXRUNTIME),
    "onnxruntime_small_fp32": partial(speed_ratio, 1024, ONNXRUNTIME, "fp32"),
    "onnxruntime_small_fp32_zen4": partial(speed_ratio, 1024, ONNXRUNTIME, "fp32", "speed-zen4"),
    "openvino_small": partial(speed_ratio, 1024, OPENVINO),
    "openvino_small_fp32": partial(speed_ratio, 1024, OPENVINO, "fp32"),
    "openvino_small_fp32_zen4": partial(speed_ratio, 1024, OPENVINO, "fp32", "speed-zen4"),
    "openvino_large": partial(speed_ratio, 4096, OPENVINO),
    "products_fp32": partial(products, "fp32"),
    "products_bf16": partial(products, "bf16"),
    "products_int8": partial(products, "int8"),
    "int8_share": int8_share,
    "step_1024_minutes": partial(minutes, "step-1024", "run step", 1),
    "step_2048_minutes": partial(minutes, "step-2048", "run step", 0),
    "step_2048_core_s": step_2048_core_s,
    "decode_2048_minutes": partial(minutes, "decode-2048", "vae_decoder", 1),
    "final_latents": final_latents,
    "fuzzed": fuzzed,
}
