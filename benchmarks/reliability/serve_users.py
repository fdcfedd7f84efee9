"""Users of the server for locust, a public tool for loads, which is installed apart: `pip install locust`.

    locust -f benchmarks/reliability/serve_users.py --headless -u 16 -r 8 -t 60s --host http://127.0.0.1:8000

`benchmarks.reliability.serve --locust COMMAND` starts it. A request that is refused because the queue is full is none
of its failures; a 500 is, and so is a bad request that is not refused.
"""

import random

from locust import HttpUser, task

GENERATIONS = "/v1/images/generations"
SMALL = {"prompt": "a red circle", "size": "64x64", "num_inference_steps": 2}


class Client(HttpUser):
    """A client that draws, watches a stream, errs and looks around."""

    def post(self, name: str, expected: int, **fields: object) -> None:
        fields = {**SMALL, "seed": random.randrange(1000), **fields}
        with self.client.post(GENERATIONS, json=fields, catch_response=True, name=name, stream=True) as reply:
            body = b"".join(reply.iter_content(65536))
            if reply.status_code not in (expected, 429) or b"event: error" in body:
                reply.failure(f"{reply.status_code}: {body[:200]!r}")
            else:
                reply.success()

    @task(5)
    def draw(self) -> None:
        self.post("picture", 200)

    @task(2)
    def watch(self) -> None:
        self.post("stream", 200, stream=True, partial_images=2, num_inference_steps=3)

    @task(2)
    def err(self) -> None:
        self.post("bad", 400, **random.choice([{"size": "63x64"}, {"n": 0}, {"steps": 4}, {"prompt": None}]))

    @task(1)
    def look(self) -> None:
        for path in ("/v1/models", "/metrics", "/ready", "/openapi.json"):
            self.client.get(path)
