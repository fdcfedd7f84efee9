"""README's table of measurements, with one row for each result."""

from collections.abc import Iterator

from benchmarks.documents.tables import ONNXRUNTIME, OPENVINO, markdown, result, speed_ratio
from qwen_image_engine.runtime.sampling.fast import FAST

ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def measured() -> str:
    """Return README's table of measurements, with one row for each result."""
    return markdown(
        ("what", "measured", "file"), ((what, found, f"`{name}.json`") for what, found, name in _measured())
    )


def _measured() -> Iterator[tuple[str, str, str]]:
    figures = {row["figure"]: row["worst"] for row in result("parity")["figures"]}
    networks = max(
        value for name, value in figures.items() if "against diffusers, relative" in name or "transformers, rel" in name
    )
    engines = max(value for name, value in figures.items() if "on onnxruntime" in name or "on openvino" in name)
    yield (
        "`make test` against diffusers 0.42, transformers 5.23 and torch, random weights, fp32",
        f"worst relative L2: networks and whole pipelines {networks:.1e}, engines {engines:.1e}",
        "parity",
    )
    rows = result("demo-verify")["components"]
    yield (
        f"`make demo` on `shapes`: {sum(len(row['cases']) for row in rows)} rows of the comparison",
        f"worst {max(row['relative_l2'] for row in rows):.1e} relative L2",
        "demo-verify",
    )
    yield "`make demo` after its set-up", f"{result('demo')['seconds']['total']:.0f} s", "demo"
    seconds = {name: f"{found['total_s']:.2f} s" for name, found in result("picture")["results"].items()}
    yield (
        "a 256x256 picture of `shapes`, 20 steps",
        f"ONNX Runtime {seconds['onnxruntime']}, OpenVINO {seconds['openvino']}, torch {seconds['reference']}",
        "picture",
    )
    found = result("shapes")
    edits = found["edits"]
    yield (
        "`shapes` on held-out prompts",
        f"{found['one or two shapes']['rate']:.1%} of one or two shapes, {found['three shapes']['rate']:.1%} of three; "
        f"{edits['rate']:.1%} of {edits['tried']} edits, {edits['kept']:.1%} of the other pixels kept",
        "shapes",
    )
    names = ("fp32", "int8", "static FP8", "static int8")
    for kind, what in (("one or two shapes", "prompts of one or two shapes"), ("edits", "edits")):
        rates = [
            (row["edits"] if kind == "edits" else row["pictures"][kind])["rate"] for row in result("judge")["results"]
        ]
        yield (
            f"pictures that the judge accepts, {what}",
            ", ".join(f"{name} {rate:.1%}" for name, rate in zip(names, rates, strict=True)),
            "judge",
        )
    yield from _fewer_steps()
    ways = {"int8": "int8", "static FP8": "FP8, twin", "static int8": "static int8, twin", "plain W8A8": "plain W8A8"}
    table = {(row["checkpoint"], row["way"]): row["step_cosine_mean"] for row in result("quantisation")["rows"]}
    for checkpoint in dict.fromkeys(checkpoint for checkpoint, _ in table):
        yield (
            f"step cosine, means over the schedules of three prompts: `shapes` {checkpoint}",
            ", ".join(f"{name} {table[checkpoint, way]:.4f}" for name, way in ways.items()),
            "quantisation",
        )
    for tokens in (1024, 4096):
        yield (
            f"a cached step of two blocks 4096 wide, {tokens} + 128 tokens",
            f"int8 in ONNX Runtime {speed_ratio(tokens, ONNXRUNTIME)} diffusers bf16, in OpenVINO with bf16 "
            f"{speed_ratio(tokens, OPENVINO)} ([performance.md](performance.md))",
            "speed",
        )
    link, int8 = (f"{item['process_s'] / 60:.1f} min" for item in result("full-size-export")["exports"])
    yield (
        "33 GB of random weights: export",
        f"linked for `tensorrt` bf16 {link}, `cpu` int8 {int8} ([full-size.md](full-size.md))",
        "full-size-export",
    )
    pictures = result("full-size-run-onnxruntime")["pictures"]
    peak = max(item["anonymous_bytes"] for picture in pictures for item in picture["peaks"].values())
    yield (
        "its int8 bundle, 512x512, 8 steps, `--memory sequential`",
        f"{pictures[0]['seconds']['step_s']:.0f} s a step, at most {peak / 1e9:.1f} GB",
        "full-size-run-onnxruntime",
    )
    memory = result("export_memory")
    peaks = {
        (run["layers"], run["precision"]): run["peak_bytes"]["exported"]
        for run in memory["runs"]
        if run["weights"] == "copy"
    }
    plain = max(peak for (_, precision), peak in peaks.items() if precision == "fp32")
    more = max(peak - peaks[layers, "fp32"] for (layers, precision), peak in peaks.items() if precision == "int8")
    sizes = sorted({run["checkpoint_bytes"] for run in memory["runs"]})
    yield (
        f"export of checkpoints of random bytes, {' and '.join(f'{size / 1e9:.1f}' for size in sizes)} GB",
        f"peak resident memory {plain / 1e9:.2f} GB in fp32, {more / 1e9:.2f} GB more in int8; largest tensor "
        f"{memory['largest_tensor_bytes'] / 1e9:.2f} GB",
        "export_memory",
    )
    soaks = result("soak")["engines"]
    grown = (f"{name} {soaks[key][key]['growth_bytes'] / 1e6:+.0f} MB" for key, name in ENGINES.items())
    yield (
        f"{soaks['openvino']['requests']:,} requests of `shapes`, new prompt lengths and sizes",
        f"resident memory after the last against after the hundredth: {', '.join(grown)} "
        "([performance.md](performance.md))",
        "soak",
    )
    builds = [build for found in result("rtx_builds")["builds"].values() for build in found]
    alone = [build["seconds"] for build in builds if len(build["compute_capabilities"]) == 1]
    yield (
        f"engine files of `shapes` for RTX cards: {len(builds)} builds in bf16, INT8 and FP8, by the real compiler",
        f"{min(alone):.0f} to {max(alone):.0f} s for one compute capability, again at most "
        f"{max(build['seconds_again'] for build in builds):.1f} s ([rtx.md](rtx.md))",
        "rtx_builds",
    )
    built = [run for run in result("full-size-build")["runs"] if run.get("bound_bytes")]
    most = max(run["peak_bytes"] + run["command_bytes"] for run in built)
    yield (
        f"engine files of the released size with bound weights: {len(built)} builds of text encoder, vision tower and "
        "transformer",
        f"at most {max(run['compile_seconds'] for run in built):.0f} s each and {most / 1e9:.1f} GB; at most "
        f"{max(run['plan_bytes'] / run['profiles'] for run in built) / 1e6:.0f} MB a profile ([rtx.md](rtx.md))",
        "full-size-build",
    )
    load = result("serve")["load"]
    yield (
        f"the server, {load['requests']:,} requests of {load['clients']} clients",
        f"{load['lost'] or 'none'} lost, {load['mixed_up'] or 'none'} mixed up, {load['growth_bytes'] / 1e6:+.0f} MB "
        "([serve.md](serve.md))",
        "serve",
    )
    fuzzed = result("fuzz")
    yield (
        f"{fuzzed['mutations']:,} damaged bundles, checkpoints and calibrations",
        f"{fuzzed['states']['refused']:,} refused in one line, {fuzzed['bad'] or 'none'} ended badly "
        "([trust.md](trust.md))",
        "fuzz",
    )


def _fewer_steps() -> Iterator[tuple[str, str, str]]:
    """Yield the rows of the preset of `run --fast` beside the released pipeline's 40 steps."""
    both = (("euler", 40), (FAST.solver, FAST.steps))
    rows = {(row["precision"], row["solver"], row["steps"]): row for row in result("fewer-steps")["results"]}
    rates = []
    for kind in ("prompts", "edits"):
        each = (f"{rows['fp32', *setting][kind]['rate']:.1%}" for setting in both)
        rates.append(f"{kind} {' and '.join(each)}")
    yield (
        f"pictures that the judge accepts, Euler 40 and `--fast` ({FAST.steps} evaluations), fp32",
        f"{', '.join(rates)} ([fewer-steps.md](fewer-steps.md))",
        "fewer-steps",
    )
