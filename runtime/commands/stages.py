"""One picture's time by stage."""

from statistics import median

from qwen_image_engine.runtime.timing import Timings


def stage_seconds(timings: Timings, steps: int) -> dict[str, float]:
    """Seconds of each stage of one request of `steps` steps, in the order they run.

    The first step stands apart, because a backend settles its memory in it; `step_s` is the median of the others (of
    all, where there is one). With guidance a step is two runs, and encoder and prefix run twice.
    """
    totals = dict.fromkeys(("load_s", "encode_s", "prefix_s", "first_step_s", "step_s", "decode_s"), 0.0)
    stages = {
        "text_encoder": "encode_s",
        "prefix": "prefix_s",
        "vae_decoder_mid": "decode_s",
        "vae_decoder_up": "decode_s",
    }
    runs = []
    for entry in timings.entries:
        if entry.kind == "load":
            totals["load_s"] += entry.seconds
        elif entry.component == "step":
            runs.append(entry.seconds)
        else:
            totals[stages[entry.component]] += entry.seconds
    if runs:
        passes = len(runs) // steps
        taken = [sum(runs[index : index + passes]) for index in range(0, len(runs), passes)]
        totals["first_step_s"] = taken[0]
        totals["step_s"] = median(taken[1:] or taken)
    return totals
