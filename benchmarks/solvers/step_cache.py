"""A cache of the step's blocks beside solvers, at equal evaluations of the network: the error of what they draw.

python -m benchmarks.solvers.step_cache [--jobs 2] [--output benchmarks/results/step-cache.json]

Evaluations count whole steps: a step whose head of F blocks ran alone counts as F / blocks. The error is against the
solution on the released schedule, Heun's with many steps: PSNR of RGB over white and of alpha from the decoded floats,
of RGB after rounding to bytes, and against 200 steps of Euler's; of random weights, the ratio of the latents' norm to
the error's. All are means of decibels over requests. There are three transformers: the small checkpoint's, the same
with 32 random blocks, and random weights altogether, whose velocity turns over from step to step.
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS
from benchmarks.solvers.block_cache import CacheSetting
from benchmarks.solvers.subjects import AS_TRAINED, NEVER, RANDOM, SUBJECTS, Latents, Requests, Subject
from qwen_image_engine.runtime.sampling.solver import SOLVERS

EVALUATIONS = (8, 10, 12, 14, 16, 20, 28, 40)
"""Evaluations that every solver is given. Heun's spends one less, since N steps take 2N - 1."""

MOST = 20
"""Evaluations up to which the cache is compared with solvers."""

THRESHOLDS = ((20, 0.15), (30, 0.1), (50, 0.1))
"""Steps and relative change of the head's residual. From one of 40 steps to the next it is about 0.04 on `shapes`."""

REGULAR = ((20, 1), (30, 1), (30, 2), (50, 3))
"""Steps and consecutive skips of caches without a threshold: 11 to 19 evaluations."""

MULTISTEP = ("dpm++2m", "unipc")
"""Solvers that a cache is tried on once more, beside Euler's and AB2 in every setting."""


@dataclass(frozen=True)
class Setting:
    """A solver, its number of steps, and the cache; None for none."""

    solver: str
    steps: int
    cache: CacheSetting | None = None


def settings(subject: Subject) -> Iterator[Setting]:
    """Yield the settings of a subject: solvers alone, then caches with a threshold, then caches that skip regularly.

    Only the trained network, where error still falls, has solvers with more evaluations than the cache. Random weights
    altogether have no thresholds: the head's residual changes by more than itself at every step.
    """
    for solver, evaluations in product(SOLVERS, EVALUATIONS):
        if evaluations <= MOST or subject == AS_TRAINED:
            yield Setting(solver, evaluations // 2 if solver == "heun" else evaluations)
    if subject != RANDOM:
        for solver, order, head, (steps, threshold) in product(("euler", "ab2"), (0, 1), (1, 2), THRESHOLDS):
            yield Setting(solver, steps, CacheSetting(head, threshold, most_skips=4, order=order))
    for solver, order, (steps, most_skips) in product(("euler", "ab2"), (0, 1), REGULAR):
        yield Setting(solver, steps, CacheSetting(1, math.inf, most_skips=most_skips, order=order))
    for solver, (steps, most_skips) in product(MULTISTEP, REGULAR[1:3]):
        yield Setting(solver, steps, CacheSetting(1, math.inf, most_skips=most_skips, order=1))


def measure(subject: Subject, request: int) -> list[dict[str, Any]]:
    """Return a row for each setting on one request: the setting, its evaluations, and decibels by measure."""
    requests = Requests(subject)
    solution = requests.sample(request, "heun", subject.solution_steps, requests.step(request))
    wanted = {"solution": solution}
    if subject.trained:
        wanted["euler_200"] = requests.sample(request, "euler", 200, requests.step(request))
    decoded = {name: requests.decode(latents) for name, latents in wanted.items()} if subject.trained else {}
    rows = []
    for setting in settings(subject):
        step = requests.step(request, setting.cache or NEVER)
        latents = requests.sample(request, setting.solver, setting.steps, step)
        decibels = {f"latents_{name}": signal_to_error(latents, found) for name, found in wanted.items()}
        if subject.trained:
            picture = requests.decode(latents)
            for name, found in decoded.items():
                decibels |= {f"{kind}_{name}": value for kind, value in picture_decibels(picture, found).items()}
        rows.append({"setting": setting, "evaluations": step.evaluations, "decibels": decibels})
    return rows


def signal_to_error(found: Latents, wanted: Latents) -> float:
    """Return the norm of the wanted latents over the norm of the error [dB]."""
    exact = wanted.astype(np.float64)
    return float(20 * np.log10(np.linalg.norm(exact) / np.linalg.norm(found - exact)))


def picture_decibels(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> dict[str, float]:
    """Return PSNRs of a picture (4, height, width) in [0, 1]: RGB over white, alpha, and RGB rounded to bytes first."""
    colours, exact = over_white(found), over_white(wanted)
    return {
        "rgb": psnr(colours, exact),
        "alpha": psnr(found[3], wanted[3]),
        "rgb_8_bit": psnr(np.round(colours * 255) / 255, np.round(exact * 255) / 255),
    }


def over_white(picture: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return RGB (3, height, width) of a picture (4, height, width) over a white background."""
    alpha = picture[3].astype(np.float64)
    return picture[:3] * alpha + (1 - alpha)


def psnr(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the peak signal-to-noise ratio of values in [0, 1] [dB], at most 200, which equal values have."""
    error = float(np.mean((found.astype(np.float64) - wanted) ** 2))
    return -10 * math.log10(max(error, 1e-20))


def summary(by_request: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return a row for each setting with the means over requests."""
    rows = []
    for same in zip(*by_request, strict=True):
        setting = same[0]["setting"]
        cache = None
        if setting.cache is not None:
            threshold = None if math.isinf(setting.cache.threshold) else setting.cache.threshold  # JSON has no infinity
            cache = asdict(setting.cache) | {"threshold": threshold}
        by_measure = {name: [row["decibels"][name] for row in same] for name in same[0]["decibels"]}
        rows.append(
            {
                "solver": setting.solver,
                "steps": setting.steps,
                "cache": cache,
                "evaluations": fmean(row["evaluations"] for row in same),
                "decibels": {name: fmean(values) for name, values in by_measure.items()},
                "by_request": by_measure,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="requests at once, each in one process")
    parser.add_argument("--subjects", nargs="+", choices=tuple(SUBJECTS), default=tuple(SUBJECTS), help="to measure")
    parser.add_argument("--output", type=Path, default=RESULTS / "step-cache.json", help="whose other subjects stay")
    options = parser.parse_args()
    subjects = [SUBJECTS[name] for name in options.subjects]
    found = kept(options.output, subjects)
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        for subject in subjects:
            by_request = list(pool.map(partial(measure, subject), range(subject.requests)))
            found.append({**asdict(subject), "rows": summary(by_request), **environment()})
            print(subject.name, flush=True)
            document = {
                "what": "error of solvers and of a cache of the step's blocks, at equal evaluations of the network; "
                "a step whose head of F blocks ran alone counts as F / blocks; means of decibels over requests",
                "subjects": found,
            }
            options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def kept(output: Path, measured: Sequence[Subject]) -> list[dict[str, Any]]:
    """Return the subjects of an earlier result that are not measured again."""
    if not output.is_file():
        return []
    names = {subject.name for subject in measured}
    before: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8"))["subjects"]
    return [subject for subject in before if subject["name"] not in names]


if __name__ == "__main__":
    main()
