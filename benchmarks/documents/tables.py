"""Tables of README.md and docs/, from the committed results."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.common.paths import RESULTS


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


ONNXRUNTIME, OPENVINO = "ONNX Runtime int8", "OpenVINO int8, rest bf16"


def speed_ratio(tokens: int, way: str, base: str = "bf16", file: str = "speed") -> str:
    """Return the speed-up of a contender's step over diffusers, as text."""
    (row,) = (row for row in result(file)["results"] if (row["tokens"], row["way"]) == (tokens, way))
    return f"{row['times_faster_than'][f'diffusers {base}']['ratio_of_medians']:.2f}x"


def speed() -> str:
    """Return the table of cached steps at the released width, by size and contender."""
    return _speed("speed")


def speed_zen4() -> str:
    """Return the table of cached steps on another processor."""
    return _speed("speed-zen4")


def _speed(file: str) -> str:
    return markdown(
        ("tokens + prefix", "way", "seconds", "x diffusers fp32", "x diffusers bf16", "error"),
        (
            (
                f"{row['tokens']} + {row['prefix']}",
                row["way"],
                f"{row['median_s']:.2f}",
                *(
                    f"{row['times_faster_than'][f'diffusers {base}']['ratio_of_medians']:.2f}"
                    for base in ("fp32", "bf16")
                ),
                f"{row['relative_l2']:.1%}" if row["relative_l2"] > 1e-4 else f"{row['relative_l2']:.0e}",
            )
            for row in result(file)["results"]
        ),
    )


def profile() -> str:
    """Return the table of a step's time, in shares by kind of operator."""
    found = result("speed")["profiles"]
    kinds = list(found[0]["kinds"])
    return markdown(
        ("tokens + prefix", "engine", *kinds),
        (
            (
                f"{row['tokens']} + {row['prefix']}",
                row["way"],
                *(f"{row['kinds'][kind]['share']:.1%}" for kind in kinds),
            )
            for row in found
        ),
    )


def attention() -> str:
    """Return the table of one block's attention on every engine."""
    return markdown(
        ("way", "seconds", "GFLOP/s", "error"),
        (
            (row["way"], f"{row['median_s']:.2f}", f"{row['gflop_per_s']:.0f}", f"{row['relative_l2']:.0e}")
            for row in result("attention")["results"]
        ),
    )


def references() -> str:
    """Return the table of a step after a reference image, on every engine."""
    return markdown(
        ("engine", "step after text", "after text and image", "ratio", "recomputed", "the image's pass"),
        (
            (
                name,
                *(f"{found['medians_s'][step]:.2f} s" for step in ("step after text", "step after text and image")),
                f"{found['cached_to_text']:.2f}x",
                f"{found['recomputed_to_text']:.2f}x",
                f"{found['medians_s']['pass of the image']:.2f} s",
            )
            for name, found in result("references")["engines"].items()
        ),
    )


def mask() -> str:
    """Return the table of attention in a reference image's pass, with one mask over all tokens and without."""
    found = result("references")["attention of the pass in one block"]
    return markdown(
        ("attention", "seconds", "peak memory"),
        (
            (name, f"{seconds:.2f}", f"{found['peak_bytes'][name] / 1e9:.2f} GB")
            for name, seconds in found["medians_s"].items()
        ),
    )


def modes() -> str:
    """Return the table of each mode's times on the small checkpoint, by stage.

    "again" is the time before the first step of a second seed.
    """
    stages = {"references_s": "references", "encode_s": "encode", "prefix_s": "prefix", "step_s": "step"}
    return markdown(
        ("mode", "prompt", "size", "tokens before the target", *(f"{name}, ms" for name in stages.values()), "again"),
        (
            (
                row["mode"],
                row["prompt"],
                "x".join(map(str, row["size"])),
                str(row["prefix_tokens"]),
                *(f"{row['timings'][stage] * 1000:.0f}" for stage in stages),
                f"{sum(row['timings_of_the_second_seed'][stage] for stage in list(stages)[:3]) * 1000:.0f}",
            )
            for row in result("modes")["results"]
        ),
    )


def rotations() -> str:
    """Return the table of errors of a product with outliers, by the size of the rotation."""
    return markdown(
        ("channels rotated together", "relative error"),
        ((str(row["rotation"]), f"{row['relative_l2']:.1%}") for row in result("rotations")["results"]),
    )


def quantisation() -> str:
    """Return the table of errors of every quantisation method on every checkpoint."""
    return markdown(
        ("checkpoint", "way", "step cosine", "teacher-forced", "worst step"),
        (
            (
                row["checkpoint"],
                row["way"],
                f"{row['step_cosine_mean']:.5f}",
                f"{row['teacher_forced_relative_l2_mean']:.1%}",
                f"{row['teacher_forced_relative_l2_worst']:.1%}",
            )
            for row in result("quantisation")["rows"]
        ),
    )


def fp8_attention() -> str:
    """Return the table of the errors that FP8 attention and a prefix cache in FP8 add to FP8 products."""
    return markdown(
        ("checkpoint", "in FP8", "teacher-forced", "rise", "first step", "last step"),
        (
            (
                row["checkpoint"],
                row["way"],
                f"{row['relative_l2']:.2%}",
                f"{row['rise']:+.1%}",
                f"{row['by_step'][0]:.1%}",
                f"{row['by_step'][-1]:.1%}",
            )
            for row in result("fp8_attention")["rows"]
        ),
    )


def shapes() -> str:
    """Return the table of held-out prompts and edits that the small checkpoint fulfils."""
    found = result("shapes")
    aims = {"one or two shapes": "90%", "three shapes": "75%", "edits": "85%"}
    rows = [(name, f"{found[name]['rate']:.1%} of {found[name]['tried']}", aim) for name, aim in aims.items()]
    kept = ("pixels that edits keep", f"{found['edits']['kept']:.1%}", "95%")
    return markdown(("prompts", "fulfilled", "aim"), (*rows, kept))


def edits() -> str:
    """Return the table of the small checkpoint's held-out edits by kind."""
    found = result("shapes")["edits"]
    return markdown(
        ("kind", "fulfilled", "kept"),
        ((kind, f"{rate:.0%}", f"{found['kept_kinds'][kind]:.1%}") for kind, rate in found["kinds"].items()),
    )


def judge() -> str:
    """Return the table of bundles on held-out prompts and edits."""
    rows = result("judge")["results"]
    kinds = list(rows[0]["pictures"])
    return markdown(
        ("target, precision", "step cosine", "teacher-forced", "worst step", *kinds, "edits", "step cosine", "kept"),
        (
            (
                f"{row['target']} {row['precision']}",
                f"{row['step']['cosine_mean']:.5f}",
                f"{row['teacher_forced']['relative_l2_mean']:.1%}",
                f"{row['teacher_forced']['relative_l2_worst_step']:.1%}",
                *(
                    f"{row['pictures'][kind]['rate']:.1%} "
                    f"({', '.join(str(seed['fulfilled']) for seed in row['pictures'][kind]['seeds'])} "
                    f"of {row['pictures'][kind]['seeds'][0]['tried']})"
                    for kind in kinds
                ),
                f"{row['edits']['rate']:.1%}",
                f"{row['edits']['step']['cosine_mean']:.5f}",
                f"{row['edits']['kept']:.1%}",
            )
            for row in rows
        ),
    )


def bench_quality() -> str:
    """Return the table of the accuracy of `bench`, with the aim of each figure."""
    if not (RESULTS / "bench-quality.json").is_file():
        return "No result of an idle machine has been committed yet.\n"
    found = result("bench-quality")
    planted, twice, memory = found["planted"], found["two runs of one bundle"], found["memory"]
    rows = [
        ("the clock's share of a step", f"{found['overhead']['share']:.3%}", "below 1%"),
        ("peak of the process, against the system's", f"{memory['difference']:.1%} off", "5%"),
        ("the highest stage's peak, against the same", f"{memory['difference of the highest stage']:.1%} off", "5%"),
    ]
    for slowdown, aim in ((1.10, "slower"), (1.01, "not slower")):
        verdicts = [row["verdict"] for row in planted if row["slowdown"] == slowdown]
        told = ", ".join(f"{verdict} {verdicts.count(verdict)}" for verdict in dict.fromkeys(verdicts))
        rows.append((f"an engine slowed by {slowdown - 1:.0%}, {len(verdicts)} times", told, aim))
    for stage in dict.fromkeys(row["stage"] for row in twice):
        held = [row["interval holds 1"] is True for row in twice if row["stage"] == stage]
        rows.append(
            (f"two runs of one bundle, {stage}", f"1 within the spread in {sum(held)} of {len(held)}", "9 of 10")
        )
        changes = [row["change"] for row in twice if row["stage"] == stage]
        told = ", ".join(f"{change} {changes.count(change)}" for change in dict.fromkeys(changes))
        rows.append((f"`compare` on them, {stage}", told, "neither faster nor slower"))
    return markdown(("what", "found", "aim"), rows)


def soak() -> str:
    """Return the table of memory and time over many requests, with a row for each contender."""
    engines = result("soak")["engines"]
    rows = []
    for name, shown in (
        ("onnxruntime", "ONNX Runtime"),
        ("openvino", "OpenVINO"),
        ("openvino, default cache", "OpenVINO, default cache"),
    ):
        entry = engines[name.partition(",")[0]]
        resident = entry[name]["resident_bytes"]
        memory = (f"{resident[key] / 1e6:.0f} MB" for key in ("1", "100", str(entry["requests"])))
        times = (f"{entry['ratios'][key]:.2f}x" if name == "openvino" else "" for key in ("list_s", "repeated_s"))
        rows.append((shown, *memory, *times))
    requests = f"{engines['openvino']['requests']:,}"
    return markdown(
        ("engine", "memory after 1", "after 100", f"after {requests}", "time of all", "of one shape again"), rows
    )


def serve() -> str:
    """Return the table of the server's cost, of its load, and of clients that leave."""
    if not (RESULTS / "serve.json").is_file():
        return "No result has been committed yet.\n"
    found = result("serve")
    cost, first, load, left = (found[key] for key in ("overhead", "first_partial", "load", "leave"))
    four = cost["four"]
    rows = [
        (
            f"load average of the machine's {found['machine']['cores']} cores, at the beginning and the end",
            ", ".join(f"{value:.1f}" for value in found["load_averages"]),
            "wall-clock times tell little above 1",
        ),
        (
            f"a picture through the server against `generate`, encoding left out, median of {cost['rounds']} pairs",
            f"{cost['server_s']:.2f} s, {cost['generate_s']:.2f} s, {cost['ratio'] - 1:+.1%}",
            "at most +5%",
        ),
        (
            "the same in CPU time of the process, which other processes do not change",
            f"{cost['server_cpu_s']:.2f} s, {cost['generate_cpu_s']:.2f} s, {cost['cpu_ratio'] - 1:+.1%}",
            "at most +5%",
        ),
        (
            "encoding its PNG",
            f"{cost['encoding_s'] * 1000:.0f} ms, {cost['encoding_cpu_s'] * 1000:.0f} ms of CPU time",
            "reported apart",
        ),
        (
            "four pictures of a request, with their PNGs, against four of `generate`",
            f"{four['seconds']:.2f} s, {four['generate_s']:.2f} s; "
            f"{four['cpu_s']:.2f} s, {four['generate_cpu_s']:.2f} s of CPU time",
            "encoded while the next is drawn",
        ),
        (
            "the first of three partial pictures, against its step in a loop",
            f"{first['seconds']:.2f} s, {first['its_step_s']:.2f} s",
            "after its step",
        ),
        (
            f"{load['requests']:,} requests of {load['clients']} clients",
            f"{load['lost']} lost, {load['mixed_up']} mixed up",
            "none",
        ),
        ("memory from request 100 to the last", f"{load['growth_bytes'] / 1e6:+.0f} MB", "flat"),
        (
            f"{left['leavers']} clients that leave at random moments",
            f"{left['stopped']:.0f} pictures stopped, {left['finished_before_they_left']:.0f} were finished; "
            f"idle after {left['longest_until_idle_s']:.2f} s at most",
            "work stops within a step",
        ),
        (
            "threads and open files after them",
            f"{left['after']['threads'] - left['before']['threads']:+d}, "
            f"{left['after']['files'] - left['before']['files']:+d}",
            "no more",
        ),
    ]
    if users := found.get("locust"):
        kinds = [entry for entry in users.values() if isinstance(entry, dict)]
        requests, failed = (sum(entry[key] for entry in kinds) for key in ("requests", "failures"))
        told = f"{requests:,} requests, {failed} failures, {users['failures_of_the_server']:.0f} of the server's"
        rows.append(("locust, pictures, streams and bad requests", told, "no 500"))
    return markdown(("what", "found", "aim"), rows)


def rtx_builds() -> str:
    """Return the table of builds with TensorRT for RTX, with a row for each precision and set of GPUs."""
    rows = []
    for precision, builds in result("rtx_builds")["builds"].items():
        for build in builds:
            step = build["plans"]["step"]
            products = [f"{step[f'{kind}_products']} in {kind.upper()}" for kind in ("fp8", "int8")]
            rows.append(
                (
                    precision,
                    ", ".join(build["compute_capabilities"]),
                    f"{build['seconds']:.0f} s",
                    f"{build['seconds_again']:.1f} s",
                    f"{sum(plan['bytes'] for plan in build['plans'].values()) / 1e6:.0f} MB",
                    str(step["fused_attentions"]),
                    ", ".join(item for item in products if not item.startswith("0 ")) or "",
                )
            )
    head = ("precision", "capability", "build", "again", "plans", "fused attentions of the step", "its products")
    return markdown(head, rows)


def spellings() -> str:
    """Return the table of a block's spellings on RTX cards, with a column for each compute capability."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in result("spellings")["rows"]:
        weights = {"bound": "inputs"}.get(row["weights"], row["weights"])
        cells = found.setdefault((row["precision"], row["spelling"], weights, row["kept"]), {})
        kernels = f"{row['products']}+{row['attentions']}+{row['others']}"
        cells[row["compute_capability"]] = f"{kernels}, {row['bytes_of_others'] / 1e6:,.0f} MB"
    return markdown(
        ("precision", "spelling", "weights", "8.9", "12.0", "kept"),
        (
            (
                precision.replace("fp", "FP").replace("int", "INT"),
                name,
                weights,
                cells.get("8.9", ""),
                cells.get("12.0", ""),
                kept,
            )
            for (precision, name, weights, kept), cells in found.items()
        ),
    )


def fuzz() -> str:
    """Return the table of the ends of damaged folders, with a row for each subject and for each kind of damage."""
    found = result("fuzz")
    states = list(found["states"])
    counts: dict[str, Counter[str]] = {}
    for subject, kinds in found["by_subject"].items():
        for kind, ends in kinds.items():
            counts.setdefault(f"a {subject}".replace("a un", "an un"), Counter()).update(ends)
            counts.setdefault(f"by {kind}", Counter()).update(ends)
    return markdown(
        ("damaged", "mutations", *states),
        (
            (name, f"{sum(ends.values()):,}", *(f"{ends[state]:,}" for state in states))
            for name, ends in sorted(counts.items())
        ),
    )


def full_size_export() -> str:
    """Return the table of exports at the released size, with the prediction of `plan` for each figure."""

    def both(found: float, predicted: float, unit: str, scale: float) -> str:
        return f"{found / scale:.2f} {unit} ({predicted / scale:.2f})"

    return markdown(
        ("target", "weights", "step graph", "whole (predicted)", "peak resident (predicted)", "written (predicted)"),
        (
            (
                f"{item['target']} {item['precision']}",
                item["weights"],
                f"{item['stages']['graph of step']:.0f} s",
                both(item["process_s"], item["predicted"]["seconds"], "min", 60),
                both(item["process_peak"]["resident_bytes"], item["predicted"]["peak_bytes"], "GB", 1e9),
                both(item["written_bytes"], item["predicted"]["written_bytes"], "GB", 1e9),
            )
            for item in result("full-size-export")["exports"]
        ),
    )


def full_size_build() -> str:
    """Return the table of plans at the released size, with the kernels of a block and what the whole command takes."""
    rows = []
    for run in (run for run in result("full-size-build")["runs"] if run["error"] is None):
        blocks = {found["block"] for found in run["kernels"].values()}
        rows.append(
            (
                f"{run['component']} {run['precision']}" + ("" if run["weights"] == "bound" else ", weights inside"),
                run["capability"],
                f"{run['profiles']}",
                f"{run['bound_bytes'] / 1e9:.2f} GB" if run["bound_bytes"] else "",
                f"{run.get('hash_seconds', 0):.0f} + {run['compile_seconds']:.0f} s",
                f"{(run['peak_bytes'] + run['command_bytes']) / 1e9:.2f} GB",
                f"{run['plan_bytes'] / 1e6:.0f} MB",
                ", ".join(str(block) for block in sorted(filter(None, blocks))),
                f"{run['fused_attentions']} of {run['attentions']}" if run["attentions"] else "",
            )
        )
    head = ("plan", "for", "profiles", "bound", "hashes + build", "host memory", "plan", "kernels a block", "fused")
    return markdown(head, rows)


def full_size_run() -> str:
    """Return the table of two pictures of one prompt on each engine."""
    kinds = ("load_s", "encode_s", "prefix_s", "first_step_s", "step_s", "decode_s", "total_s")
    return markdown(
        ("engine", "picture", *(kind.removesuffix("_s").replace("_", " ") for kind in kinds), "peak"),
        (
            (
                engine,
                name,
                *(f"{picture['seconds'][kind]:.1f} s" for kind in kinds),
                f"{max(peak['anonymous_bytes'] for peak in picture['peaks'].values()) / 1e9:.2f} GB",
            )
            for engine in ("onnxruntime", "openvino")
            for name, picture in zip(
                ("first", "another seed"), result(f"full-size-run-{engine}")["pictures"], strict=True
            )
        ),
    )


def full_size_peaks() -> str:
    """Return the table of memory peaks of stages in ONNX Runtime, with the prediction of `plan`."""
    runs = [("512x512", result("full-size-run-onnxruntime")["pictures"][0], result("full-size-run-onnxruntime"))]
    for name in ("step-1024", "step-2048", "decode-2048"):
        found = result(f"full-size-{name}-onnxruntime")
        runs.append((f"{found['size']}x{found['size']}", found, found))
    rows = []
    for size, found, document in runs:
        for stage, predicted in document["predicted"].items():
            peaks = [
                peak["anonymous_bytes"] for key, peak in found["peaks"].items() if key.split()[1].startswith(stage)
            ]
            if peaks:
                rows.append((size, stage, f"{max(peaks) / 1e9:.2f} GB", f"{predicted / 1e9:.2f} GB"))
    return markdown(("picture", "stage", "peak", "predicted"), rows)


TABLES: Mapping[str, Callable[[], str]] = {
    table.__name__: table
    for table in (
        speed,
        speed_zen4,
        profile,
        attention,
        rotations,
        quantisation,
        fp8_attention,
        shapes,
        edits,
        judge,
        references,
        mask,
        modes,
        bench_quality,
        full_size_export,
        full_size_build,
        full_size_run,
        full_size_peaks,
        soak,
        serve,
        rtx_builds,
        spellings,
        fuzz,
    )
}
