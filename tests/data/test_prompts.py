"""Prompt and parser agree, and the prompt stays cheap."""

import subprocess
import sys
from pathlib import Path

from data.prompts import SYSTEM_PROMPT, math_messages
from rewards import tags


def test_the_system_prompt_shows_the_format_that_the_parser_accepts():
    assert tags.FORMAT_EXAMPLE in SYSTEM_PROMPT
    filled = tags.FORMAT_EXAMPLE.replace("...", "2 + 2 = 4", 1).replace("...", "4", 1)
    parsed = tags.parse(filled)
    assert parsed is not None
    assert (parsed.reasoning, parsed.answer) == ("2 + 2 = 4", "4")


def test_echoing_the_prompt_is_no_answer():
    assert tags.parse(SYSTEM_PROMPT) is None


def test_messages_hold_the_question_unchanged():
    question = "How many <answer> tags?\n  Ünï – 1,080"
    system, user = math_messages(question)
    assert system == {"role": "system", "content": SYSTEM_PROMPT}
    assert user == {"role": "user", "content": question}


def test_the_system_prompt_stays_short():
    assert len(SYSTEM_PROMPT.split()) <= 20  # 36 tokens in SmolLM2's vocabulary, mostly the tags


def test_importing_the_data_room_loads_nothing_heavy():
    heavy = "'torch', 'transformers', 'trl', 'datasets', 'pyarrow', 'pandas', 'numpy'"
    code = f"import sys, data.gsm8k, data.gsm8k_sample; print([m for m in ({heavy}) if m in sys.modules])"
    repository = Path(__file__).resolve().parents[2]
    assert subprocess.check_output([sys.executable, "-c", code], cwd=repository).strip() == b"[]"
