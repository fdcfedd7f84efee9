"""The server beside `generate` in a loop, under the load of many clients, and left by clients.

    python -m benchmarks.reliability.serve [--bundle out/demo/bundle]

The server and the loop are one process with one pipeline, which draws for one of them at a time. The clients are
another process. Rounds alternate between the two, so that other load on the machine falls on both.
"""

import argparse
import base64
import io
import json
import multiprocessing
import os
import random
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter, process_time, sleep
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.system.memory_use import MemoryUse

GENERATIONS = "/v1/images/generations"
PROMPTS = ("a red circle", "a blue square left of a green triangle", "two small yellow circles on a black background")
EVERY = 50
WARM = 100
"""Requests after which memory is taken to be at its level."""
STEPS = 20
LOAD_STEPS = 4


class Host:
    """A process with a pipeline, which serves it and draws with it.

    Attributes:
        address: address of the server.
        process: id of the process.
    """

    def __init__(self, bundle: Path, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._end, theirs = spawn.Pipe()
        self._child = spawn.Process(target=_serve, args=(theirs, bundle, threads), daemon=True)
        self._child.start()
        theirs.close()
        self.address: str = self._end.recv()
        self.process = self._child.pid or 0

    def draw(self, **options: Any) -> "Drawn":
        """Draw with `generate`."""
        self._end.send(options)
        drawn: Drawn = self._end.recv()
        return drawn

    def cpu_s(self) -> float:
        """Return the CPU seconds that the process has used, in all its threads."""
        self._end.send({})
        seconds: float = self._end.recv()
        return seconds

    def close(self) -> None:
        self._end.send(None)
        self._child.join()


@dataclass(frozen=True)
class Drawn:
    """A picture of `generate`.

    Attributes:
        seconds: wall-clock time.
        cpu_s: CPU time of the process.
        encoding_cpu_s: CPU time of encoding its PNG, which is no part of the others.
        pixels: hash of the pixels.
        steps: seconds until each step was taken.
    """

    seconds: float
    cpu_s: float
    encoding_cpu_s: float
    pixels: str
    steps: list[float]


def _serve(requests: Connection, bundle: Path, threads: int) -> None:
    from qwen_image_engine.runtime.serve.app import Service
    from qwen_image_engine.runtime.serve.log import Log
    from qwen_image_engine.runtime.serve.models import Model, Models
    from qwen_image_engine.runtime.serve.server import Server, address_of, listen

    pipeline = QwenImage.load(bundle, threads=threads)
    with Path(os.devnull).open("w", encoding="utf-8") as lines:
        service = Service.create(Models([Model("model", pipeline)]), Log(lines))
        listener = listen("127.0.0.1", 0)
        server = Server(service, listener)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            requests.send(address_of(listener))
            while (options := requests.recv()) is not None:
                requests.send(_draw(pipeline, options) if options else process_time())
        finally:  # also where the other process has ended
            server.stop()
            thread.join()


def _draw(pipeline: QwenImage, options: Mapping[str, Any]) -> Drawn:
    from qwen_image_engine.runtime.serve.encoding import Output, encode

    steps: list[float] = []
    began, cpu_began = perf_counter(), process_time()
    (picture,) = pipeline.generate(on_step=lambda step: steps.append(perf_counter() - began), **options)
    seconds, cpu_s = perf_counter() - began, process_time() - cpu_began
    pipeline.timings.clear()
    encode(picture.rgba, Output(), picture.parameters)
    encoding_cpu_s = process_time() - cpu_began - cpu_s
    return Drawn(seconds, cpu_s, encoding_cpu_s, pixels_hash(picture.rgba), steps)


def pixels_hash(rgba: Any) -> str:
    return sha256(np.ascontiguousarray(rgba).tobytes()).hexdigest()


def picture_hash(b64: str) -> str:
    with Image.open(io.BytesIO(base64.b64decode(b64))) as image:
        return pixels_hash(np.asarray(image))


def metric(client: httpx2.Client, name: str) -> float:
    """Return the sum of a metric over its labels that `name` leaves open."""
    text = client.get("/metrics").text
    return sum(float(value) for value in re.findall(rf"^qwen_image_{name} (\S+)$", text, re.MULTILINE))


ENCODED = r"stage_seconds_total\{stage=\"encode_file\"\}"


def overhead(host: Host, client: httpx2.Client, rounds: int, side: int) -> dict[str, Any]:
    """Return the seconds of pictures in a loop and through the server, without the encoding of their files.

    CPU seconds are of the whole process, which is the server and the loop: they tell where other processes have taken
    the cores.
    """
    request = {"prompt": PROMPTS[0], "size": f"{side}x{side}", "num_inference_steps": STEPS}
    options: dict[str, Any] = {"width": side, "height": side, "steps": STEPS}
    looped, through, encoded, through_cpu = [], [], [], []
    for number in range(rounds + 1):
        for which in ("loop", "server") if number % 2 else ("server", "loop"):
            if which == "loop":
                looped.append(host.draw(prompt=PROMPTS[0], seed=number, **options))
            else:
                before, cpu_before = metric(client, ENCODED), host.cpu_s()
                began = perf_counter()
                reply = client.post(GENERATIONS, json={**request, "seed": number})
                seconds, cpu_s = perf_counter() - began, host.cpu_s() - cpu_before
                encoded.append(metric(client, ENCODED) - before)
                through.append(seconds - encoded[-1])
                through_cpu.append(cpu_s)
                found = picture_hash(reply.json()["data"][0]["b64_json"])
        assert found == looped[-1].pixels, f"the picture of seed {number} is another one"
    for values in (looped, through, encoded, through_cpu):
        del values[0]  # the first shapes of a process take longer
    pairs = [served / alone.seconds for served, alone in zip(through, looped, strict=True)]
    cpu = [served - alone.encoding_cpu_s for served, alone in zip(through_cpu, looped, strict=True)]
    cpu_pairs = [served / alone.cpu_s for served, alone in zip(cpu, looped, strict=True)]
    generate_s = median(alone.seconds for alone in looped)
    return {
        "rounds": rounds,
        "generate_s": generate_s,
        "server_s": median(through),
        "encoding_s": median(encoded),
        "ratio": median(pairs),
        "ratios": [round(pair, 4) for pair in pairs],
        "generate_cpu_s": median(alone.cpu_s for alone in looped),
        "server_cpu_s": median(cpu),
        "encoding_cpu_s": median(alone.encoding_cpu_s for alone in looped),
        "cpu_ratio": median(cpu_pairs),
        "cpu_ratios": [round(pair, 4) for pair in cpu_pairs],
        "four": _many(host, client, request, options),
    }


def _many(host: Host, client: httpx2.Client, request: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seconds of four pictures of one request, whose files are encoded while the next is drawn."""
    before, cpu_before = metric(client, ENCODED), host.cpu_s()
    began = perf_counter()
    client.post(GENERATIONS, json={**request, "seed": 0, "n": 4}).raise_for_status()
    seconds, cpu_s = perf_counter() - began, host.cpu_s() - cpu_before
    encoding_s = metric(client, ENCODED) - before
    drawn = [host.draw(prompt=PROMPTS[0], seed=seed, **options) for seed in range(4)]
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "encoding_s": encoding_s,
        "generate_s": sum(one.seconds for one in drawn),
        "generate_cpu_s": sum(one.cpu_s for one in drawn),
        "generate_and_encoding_cpu_s": sum(one.cpu_s + one.encoding_cpu_s for one in drawn),
    }


def first_partial(host: Host, client: httpx2.Client, side: int) -> dict[str, Any]:
    """Return the seconds until the first of three partial pictures, and until its step in a loop."""
    request = {"prompt": PROMPTS[0], "size": f"{side}x{side}", "num_inference_steps": STEPS, "seed": 1}
    began = perf_counter()
    with client.stream("POST", GENERATIONS, json={**request, "stream": True, "partial_images": 3}) as reply:
        for line in reply.iter_lines():
            if line == "event: image_generation.partial_image":
                first_s = perf_counter() - began
                break  # and the client leaves
    _idle(client)
    steps = host.draw(prompt=PROMPTS[0], seed=1, width=side, height=side, steps=STEPS).steps
    return {"seconds": first_s, "its_step_s": steps[4], "the_next_step_s": steps[5], "last_step_s": steps[-1]}


def load(
    host: Host, client: httpx2.Client, requests: int, clients: int, side: int, report: bool = False
) -> dict[str, Any]:
    """Ask for pictures of many seeds from many clients at once, and compare each with its seed's."""
    resident: dict[str, int] = {}
    done = 0
    lock = threading.Lock()

    def ask(number: int) -> tuple[int, str, float]:
        nonlocal done
        fields = {"prompt": PROMPTS[number % 3], "seed": number, "num_inference_steps": LOAD_STEPS}
        began = perf_counter()
        reply = client.post(GENERATIONS, json={**fields, "size": f"{side}x{side}"})
        seconds = perf_counter() - began
        found = picture_hash(reply.json()["data"][0]["b64_json"]) if reply.status_code == 200 else ""
        with lock:
            done += 1
            if done == 1 or done % EVERY == 0:
                resident[str(done)] = _resident(host)
                if report:
                    print(f"{done} requests: {resident[str(done)] / 1e6:.0f} MB", file=sys.stderr, flush=True)
        return reply.status_code, found, seconds

    began = perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        replies = list(pool.map(ask, range(requests)))
    seconds = perf_counter() - began
    size: dict[str, Any] = {"width": side, "height": side, "steps": LOAD_STEPS}
    expected = [host.draw(prompt=PROMPTS[number % 3], seed=number, **size).pixels for number in range(requests)]
    levels = [value for count, value in resident.items() if int(count) >= min(WARM, requests)] or [_resident(host)]
    return {
        "requests": requests,
        "clients": clients,
        "seconds": seconds,
        "lost": sum(status != 200 for status, *_ in replies),
        "mixed_up": sum(found != same for (_, found, _), same in zip(replies, expected, strict=True)),
        "longest_s": max(taken for *_, taken in replies),
        "resident_bytes": resident,
        "growth_bytes": levels[-1] - levels[0],
    }


def leave(host: Host, client: httpx2.Client, leavers: int, side: int) -> dict[str, Any]:
    """Leave requests at random moments, and look at what remains of them."""
    drawn_once = host.draw(prompt=PROMPTS[0], seed=0, width=side, height=side, steps=STEPS)
    _idle(client)
    before = {"threads": _count(host, "task"), "files": _count(host, "fd"), "resident_bytes": _resident(host)}
    drawn, cancelled = (metric(client, name) for name in (r"pictures_total\{.*\}", "cancelled_total"))
    rng = random.Random(0)
    freed = []
    for number in range(leavers):
        fields = {"prompt": PROMPTS[0], "seed": number, "size": f"{side}x{side}", "num_inference_steps": STEPS}
        _ask_and_leave(host.address, {**fields, "stream": number % 2 == 0}, rng.uniform(0, drawn_once.seconds))
        began = perf_counter()
        _idle(client)
        freed.append(perf_counter() - began)
    after = {"threads": _count(host, "task"), "files": _count(host, "fd"), "resident_bytes": _resident(host)}
    finished, stopped = (metric(client, name) for name in (r"pictures_total\{.*\}", "cancelled_total"))
    return {
        "leavers": leavers,
        "finished_before_they_left": finished - drawn,
        "stopped": stopped - cancelled,
        "a_step_s": median(np.diff(drawn_once.steps).tolist()),
        "longest_until_idle_s": max(freed),
        "before": before,
        "after": after,
        "failures": metric(client, "failures_total"),
    }


def _ask_and_leave(address: str, fields: Mapping[str, Any], after_s: float) -> None:
    host, _, port = address.removeprefix("http://").partition(":")
    body = json.dumps(fields)
    head = f"Host: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    end = monotonic() + after_s
    with socket.create_connection((host, int(port))) as connection, suppress(TimeoutError):
        connection.sendall(f"POST {GENERATIONS} HTTP/1.1\r\n{head}{body}".encode())
        while (left := end - monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(1 << 16):
                return


def by_locust(host: Host, command: str, users: int, seconds: int) -> dict[str, Any]:
    """Return requests, failures and seconds of each kind of request of locust's users."""
    script = Path(__file__).with_name("serve_users.py")
    flags = ["--headless", "-u", str(users), "-r", str(users), "-t", f"{seconds}s", "--host", host.address, "--json"]
    environment_of_its_own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*shlex.split(command), "-f", str(script), *flags],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env=environment_of_its_own,
    )
    return {
        entry["name"]: {
            "requests": entry["num_requests"],
            "failures": entry["num_failures"],
            "mean_s": entry["total_response_time"] / max(1, entry["num_requests"]) / 1000,
        }
        for entry in json.loads(done.stdout)
    }


def _idle(client: httpx2.Client) -> None:
    while metric(client, "working") or metric(client, "queue_length"):
        sleep(0.01)


def _resident(host: Host) -> int:
    use = MemoryUse.of(host.process)
    assert use is not None, "this system does not report a process's memory"
    return use.resident_bytes


def _count(host: Host, kind: str) -> int:
    return len(list(Path(f"/proc/{host.process}/{kind}").iterdir()))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("out/demo/bundle"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--side", type=int, default=512, help="pixels of the pictures that are timed")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--load-side", type=int, default=128, help="pixels of the pictures of the load")
    parser.add_argument("--leavers", type=int, default=50)
    parser.add_argument("--locust", help="command of locust, for a load by a public tool (none)")
    parser.add_argument("--locust-seconds", type=int, default=60)
    parser.add_argument("--output", type=Path, default=RESULTS / "serve.json")
    options = parser.parse_args(arguments)
    manifest = read_manifest(options.bundle)
    began_at = os.getloadavg()[0]
    host = Host(options.bundle, options.threads)
    bounds = httpx2.Limits(max_connections=options.clients + 1)
    with httpx2.Client(base_url=host.address, timeout=600, limits=bounds) as client:
        document = {
            "what": f"pictures of {STEPS} steps at {options.side}x{options.side} through the server and in a loop, "
            f"both without encoding files; a load of pictures of {LOAD_STEPS} steps at "
            f"{options.load_side}x{options.load_side}; clients that leave",
            "checkpoint": manifest.checkpoint.name,
            "precision": manifest.precision,
            "threads": options.threads,
            "overhead": overhead(host, client, options.rounds, options.side),
            "first_partial": first_partial(host, client, options.side),
            "load": load(host, client, options.requests, options.clients, options.load_side, report=True),
            "leave": leave(host, client, options.leavers, options.load_side),
            "load_averages": [began_at, os.getloadavg()[0]],
            **environment(),
        }
        if options.locust:
            document["locust"] = by_locust(host, options.locust, options.clients, options.locust_seconds)
            document["locust"]["failures_of_the_server"] = metric(client, "failures_total")
    host.close()
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(options.output, file=sys.stderr)


if __name__ == "__main__":
    main()
