"""No usage ping leaves a process that imports a recipe: the environment, and the sockets themselves.

The same script runs twice, with and without `recipes.common`. Without it, the libraries must be seen to call
home, or the silence of the other run would prove nothing. An audit hook refuses every connection before it is
made.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import recipes.common
from recipes.common import NO_PINGS

ROOT = Path(recipes.common.__file__).parents[2]

CALL_HOME = """
import os, sys

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        os.write(1, f"{event} {args}\\n".encode())
        if "posthog" in str(args):
            os._exit(0)  # the last that can come; refused, it would try again for seconds
        raise OSError("refused by the test")

sys.addaudithook(refuse)
if sys.argv[1] == "quiet":
    import recipes.common

from huggingface_hub.utils import send_telemetry
send_telemetry("trl/GRPOTrainer", library_name="trl")
from huggingface_hub.utils import _telemetry
_telemetry._TELEMETRY_QUEUE.join()

from deepeval.metrics import GEval
from deepeval.models import DeepEvalBaseLLM
from deepeval.test_case import LLMTestCase, SingleTurnParams

class Judge(DeepEvalBaseLLM):
    def load_model(self): return self
    def get_model_name(self): return "local"
    def generate(self, prompt, schema): return schema(reason="fine", score=7)
    async def a_generate(self, prompt, schema): return self.generate(prompt, schema)

metric = GEval(name="quality", evaluation_steps=["Judge."], model=Judge(), async_mode=False,
               evaluation_params=[SingleTurnParams.ACTUAL_OUTPUT])
metric.measure(LLMTestCase(input="a", actual_output="b"), _show_indicator=False)
assert metric.score == 0.7
"""  # DeepEval's events go out in a thread that the interpreter waits for on its way out.


def _clean_environment() -> dict[str, str]:
    switches = {*NO_PINGS, "CI", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DISABLE_TELEMETRY"}
    return {name: value for name, value in os.environ.items() if name not in switches}


def _python(*args: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = _clean_environment() | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


PRINT_SWITCHES = f"import recipes.common, os; print(*(os.environ[name] for name in {list(NO_PINGS)}))"


def test_importing_the_common_room_switches_pings_off():
    assert _python("-c", PRINT_SWITCHES).stdout.split() == ["1"] * len(NO_PINGS)


@pytest.mark.parametrize("name", NO_PINGS)
def test_a_users_own_value_survives(name):
    values = dict(zip(NO_PINGS, _python("-c", PRINT_SWITCHES, **{name: "0"}).stdout.split(), strict=True))
    assert values == NO_PINGS | {name: "0"}


def test_no_ping_leaves_the_process(tmp_path):
    script = tmp_path / "call_home.py"
    script.write_text(CALL_HOME)
    runs = {mode: _python(str(script), mode, cwd=tmp_path, HOME=str(tmp_path)) for mode in ("quiet", "as_shipped")}
    for run in runs.values():
        assert run.returncode == 0, run.stderr
    assert "huggingface.co" in runs["as_shipped"].stdout and "posthog.com" in runs["as_shipped"].stdout
    assert runs["quiet"].stdout == ""


@pytest.mark.usefixtures("unsloth")  # before trl
def test_trl_calls_home_through_the_hub():
    """What every trainer calls at the end of `__init__` is the function that the test above calls."""
    import huggingface_hub.utils
    from trl.trainer import base_trainer

    assert base_trainer.send_telemetry is huggingface_hub.utils.send_telemetry
