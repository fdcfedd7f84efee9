"""Bundles, checkpoints and calibrations with one damaged file: how each ends.

    python -m benchmarks.reliability.fuzz [--mutations 5000] [--first 0] [--bundle out/demo/bundle]
    python -m benchmarks.reliability.fuzz --seed 123 --keep /tmp/damaged

A seed decides everything: the subject, the file, the change, the engine. The second form makes one attempt and keeps
the damaged folder. An attempt ends well if it gives the picture of the whole bundle, or is refused in one line with
exit code 1 or 2, within 1 GB and the time limit. Another picture is well

- if the mutation repaired the manifest's hash: the manifest then describes another bundle;
- if a file above `SMALL_FILE_BYTES` has other weights behind its header, and the hashes of `verify` tell.

A checkpoint or a calibration may also be accepted: without a hash, a changed weight is a weight.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS, SHAPES
from benchmarks.reliability.attempts import (
    ACCEPTED,
    ANOTHER,
    CALIBRATION,
    HANG,
    PROMPTS,
    REFUSED,
    SAME,
    SUBJECTS,
    Job,
    Outcome,
    Worker,
    attempt,
    shortened,
)
from benchmarks.reliability.mutations import Mutation, copy_folder, mutate
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.bundle.files import SMALL_FILE_BYTES, verify_files
from qwen_image_engine.runtime.bundle.manifest import read_manifest

LIMIT_S = 20.0
ENGINES = ("onnxruntime",) * 7 + ("openvino",)
SHARES = {"bundle": 60, "checkpoint": 25, "calibration": 9, "unfinished calibration": 6}
EVERY = 100

SIGNED, VERIFY_TELLS = "another picture, signed", "another picture, verify tells"
GOOD = frozenset({SAME, REFUSED, ACCEPTED, SIGNED, VERIFY_TELLS})


@dataclass(frozen=True)
class Record:
    """The end of one attempt: its seed, what was changed in what, and the outcome."""

    seed: int
    subject: str
    engine: str | None
    mutation: Mutation
    state: str
    message: str

    def document(self) -> dict[str, Any]:
        """Return the record as JSON, with the beginning and the end of a long message."""
        flat = asdict(self)
        return {**flat.pop("mutation"), **flat, "message": shortened(self.message, 400)}


class Fuzzer:
    """Attempts on damaged copies of whole folders.

    Args:
        sources: whole folders by subject; a checkpoint is always needed.
        work: empty folder for copies.
        limit_s: time that an attempt may take [s]; a second attempt may take three times as much.
        engines: engines to draw with, drawn at random.
        in_process: subjects that are used in this process, without kinds of mutations that can make it wait.
    """

    def __init__(
        self,
        sources: Mapping[str, Path],
        work: Path,
        limit_s: float = LIMIT_S,
        engines: tuple[str, ...] = ENGINES,
        in_process: Iterable[str] = (),
    ) -> None:
        self._work, self._limit_s, self._engines = work, limit_s, engines
        self._in_process = frozenset(in_process)
        self._sources = {name: Path(shutil.copytree(folder, work / "whole" / name)) for name, folder in sources.items()}
        self._reference = work / "reference.png"
        Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(self._reference)
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> "Fuzzer":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            with suppress(OSError):
                worker.close()

    def run(self, seeds: Iterable[int]) -> Iterator[Record]:
        """Attempt to use the copy that each seed damages."""
        for seed in seeds:
            yield self.one(seed)

    def spread(self, seeds: Iterable[int]) -> Iterator[Record]:
        """Attempt to use the copies of seeds whose damage is the first of its sort.

        A sort is a subject, a kind of mutation and whether its hash was repaired, and for graphs the file as well.
        """
        seen = set()
        for seed in seeds:
            subject, job, mutation = self._damage(seed)
            sort = (subject, mutation.kind, mutation.signed, mutation.kind == "graph" and mutation.file)
            if sort not in seen:
                seen.add(sort)
                yield self._use(seed, subject, job, mutation)

    def one(self, seed: int) -> Record:
        """Damage a copy as `seed` says, attempt to use it, and leave it in `damaged` until the next seed."""
        return self._use(seed, *self._damage(seed))

    def _damage(self, seed: int) -> tuple[str, Job, Mutation]:
        """Damage a copy, and return its subject, the job of using it, and its change."""
        rng = random.Random(seed)
        subject = rng.choices(list(self._sources), [SHARES[name] for name in self._sources])[0]
        engine = rng.choice(self._engines)
        reference = self._reference if rng.random() < 0.3 else None
        folder = self.damaged
        shutil.rmtree(folder, ignore_errors=True)
        copy_folder(self._sources[subject], folder)
        mutation = mutate(folder, rng, places=subject not in self._in_process)
        output = self._work / "out.png"
        return subject, Job(SUBJECTS[subject], folder, self._sources["checkpoint"], output, engine, reference), mutation

    def _use(self, seed: int, subject: str, job: Job, mutation: Mutation) -> Record:
        outcome = self._attempt(subject, job)
        job.output.unlink(missing_ok=True)
        if subject == "unfinished calibration":  # finished by the attempt, beside what was damaged
            shutil.rmtree(job.folder, ignore_errors=True)
        message = outcome.message.replace(str(self._work), "WORK")  # a temporary folder, another each time
        state = self._judge(outcome.state, mutation, job.folder) if subject == "bundle" else outcome.state
        return Record(seed, subject, job.engine if subject == "bundle" else None, mutation, state, message)

    @property
    def damaged(self) -> Path:
        """The damaged copy of the last attempt."""
        return self._work / "damaged"

    def _attempt(self, subject: str, job: Job) -> Outcome:
        if subject in self._in_process:
            return attempt(job)
        worker = self._worker("bundle" if subject == "bundle" else "checkpoint", job)
        outcome = worker.attempt(job, self._limit_s)
        if outcome.state == HANG:  # or other processes took the machine's time
            outcome = worker.attempt(job, 3 * self._limit_s)
        if subject == "bundle" and outcome.state == SAME:
            expected = worker.expected[job.reference is not None]
            return outcome if outcome.pixels == expected.pixels else replace(outcome, state=ANOTHER)
        return outcome

    def _worker(self, whole: str, job: Job) -> Worker:
        """Return the worker for a job: for bundles each engine's own, and one for all that needs torch.

        It has used the whole folder of the subject `whole`, so that everything is imported.
        """
        key = job.engine if whole == "bundle" else "torch"
        if key not in self._workers:
            first = replace(job, use=SUBJECTS[whole], folder=self._sources[whole], reference=None)
            jobs = (first, replace(first, reference=self._reference)) if whole == "bundle" else (first,)
            worker = self._workers[key] = Worker(jobs)
            wrong = [outcome for outcome in worker.expected if outcome.state not in (SAME, ACCEPTED)]
            assert not wrong, f"the whole {whole} is not usable: {wrong[0].message}"
        return self._workers[key]

    def _judge(self, state: str, mutation: Mutation, folder: Path) -> str:
        if state != ANOTHER:
            return state
        if mutation.signed:
            return SIGNED
        file = folder / mutation.file
        with suppress(QwenImageError):
            if file.stat().st_size > SMALL_FILE_BYTES and verify_files(folder, read_manifest(folder)):
                return VERIFY_TELLS
        return state


def write_calibrations(checkpoint: Path, folder: Path) -> dict[str, Path]:
    """Write a calibration and an unfinished one, and return their folders by subject."""
    from qwen_image_engine.calibration.observe.calibrate import SAMPLING, calibrate

    def interrupt(stage: str, done: int, _: int) -> None:
        if stage == SAMPLING and done > CALIBRATION["steps"]:
            raise KeyboardInterrupt

    unfinished = folder / "unfinished"
    with suppress(KeyboardInterrupt):
        calibrate(checkpoint, unfinished, PROMPTS, **CALIBRATION, progress=interrupt)
    finished = Path(shutil.copytree(unfinished, folder / "calibration"))
    calibrate(checkpoint, finished, PROMPTS, **CALIBRATION)
    return {"calibration": finished, "unfinished calibration": unfinished}


def summary(records: Iterable[Record]) -> dict[str, Any]:
    """Return the counts of the states, by subject and kind of mutation, and the attempts that ended badly."""
    found = list(records)
    counts: dict[str, dict[str, Counter[str]]] = {name: {} for name in SUBJECTS}
    for record in found:
        counts[record.subject].setdefault(record.mutation.kind, Counter())[record.state] += 1
    bad = [record.document() for record in found if record.state not in GOOD]
    return {
        "mutations": len(found),
        "states": dict(sorted(Counter(record.state for record in found).items())),
        "bad": len(bad),
        "by_subject": {
            name: {kind: dict(sorted(states.items())) for kind, states in sorted(kinds.items())}
            for name, kinds in counts.items()
        },
        "ended_badly": bad,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seed", type=int, help="a single one")
    parser.add_argument("--keep", type=Path, help="folder for the damaged copy of the last seed")
    parser.add_argument("--bundle", type=Path, default=Path("out/demo/bundle"))
    parser.add_argument("--checkpoint", type=Path, default=SHAPES)
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="time for an attempt [s]")
    parser.add_argument("--output", type=Path, help="JSON file (benchmarks/results/fuzz.json for more than one seed)")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.mutations)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        work = Path(name)
        sources = {"bundle": options.bundle, "checkpoint": options.checkpoint}
        sources |= write_calibrations(options.checkpoint, work / "calibrations")
        with Fuzzer(sources, work, options.limit) as fuzzer:
            records = []
            for record in fuzzer.run(seeds):
                records.append(record)
                if record.state not in GOOD or len(seeds) == 1:
                    print(json.dumps(record.document(), ensure_ascii=False), file=sys.stderr, flush=True)
                if len(records) % EVERY == 0:
                    print(f"{len(records)} of {len(seeds)}", file=sys.stderr, flush=True)
            if options.keep is not None:
                shutil.copytree(fuzzer.damaged, options.keep, symlinks=True)
    found = summary(records)
    output = options.output or (RESULTS / "fuzz.json" if len(seeds) > 1 else None)
    if output is not None:
        document = {
            "what": f"copies of folders with one damaged file; at most {options.limit:g} s and 1 GB for each, "
            f"{3 * options.limit:g} s where a first attempt took longer",
            "first_seed": seeds[0],
            **found,
            **environment(),
        }
        output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(output, file=sys.stderr)
    sys.exit(1 if found["bad"] else 0)


if __name__ == "__main__":
    main()
