"""What the audit finds in single rows, and in what a real trainer makes of good and of broken data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.common.supervision import (
    CUT,
    DOUBLE_BOS,
    ENDLESS,
    LEFT_OUT,
    MASKED,
    NO_BOS,
    NOTHING,
    PADDED,
    PROMPTS_DIFFER,
    SAME,
    Text,
    Tokens,
    audit,
    audit_pairs,
    find_flaws,
    find_pair_flaws,
    mark_supervised,
)

BOS, END, OTHER_END, PAD, NEWLINE = 1, 2, 3, 4, 5
TOKENS = Tokens(frozenset({END, OTHER_END}), BOS, PAD, lambda token: token == NEWLINE)
PAD_IS_END = Tokens(frozenset({END}), BOS, END, lambda token: token == NEWLINE)
OPT = Tokens(frozenset({END}), END, BOS, lambda token: token == NEWLINE)  # begins and ends with one token
X, Y = 10, 11

# name: row, with its supervised tokens negative; what is found
ROWS_AND_FLAWS: dict[str, tuple[list[int], list[str]]] = {
    "fine": ([BOS, X, -Y, -END], []),
    "a newline after the end": ([BOS, X, -Y, -END, -NEWLINE], []),
    "the model's other end": ([BOS, X, -Y, -OTHER_END, -NEWLINE, -NEWLINE], []),
    "an end after a newline": ([X, -Y, -NEWLINE, -END], []),
    "an empty answer": ([X, Y, -END, -NEWLINE], []),
    "a text after the end that is not trained": ([X, -Y, -END, X, X], []),
    "everything is trained": ([-BOS, -X, -Y, -END], []),
    "nothing trained": ([BOS, X, Y, END], [NOTHING]),
    "only what nothing predicts": ([-X, Y, END], [NOTHING]),
    "no tokens": ([], [NOTHING]),
    "no end": ([X, -Y, -Y], [ENDLESS]),
    "only white space": ([X, -NEWLINE, -NEWLINE], [ENDLESS]),
    "the end is not trained": ([X, -Y, END], [ENDLESS]),
    "an end in the middle": ([X, -END, -Y, -NEWLINE], [ENDLESS]),
    "cut": ([X, X, X, X, X, -Y, -Y, -Y], [CUT]),
    "as long as the limit": ([X, X, X, X, X, -Y, -Y, -END], []),
    "cut in the prompt": ([X, X, X, X, X, Y, Y, Y], [NOTHING]),
    "double": ([BOS, BOS, X, -Y, -END], [DOUBLE_BOS]),
    "double and endless": ([BOS, BOS, X, -Y], [DOUBLE_BOS, ENDLESS]),
    "twice, but not at the start": ([X, BOS, BOS, -Y, -END], []),
}


def split(row: list[int]) -> tuple[list[int], list[int]]:
    return [abs(token) for token in row], [-token if token < 0 else MASKED for token in row]


@pytest.mark.parametrize(("row", "flaws"), ROWS_AND_FLAWS.values(), ids=ROWS_AND_FLAWS)
def test_a_row_has_these_flaws(row: list[int], flaws: list[str]) -> None:
    assert find_flaws(*split(row), TOKENS, limit=8) == flaws


def test_without_a_limit_nothing_is_cut() -> None:
    assert find_flaws(*split([X, X, X, X, X, -Y, -Y, -Y]), TOKENS, limit=None) == [ENDLESS]


@pytest.mark.parametrize("row", [[X, -Y, END], [X, -Y, END, -NEWLINE], [X, -Y, NEWLINE, END]])
def test_an_end_that_was_masked_as_padding_is_told_from_a_missing_one(row: list[int]) -> None:
    assert find_flaws(*split(row), PAD_IS_END, limit=3) == [PADDED]
    assert find_flaws(*split([X, -Y, X]), PAD_IS_END, limit=None) == [ENDLESS]
    assert find_flaws(*split([X, -Y, -END]), PAD_IS_END, limit=None) == []


def test_a_beginning_that_is_also_the_end_is_doubled_only_before_a_text() -> None:
    assert find_flaws(*split([END, END, X, -Y, -END]), OPT, limit=None) == [DOUBLE_BOS]
    assert find_flaws(*split([END, X, -Y, -END]), OPT, limit=None) == []
    assert find_flaws(*split([END, -END]), OPT, limit=None) == []


def test_a_row_is_shown_with_its_supervised_runs_and_no_raw_control_characters() -> None:
    texts = {1: "Q\n", 2: "\x1b[31m\u202e", 3: "é ", 4: "<|im_end|>"}
    shown = mark_supervised(
        [1, 2, 3, 4, 1],
        [MASKED, MASKED, 3, 4, MASKED],
        lambda ids: "".join(texts[token] for token in ids),
        ("«", "»"),
    )
    assert shown == "Q\\n\n\\x1b[31m\\u202e«é <|im_end|>»Q\\n\n"


# A real trainer

Build = Callable[..., Any]


@pytest.fixture(scope="module")
def build(load_lora: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """`build(rows, **settings)`: an SFTTrainer on the tiny model. `template` and `pad_token` are the tokenizer's."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load_lora(tiny, rank=4)
    template, pad_token = tokenizer.chat_template, tokenizer.pad_token
    folder = str(tmp_path_factory.mktemp("trainer"))

    def make(rows: list[dict[str, Any]], **settings: Any) -> Any:
        tokenizer.chat_template = settings.pop("template", template)
        tokenizer.pad_token = settings.pop("pad_token", pad_token)
        settings = {"max_length": 512, "per_device_train_batch_size": 8} | settings
        config = SFTConfig(output_dir=folder, report_to="none", bf16=True, completion_only_loss=True, **settings)
        return SFTTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)

    return make


def example(question: str, answer: str, **extra: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": question}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}], **extra}


GOOD = [example(f"What is {n} and {n}?" + " Think." * (n % 4) ** 3, f"It is {n + n}.") for n in range(40)]
ENDLESS_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def test_good_rows_pass_in_one_line(build: Build, capsys: Any) -> None:
    import torch

    trainer = build([{**row, "extra": "x"} for row in GOOD])
    state = torch.get_rng_state()
    capsys.readouterr()
    result = audit(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Supervision of 40 rows: all well; ")
    assert line.endswith("padding in batches of 8")
    assert json.loads(json.dumps(result)) == result
    assert result["rows"] == 40
    assert set(result["flaws"].values()) == {0}
    assert not result["pad_is_eos"]
    assert result["tokens"]["p50"] < result["tokens"]["p95"] <= result["tokens"]["max"] < 512 == result["length_limit"]


def test_the_padding_is_that_of_the_batches_that_training_makes(build: Build) -> None:
    shares = {}
    for strategy in ("random", "group_by_length"):
        trainer = build(GOOD, per_device_train_batch_size=2, train_sampling_strategy=strategy)
        shares[strategy] = audit(trainer)["padding"]  # over so few rows, batches of 8 would not be grouped
        masks = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
        real = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        assert shares[strategy] == pytest.approx(real, abs=0.1)  # in another random order
    assert 0 < shares["group_by_length"] < 0.6 * shares["random"]


def test_a_template_without_an_end_token_is_refused(build: Build, capsys: Any) -> None:
    trainer = build(GOOD, template=ENDLESS_TEMPLATE)
    with pytest.raises(ValueError, match=r"^no supervised end token in 40 of 40 rows, .*<\|im_end\|>.*--allow-unsup"):
        audit(trainer)
    result = audit(trainer, allow_unsupervised=True)
    assert result["flaws"] == {NOTHING: 0, DOUBLE_BOS: 0, ENDLESS: 40, CUT: 0, PADDED: 0}
    table = capsys.readouterr().out.splitlines()[-2:]
    assert table[0].split() == ["what", "rows", "share", "what", "to", "do"]
    assert table[1].split()[:6] == ["no", "supervised", "end", "token", "40", "100.0%"]


def test_a_limit_that_cuts_every_answer_is_refused(build: Build) -> None:
    rows = [example("What is two and two?", "It is four. " * 20) for _ in range(10)]
    trainer = build(rows, max_length=48)
    with pytest.raises(ValueError, match=r"^truncated answer in 10 of 10 rows, .*length limit \(48 tokens\)"):
        audit(trainer)
    assert audit(trainer, allow_unsupervised=True)["tokens"]["max"] == 48


def test_rows_that_the_trainer_drops_without_a_word_are_counted(build: Build) -> None:
    long = example("What is two and two? " * 40, "It is four.")
    trainer = build([*GOOD[:30], long, *GOOD[30:], long, long], max_length=256)
    assert len(trainer.train_dataset) == 40  # TRL's doing: were this 43, the audit could read the rows as they are
    with pytest.raises(ValueError, match=r"^no supervised token in 3 of 43 rows, where at most 5% may"):
        audit(trainer)
    assert audit(trainer, allow_unsupervised=True)["flaws"][NOTHING] == 3
    few = audit(build([*GOOD, long], max_length=256))  # one in 41 is within the threshold
    assert few["flaws"][NOTHING] == 1


def test_nothing_to_train_on_is_refused_whatever_is_allowed(build: Build) -> None:
    trainer = build([example("What is two and two? " * 20, "It is four.")] * 4, max_length=32)
    with pytest.raises(ValueError, match=r"^no row has a supervised token.* the length limit \(32 tokens\)"):
        audit(trainer, allow_unsupervised=True)


def test_a_pad_token_that_is_the_end_token_matters_where_the_collator_masks_it(build: Build, capsys: Any) -> None:
    trainer = build(GOOD, pad_token="<|im_end|>")
    result = audit(trainer)
    assert result["pad_is_eos"]
    assert set(result["flaws"].values()) == {0}
    assert "The pad token is the end token, <|im_end|>: harmless here" in capsys.readouterr().out

    by_position = trainer.data_collator

    def by_token(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = by_position(rows)
        batch["labels"][batch["input_ids"] == trainer.processing_class.pad_token_id] = MASKED
        return batch

    trainer.data_collator = by_token
    with pytest.raises(ValueError, match=r"masked as padding .* in 40 of 40 rows, .* other than <\|im_end\|>"):
        audit(trainer)


def test_a_template_that_repeats_the_beginning_is_refused(build: Build) -> None:
    trainer = build(GOOD, template="{{ bos_token }}{{ bos_token }}" + ENDLESS_TEMPLATE)
    assert audit(trainer, allow_unsupervised=True)["flaws"][DOUBLE_BOS] == 0  # the tiny tokenizer has no such token
    trainer.processing_class.bos_token = "<|endoftext|>"
    try:
        doubled = build(GOOD, template="{{ bos_token }}{{ bos_token }}" + ENDLESS_TEMPLATE)
        assert audit(doubled, allow_unsupervised=True)["flaws"][DOUBLE_BOS] == 40
    finally:
        trainer.processing_class.bos_token = None


def test_packed_rows_are_audited_one_by_one(build: Build) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    trainer = build(GOOD)
    pad = trainer.processing_class.pad_token_id
    rows = trainer.train_dataset.to_list()
    joined = {name: [token for row in rows for token in row[name]] for name in ("input_ids", "labels")}
    lengths = [len(row["input_ids"]) for row in rows]
    trainer.train_dataset = type(trainer.train_dataset).from_list([{**joined, "seq_lengths": lengths}])
    trainer.data_collator = DataCollatorForLanguageModeling(pad_token_id=pad, padding_free=True)
    result = audit(trainer)
    assert result["rows"] == 40
    assert set(result["flaws"].values()) == {0}
    assert result["tokens"]["max"] == max(lengths)
    assert result["padding"] == 0


def test_rows_are_shown_as_the_loss_sees_them(build: Build, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build([example("Say \x1b[31mfour", "Four"), *GOOD])
    capsys.readouterr()
    audit(trainer, show_tokens=2)
    shown = capsys.readouterr().out
    assert shown.startswith("Row 1: ")
    assert "«Four<|im_end|>\\n\n»" in shown
    assert "Say \\x1b[31mfour<|im_end|>" in shown
    assert "\x1b" not in shown
    assert shown.count("«") - shown.count("between «") == 2

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    audit(trainer, show_tokens=1)
    assert "\x1b[32mFour<|im_end|>\\n\n\x1b[0m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    audit(trainer, show_tokens=1)
    assert "\x1b" not in capsys.readouterr().out


# Preferences

BEGUN = Tokens(frozenset({END, OTHER_END}), BOS, PAD, lambda token: token == NEWLINE, begins=True)
PAIRS_AND_FLAWS: dict[str, tuple[list[Text], set[str]]] = {
    "fine": ([([BOS, X], [X, END]), ([BOS, X], [Y, END, NEWLINE])], set()),
    "one completion": ([([BOS, X], [X, END])], set()),
    "whole texts": ([([], [BOS, X, X, END]), ([], [BOS, X, Y, END])], set()),
    "an empty answer": ([([BOS, X], [END]), ([BOS, X], [Y, END])], set()),
    "double BOS": ([([BOS, BOS, X], [X, END]), ([BOS, BOS, X], [Y, END])], {DOUBLE_BOS}),
    "no BOS": ([([X, X], [X, END]), ([X, X], [Y, END])], {NO_BOS}),
    "rejected without an end": ([([BOS, X], [X, END]), ([BOS, X], [Y])], {ENDLESS}),
    "rejected cut": ([([BOS, X], [X, END]), ([BOS, X], [Y, Y, Y, Y, Y, Y])], {CUT}),
    "chosen cut in the prompt": ([([BOS, *[X] * 7], []), ([BOS, *[X] * 6], [X])], {NOTHING, PROMPTS_DIFFER, CUT}),
    "no room for either": ([([BOS, *[X] * 7], []), ([BOS, *[X] * 7], [])], {NOTHING}),
    "a prompt beyond the limit": ([([BOS, *[X] * 9], []), ([BOS, *[X] * 9], [])], {NOTHING}),
    "left out": ([([], [BOS, X, END]), ([], [BOS, X, X, X, X, X, X, Y, END])], {LEFT_OUT}),
    "another prompt": ([([BOS, X], [X, END]), ([BOS], [Y, X, END])], {PROMPTS_DIFFER}),
    "the same": ([([BOS, X], [X, END]), ([BOS, X], [X, END])], {SAME}),
}


@pytest.mark.parametrize(("texts", "flaws"), PAIRS_AND_FLAWS.values(), ids=PAIRS_AND_FLAWS)
def test_a_pair_has_these_flaws(texts: list[Text], flaws: set[str]) -> None:
    assert find_pair_flaws(texts, BEGUN, limit=8) == flaws


def test_a_beginning_is_missed_only_where_the_tokenizer_or_the_template_writes_one() -> None:
    assert find_pair_flaws([([X, X], [X, END])], TOKENS, limit=8) == set()


@pytest.fixture(scope="module")
def pairs(preference_trainer: Any, tiny: Path) -> Build:
    """`pairs(method, rows, **settings)`: TRL's trainer for a preference method, with the tiny tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    template = tokenizer.chat_template

    def make(method: str, rows: list[dict[str, Any]], **settings: Any) -> Any:
        tokenizer.chat_template = settings.pop("template", template)
        return preference_trainer(method, tokenizer, rows, **settings)

    return make


def pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    answers = {"chosen": chosen, "rejected": rejected}
    return {
        "prompt": [{"role": "user", "content": question}],
        **{side: [{"role": "assistant", "content": text}] for side, text in answers.items()},
    }


METHODS = ["dpo", "kto", "reward", "orpo", "simpo"]
GOOD_PAIRS = [pair(f"What is {n} and {n}?" + " Think." * (n % 4) ** 3, f"{n + n}.", "I know not.") for n in range(40)]
LONG = "What is two and two? " * 40


@pytest.mark.parametrize("method", METHODS)
def test_good_pairs_pass_in_one_line(pairs: Build, method: str, capsys: Any) -> None:
    import torch

    trainer = pairs(method, GOOD_PAIRS, per_device_train_batch_size=4)
    state = torch.get_rng_state()
    capsys.readouterr()
    result = audit_pairs(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    (line,) = capsys.readouterr().out.splitlines()
    rows = 80 if method == "kto" else 40
    assert line.startswith(f"Supervision of {rows} rows: all well; ") and line.endswith("padding in batches of 4")
    assert json.loads(json.dumps(result)) == result
    assert (result["rows"], set(result["flaws"].values())) == (rows, {0})
    assert result["tokens"]["p50"] < result["tokens"]["max"] < 1024 == result["length_limit"]
    masks = [
        mask
        for batch in trainer.get_train_dataloader()
        for name, mask in batch.items()
        if name in ("attention_mask", "chosen_attention_mask")
    ]
    real = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    assert result["padding"] == pytest.approx(real, abs=0.1)  # in another random order, and without rejected


@pytest.mark.parametrize("method", METHODS)
def test_pairs_without_an_end_token_are_refused(pairs: Build, method: str, capsys: Any) -> None:
    trainer = pairs(method, GOOD_PAIRS, template=ENDLESS_TEMPLATE)
    if method in ("orpo", "simpo"):  # they write one, whatever the template does
        assert audit_pairs(trainer, allow_unsupervised=True)["flaws"][ENDLESS] == 0
        return
    with pytest.raises(ValueError, match=r"^no supervised end token in (\d+) of \1 rows, .*--allow-unsupervised$"):
        audit_pairs(trainer)
    assert audit_pairs(trainer, allow_unsupervised=True)["flaws"][ENDLESS] == len(trainer.train_dataset)
    assert capsys.readouterr().out.splitlines()[-2].split() == ["what", "rows", "share", "what", "to", "do"]


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "simpo"])
def test_a_limit_that_cuts_the_answers_is_refused(pairs: Build, method: str) -> None:
    rows = [pair("What is two and two?", "It is four. " * 20, "It is five. " * 20) for _ in range(10)]
    trainer = pairs(method, rows, max_length=48)
    with pytest.raises(ValueError, match=r"^truncated answer in (\d+) of \1 rows, .*length limit \(48 tokens\)"):
        audit_pairs(trainer)
    assert audit_pairs(trainer, allow_unsupervised=True)["tokens"]["max"] == 48


@pytest.mark.parametrize(("method", "flaw"), [("dpo", NOTHING), ("reward", LEFT_OUT)])
def test_pairs_that_the_trainer_drops_without_a_word_are_counted(pairs: Build, method: str, flaw: str) -> None:
    long = pair(LONG, "It is four.", "It is five.")
    trainer = pairs(method, [*GOOD_PAIRS[:30], long, *GOOD_PAIRS[30:], long, long], max_length=256)
    assert len(trainer.train_dataset) == 40
    with pytest.raises(ValueError, match=rf"^{flaw} in 3 of 43 rows, where at most 5% may .*limit \(256 tokens\)"):
        audit_pairs(trainer)
    assert audit_pairs(pairs(method, [*GOOD_PAIRS, long], max_length=256))["flaws"][flaw] == 1


def test_unpaired_rows_that_were_all_dropped_are_refused(pairs: Build) -> None:
    trainer = pairs("kto", GOOD_PAIRS[:2])
    trainer.train_dataset = trainer.train_dataset.select([])
    with pytest.raises(ValueError, match=r"^no row is left to train on: .*length limit \(1,024 tokens\)"):
        audit_pairs(trainer)


@pytest.mark.parametrize("method", ["orpo", "simpo"])
def test_one_row_without_a_response_is_refused_where_it_would_make_the_loss_nan(pairs: Build, method: str) -> None:
    trainer = pairs(method, [*GOOD_PAIRS, pair(LONG, "It is four.", "It is five.")], max_length=256)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in (39, 40)]))
    assert loss.isnan()
    with pytest.raises(ValueError, match=r"^no supervised token in 1 of 41 rows, .* every weight NaN: raise the len"):
        audit_pairs(trainer, allow_unsupervised=True)


def test_a_prompt_whose_end_merges_with_an_answer_is_found(pairs: Build) -> None:
    rows = [pair("What is two and two?", "4.", "I know not.")] * 10  # after "assistant: ", the space is that of " I"
    with pytest.raises(ValueError, match=r"^chosen and rejected with different prompts in 10 of 10 rows, .*merge"):
        audit_pairs(pairs("orpo", rows, template=ENDLESS_TEMPLATE))
    dpo = pairs("dpo", rows, template=ENDLESS_TEMPLATE)  # it moves the border of both
    assert audit_pairs(dpo, allow_unsupervised=True)["flaws"][PROMPTS_DIFFER] == 0


@pytest.mark.parametrize("method", ["dpo", "reward", "orpo", "simpo"])
def test_pairs_that_say_the_same_are_found(pairs: Build, method: str) -> None:
    with pytest.raises(ValueError, match=r"^chosen identical to rejected in 3 of 43 rows, .*leave such pairs out"):
        audit_pairs(pairs(method, [*GOOD_PAIRS, *[pair("What?", "Four.", "Four.")] * 3]))


def test_a_limit_that_leaves_no_difference_is_found(pairs: Build) -> None:
    trainer = pairs(
        "dpo", [pair("What is two and two?", "It is " * 40 + "four.", "It is " * 40 + "five.")], max_length=64
    )
    assert audit_pairs(trainer, allow_unsupervised=True)["flaws"] == {
        **dict.fromkeys((NOTHING, DOUBLE_BOS, NO_BOS, ENDLESS, LEFT_OUT, PROMPTS_DIFFER), 0),
        **{CUT: 1, SAME: 1},
    }


def test_pairs_are_shown_as_the_loss_sees_them(pairs: Build, capsys: Any) -> None:
    rows = [pair("What?", "Four", "Five"), *GOOD_PAIRS]
    trainer = pairs("dpo", rows)
    capsys.readouterr()
    audit_pairs(trainer, show_tokens=1)
    shown = capsys.readouterr().out
    assert shown.startswith("Row 1, chosen: ")
    assert "«Four<|im_end|>\\n\n»" in shown
    assert "Row 1, rejected: " in shown
    assert "«Five<|im_end|>\\n\n»" in shown
    trainer = pairs("kto", rows)
    capsys.readouterr()
    audit_pairs(trainer, show_tokens=1)
    assert capsys.readouterr().out.startswith("Row 1: ")


def test_a_method_that_nobody_has_described_is_not_guessed(pairs: Build) -> None:
    trainer = pairs("dpo", GOOD_PAIRS)
    trainer.args.output_dir = "checkpoints/my_own_loss"
    with pytest.raises(ValueError, match=r"^no preference method is called 'my own loss', .* one of dpo, kto, orpo, "):
        audit_pairs(trainer)
