"""A judge in this process: a small instruct model whose every reply is JSON of the rubric's schema.

xgrammar masks, token by token, what would leave the schema, so that even a model of 135M parameters cannot reply with
broken JSON. What it says with it is another matter. Replies are greedy and draw nothing from torch's generators.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.contract import Failure, Reply
from rewards.memory import Batches
from rewards.precision import fp16_unsafe, half_precision

if TYPE_CHECKING:
    from pydantic import BaseModel

# A reply is at most a list of that many texts: some 2,000 tokens in the worst case of four tokens a character, which
# only noise comes near. Statements extracted by a small model are no better for being longer.
MAX_CHARACTERS = 100  # at 300, xgrammar 0.2.8 fails inside vLLM 0.27.1
MAX_ITEMS = 5
MAX_NUMBER = 10**6
MAX_REPLY_TOKENS = 2048
BATCH = 8
GATHER_S = 0.05  # a batch waits for as long as others keep joining it this fast


@dataclass(slots=True)
class _Job:
    ids: list[int]
    grammar: Any
    reply: Future[Reply] = field(default_factory=Future)


class LocalModel:
    """A causal language model with a chat template, in `half_precision`, on the GPU where there is one.

    Requests of several threads are answered together, padded on the left. SmolLM2-135M, one core with AMX, seconds an
    answer alone and eight at a time: GEval 1.3 and 0.4, Evidently 1.4 and 0.4, relevancy 6.2 and 2.1, summarisation
    7.0 and 4.7 (passages of 2,300 characters). It walks the path and cannot judge: to eight answers, two of them right,
    the three metrics of DeepEval gave one score each. Which requests share a batch can tip a greedy reply; what the
    cache of verdicts has stays.

    `model` is a folder or hub id, with its weights in safetensors. Raises ValueError where it is not there, cannot be
    loaded, or has no chat template.
    """

    def __init__(self, model: str) -> None:
        import torch
        import xgrammar
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            half = half_precision(fp16_unsafe=fp16_unsafe(AutoConfig.from_pretrained(model).model_type))
            with torch.random.fork_rng():
                self._model = AutoModelForCausalLM.from_pretrained(model, dtype=half, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"the judge {model!r} is no model that can be loaded: {reason[:200]}") from error
        if not self._tokenizer.chat_template:
            raise ValueError(f"the judge {model!r} has no chat template: name an instruct model")
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._context: int = self._model.config.max_position_embeddings
        vocabulary = self._model.config.vocab_size
        stops = self._model.generation_config.eos_token_id
        ends = {*(stops if isinstance(stops, list) else [stops]), self._tokenizer.eos_token_id} - {None}
        self._stops: list[int] = sorted(ends)
        self._model.generation_config = GenerationConfig()  # greedy, whatever penalties the folder asks for
        self._compiler = xgrammar.GrammarCompiler(
            xgrammar.TokenizerInfo.from_huggingface(self._tokenizer, vocab_size=vocabulary, stop_token_ids=self._stops)
        )
        self.name = f"local {_identity(model)}"
        self._waiting: deque[_Job] = deque()
        self._engine = threading.Lock()
        self._batches = Batches(BATCH)

    def reply(self, prompt: str, schema: "type[BaseModel]") -> Reply:
        job = self.job(prompt, schema)
        self._waiting.append(job)
        with self._engine:  # whoever gets it answers for all who wait
            while not job.reply.done():
                self._answer(self._gather())
        return job.reply.result()

    def job(self, prompt: str, schema: "type[BaseModel]") -> _Job:
        """A request that nobody has answered yet; Failure where the prompt does not fit."""
        messages = [{"role": "user", "content": prompt}]
        ids = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        if len(ids) >= self._context:
            raise Failure(f"a prompt of {len(ids):,} tokens does not fit the {self._context:,} of {self.name}")
        wanted = json.dumps(bounded(schema.model_json_schema()))
        return _Job(ids, self._compiler.compile_json_schema(wanted, any_whitespace=False))

    def _gather(self) -> list[_Job]:
        while (waiting := len(self._waiting)) < BATCH:
            time.sleep(GATHER_S)
            if len(self._waiting) == waiting:
                break
        return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]

    def _answer(self, jobs: list[_Job]) -> None:
        try:
            for job, ids in zip(jobs, self._batches.run(self._generate, jobs), strict=True):
                if ids[-1] in self._stops:
                    text = self._tokenizer.decode(ids, skip_special_tokens=True)
                    job.reply.set_result(Reply(text, len(job.ids), len(ids)))
                else:
                    job.reply.set_exception(Failure(f"a reply of {self.name} did not end in {len(ids):,} tokens"))
        except BaseException as error:
            for job in jobs:
                if not job.reply.done():
                    job.reply.set_exception(error)

    def _generate(self, jobs: Sequence[_Job]) -> list[list[int]]:
        """The tokens of every reply, up to its end token where it has one."""
        import torch
        from xgrammar.contrib.hf import LogitsProcessor

        inputs = self._tokenizer.pad({"input_ids": [job.ids for job in jobs]}, return_tensors="pt")
        inputs = inputs.to(self._model.device)
        with torch.inference_mode():
            output = self._model.generate(
                **inputs,
                max_new_tokens=MAX_REPLY_TOKENS,
                do_sample=False,
                eos_token_id=self._stops,
                pad_token_id=self._tokenizer.pad_token_id,
                logits_processor=[LogitsProcessor([job.grammar for job in jobs])],
            )
        replies = output[:, inputs["input_ids"].shape[1] :].tolist()
        ends = [next((i for i, token in enumerate(ids) if token in self._stops), len(ids) - 1) for ids in replies]
        return [ids[: end + 1] for ids, end in zip(replies, ends, strict=True)]


def bounded(schema: dict[str, Any], *, optional: bool = False) -> dict[str, Any]:
    """A JSON schema in which every reply ends: texts, lists and numbers of limited length, and only those properties
    that are required, unless `optional` ones may stay.

    Numbers become whole, because a fraction has no last digit, and texts hold no escapes, line breaks or other control
    characters, which xgrammar's own `maxLength` lets through.
    """
    bound, kept = partial(bounded, optional=optional), dict(schema)
    if "properties" in kept:
        names = list(kept["properties"]) if optional else kept.get("required", [])
        kept["properties"] = {name: bound(kept["properties"][name]) for name in names}
        kept["additionalProperties"] = False
    if "$defs" in kept:
        kept["$defs"] = {name: bound(definition) for name, definition in kept["$defs"].items()}
    if "anyOf" in kept:
        kept["anyOf"] = [bound(choice) for choice in kept["anyOf"]]
    if kept.get("type") == "array":
        kept["items"] = bound(kept["items"])
        kept["maxItems"] = max(kept.get("minItems", 0), min(kept.get("maxItems", MAX_ITEMS), MAX_ITEMS))
    if kept.get("type") in ("number", "integer"):
        kept = {"minimum": -MAX_NUMBER, "maximum": MAX_NUMBER, **kept, "type": "integer"}
    if kept.get("type") == "string" and not kept.keys() & {"enum", "const"}:
        shortest = kept.pop("minLength", 0)
        kept["pattern"] = rf'^[^"\\\x00-\x1f\x7f]{{{shortest},{MAX_CHARACTERS}}}$'
    return kept


def _identity(model: str) -> str:
    """The model's name for the cache's keys: of a folder also which files it holds, so that a new model in an old
    folder is another judge."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
    return f"{folder.resolve().name} {sha256(json.dumps(files).encode()).hexdigest()[:8]}"
