"""What a judge as a reward costs beside the judge's own time: `python -m recipes.bench.judge_speed`.

- warm cache: `rag_correctness_reward` over completions whose verdicts are on disk, in steps of 16, opened anew, so that
  nothing is in memory and no request leaves
- step: 16 completions that are not in the cache, with a server on loopback that takes one second for each request and
  16 requests at a time; one request a completion, since the rubric's evaluation steps are fixed

The server is Python's own with a scripted verdict: it stands for any judge that is slower than what is measured here.
Both are wall time, the libraries' work on prompts and verdicts included. The first call of the reward, which imports
them, is made before.
"""

import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from recipes.bench import gauge
from rewards import deepeval
from rewards.contract import Reward
from rewards.judge import Counts, connect
from rewards.tags import render

STEP = 16  # completions of a step, and requests at a time
LOOKUPS, LOOKUP_BAR = 2_000, 10_000  # different completions, and how many of them a second
CALL_SECONDS, STEP_BAR = 1.0, 1.5
ROUNDS = 5


@contextmanager
def serve(answer: Callable[[dict[str, Any]], str], seconds: float = 0.0) -> Iterator[str]:
    """An OpenAI-compatible server on loopback, gone after the block; yields its address.

    Args:
        answer: the text of the reply to a chat request; called from several threads.
        seconds: how long every reply takes at least.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # headers and body in one packet

        def do_GET(self) -> None:
            self.reply({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = answer(request)
            time.sleep(seconds)
            words = sum(len(message["content"].split()) for message in request["messages"])
            usage = {"prompt_tokens": words, "completion_tokens": len(text.split())}
            self.reply({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage})

        def reply(self, body: dict[str, Any]) -> None:
            encoded = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: a line for each request is not worth reading."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # five by default: of 16 connections at once some would wait a second to be retried

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def verdict(request: dict[str, Any]) -> str:
    """Full marks, as DeepEval's GEval reads them."""
    return '{"reason": "It states the reference.", "score": 10}'


def build_columns(count: int, first: int = 0) -> dict[str, list[Any]]:
    """`count` different completions with the columns of a judge reward, the numbers in them from `first` on."""
    numbers = range(first, first + count)
    golds = [f"{number} bridges" for number in numbers]
    texts = [render("The passage says so.", gold) for gold in golds]
    return {
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "question": [f"How many bridges had the town of case {number}?" for number in numbers],
        "answer": golds,
        "aliases": [[gold] for gold in golds],
        "passages": [[f"Case {number}\nThe town had {number} bridges over its river."] for number in numbers],
    }


def measure_lookups(folder: Path, count: int) -> float:
    """Verdicts a second out of a cache in `folder` that holds `count` of them: the median of `ROUNDS` readings.

    Raises RuntimeError where a verdict is missing or a request was made while reading.
    """
    columns = build_columns(count)
    with serve(verdict) as address:
        reward, _ = _reward(address, folder)
        found = reward(**columns)
        if found != [1.0] * count:
            raise RuntimeError(f"{found.count(1.0)} of {count} verdicts arrived: nothing warm to measure")
        reward, counts = _reward(address, folder)
    steps = [{name: values[i : i + STEP] for name, values in columns.items()} for i in range(0, count, STEP)]
    seconds = []
    for number in range(1, ROUNDS + 1):
        began = time.perf_counter()
        scores = [score for step in steps for score in reward(**step)]
        seconds.append(time.perf_counter() - began)
        if scores != [1.0] * count or counts.cached != count * number or counts.requests:
            raise RuntimeError(f"{scores.count(1.0)} of {count} read, {counts} after {number} rounds")
    return count / statistics.median(seconds)


def measure_step(folder: Path, seconds: float) -> list[float]:
    """How long the reward of `STEP` new completions takes, `ROUNDS` times, where a request takes `seconds`.

    Raises RuntimeError where there was not one request and one verdict for every completion.
    """
    with serve(verdict) as quick:  # which imports the libraries
        _reward(quick, folder)[0](**build_columns(1))
    waits = []
    with serve(verdict, seconds) as address:
        reward, counts = _reward(address, folder)
        for number in range(ROUNDS):
            columns = build_columns(STEP, first=1 + STEP * number)
            began = time.perf_counter()
            scores = reward(**columns)
            waits.append(time.perf_counter() - began)
            if scores != [1.0] * STEP or counts.requests != STEP * (number + 1):
                raise RuntimeError(f"{scores.count(1.0)} of {STEP} verdicts, {counts.requests} requests in all")
    return waits


def _reward(address: str, folder: Path) -> tuple[Reward, Counts]:
    judge = connect(address, cache=folder, concurrency=STEP)
    assert judge
    return deepeval.rag_correctness_reward(judge), judge.counts


def table(found: dict[str, float]) -> list[tuple[str, bool]]:
    """A line for each figure with its bar, and whether it is met."""
    rate, wait = found["lookups_per_second"], found["step_seconds"]
    lines = [
        (f"warm cache, verdicts a second    {rate:9,.0f}   at least {LOOKUP_BAR:,}: ", rate >= LOOKUP_BAR),
        (f"longest step of {STEP}, seconds       {wait:9.3f}   at most {STEP_BAR}: ", wait <= STEP_BAR),
    ]
    return [(line + ("met" if met else "MISSED"), met) for line, met in lines]


def main() -> int:
    """Print the figures and write them to eval/results/; 0 where both bars are met, 1 where one is missed."""
    gauge.command_line(__doc__).parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of the machine only the cores matter here
    about = gauge.about()
    with tempfile.TemporaryDirectory() as folder:
        waits = measure_step(Path(folder) / "step", CALL_SECONDS)
        rate = measure_lookups(Path(folder) / "warm", LOOKUPS)
    found = {
        "lookups_per_second": round(rate),
        "step_seconds": round(max(waits), 3),  # no step may wait longer than the bar
        "median_step_seconds": round(statistics.median(waits), 3),
    }
    print(f"{about['machine']}; {ROUNDS} rounds of each")
    lines, met = zip(*table(found), strict=True)
    print(*lines, sep="\n")
    gauge.keep("judge", {**about, **found, "met": all(met)})
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
