import doctest
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import tags
from rewards.tags import FORMAT_EXAMPLE, TAGS, Parsed, completion_text, parse, render

PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=100)

BLOCK = st.text().filter(lambda text: re.search(r"[^\W_]", text) and not any(tag in text for tag in TAGS))
TAG_SOUP = st.lists(st.sampled_from([*TAGS, *TAGS, "18", "a b", " ", "\n", "<", ">"]) | st.text(max_size=3)).map(
    "".join
)


def parses(text: str) -> bool:
    """The grammar again, written to be obvious rather than fast."""
    pieces = re.split(f"({'|'.join(TAGS)})", text)
    return tuple(pieces[1::2]) == TAGS and all(
        (re.search(r"[^\W_]", pieces[2]), not pieces[4].strip(), re.search(r"[^\W_]", pieces[6]))
    )


def test_doctests() -> None:
    assert doctest.testmod(tags).failed == 0


def test_parse_takes_a_completion_apart() -> None:
    text = "Sure!\n<reasoning>\n 2 + 2\nis 4. \n</reasoning>\n\n<answer> 4 </answer> Bye."
    assert parse(text) == Parsed("2 + 2\nis 4.", "4", before="Sure!\n", after=" Bye.")


def test_format_example_shows_the_grammar_and_cannot_be_echoed_for_a_reward() -> None:
    assert FORMAT_EXAMPLE == "<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>"
    assert parse(FORMAT_EXAMPLE) is None
    filled = FORMAT_EXAMPLE.replace("...", "Two and two.", 1).replace("...", "4", 1)
    assert parse(filled) == Parsed("Two and two.", "4", "", "")


@PROPERTY
@given(reasoning=BLOCK, answer=BLOCK)
def test_parse_reads_what_render_writes(reasoning: str, answer: str) -> None:
    assert parse(render(reasoning, answer)) == Parsed(reasoning.strip(), answer.strip(), "", "")


@PROPERTY
@given(TAG_SOUP)
def test_parse_accepts_the_grammar_and_nothing_else(text: str) -> None:
    assert (parse(text) is not None) == parses(text)


@PROPERTY
@given(
    texts=st.tuples(st.text(), BLOCK, BLOCK, st.text()),
    place=st.integers(0, 3),
    tag=st.sampled_from(TAGS),
    data=st.data(),
)
def test_no_further_tag_is_forgiven_in_any_place(
    texts: tuple[str, str, str, str], place: int, tag: str, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(texts[place])))
    tagged = texts[place][:at] + tag + texts[place][at:]
    before, reasoning, answer, after = (*texts[:place], tagged, *texts[place + 1 :])
    assert parse(before + render(reasoning, answer) + after) is None


@PROPERTY
@given(reasoning=BLOCK, answer=BLOCK, data=st.data())
def test_no_truncation_is_forgiven(reasoning: str, answer: str, data: st.DataObject) -> None:
    text = render(reasoning, answer)
    assert parse(text[: data.draw(st.integers(0, len(text) - 1))]) is None


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("plain", "plain"),
        ("", ""),
        ([{"role": "assistant", "content": "said"}], "said"),
        ([{"content": "said"}], "said"),
        (
            [
                {"role": "assistant", "content": "I will look."},
                {"role": "tool", "content": "found"},
                {"role": "assistant", "content": "said"},
                {"role": "tool", "content": "late"},
            ],
            "said",
        ),
        ([{"role": "assistant", "tool_calls": "..."}], ""),
        ([{"role": "assistant", "content": None}], ""),
    ],
)
def test_completion_text_is_the_last_assistant_message(completion: tags.Completion, text: str) -> None:
    assert completion_text(completion) == text


@pytest.mark.parametrize("completion", [[], [{"role": "user", "content": "hello"}]])
def test_a_completion_without_assistant_is_the_callers_mistake(completion: tags.Completion) -> None:
    with pytest.raises(ValueError, match="expected a string, or messages with one by the assistant"):
        completion_text(completion)
