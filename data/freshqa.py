"""FreshQA: questions whose answers change, or whose premise is false (Vu et al. 2023, arXiv:2310.03214).

Not on the hub. The authors renew a Google sheet every week and link it in the README of github.com/freshllms/freshqa;
export it as CSV (or `.jsonl`, `.parquet`, with the same columns). Licence Apache-2.0; 500 TEST and 100 DEV rows. The
header, and a row less what is empty:

    id,split,question,effective_year,next_review,false_premise,num_hops,fact_type,source,answer_0,...,answer_9,note
    7,DEV,Who is king of Italy?,before 2022,N/A,TRUE,one-hop,slow-changing,https://...,Italy has no king.

DEV is our train split, TEST our test; a file with only one of them is divided by a hash of the question. Quirks:

1. Answers expire. The gold ones held in the week of the sheet: keep the file, and pass its date as `as_of`.
2. Where the premise is false, the gold answer is a sentence that refutes it. Exact match pays for that wording alone
   and F1 for shared words, true or not: on the 26 such rows of DEV, the question given back as the answer has a mean F1
   of 0.32, "This never happened." of 0.06. Only a judge can tell; the column `false_premise` says where to ask one.
3. Spreadsheets and encodings did damage: in the DEV sheet of November 2023, 5 of 100 rows have their dates as
   "10-Feb-24", 5 broken characters ("San Jos鑼" for San José), and one a web address among its answers.

`load` emits `prompt` (a system and a user message, without passages: see `data.prompts.add_passages`), `question`,
`answer`, `aliases` (all valid answers, the first one first), `false_premise` (bool), `num_hops` ("one-hop" or
"multi-hop"), `fact_type` ("never-changing", "slow-changing" or "fast-changing"), `passages` (at most `MAX_PASSAGES`
that share a word with the question, best first by BM25; perhaps none) and `supporting` (False for each: there are no
labels). The sample has 64 train and 32 test questions, 16 and 8 of them with a false premise.
"""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data.passages import MAX_PASSAGES, PASSAGE_CHARACTERS, bm25_scores, cut, titled
from data.prompts import rag_messages
from data.source import SAMPLES, BadRow, LeftOut, Row, Spec, Split, field, items, note, read, text

if TYPE_CHECKING:
    from datasets import Dataset

FRESHQA = Spec(
    name="FreshQA",
    hub_id="",
    raw_row='{"split": "DEV", "question": "...", "false_premise": "FALSE", "num_hops": "one-hop", '
    '"fact_type": "slow-changing", "answer_0": "..."}',
    split_names={"train": "DEV", "test": "TEST"},
    csv_columns=("split", "question", "false_premise", "answer_0"),
)
SEALQA = Spec(
    name="SealQA",
    hub_id="vtllms/sealqa",
    hub_config="longseal",
    hub_revision="b2ecadf036972d8471a5c4cdf92aa3b3c6ba96e7",
    raw_row='{"question": "...", "12_docs": [{"title": "...", "text": "..."}], "20_docs": [], "30_docs": []}',
    without_hub="pass --passages FOLDER",
)
TEXT_FILES = (".txt", ".md")


def load(
    split: Split, *, limit: int | None = None, source: str = "hub", passages: str | None = None, as_of: str = ""
) -> "Dataset":
    """The questions of one split, in their original order; the rest as in `data.source.read`.

    Args:
        split: "train" (DEV) or "test" (TEST).
        limit: how many, from the first; None for all.
        source: the sheet as a file, a folder, or "sample". "hub" is refused.
        passages: where evidence is looked up: a folder of UTF-8 `.txt` and `.md` files, those in folders below
            included, or "sealqa", the documents that the SealQA set (Pham et al. 2025, arXiv:2506.01062) has for its
            own questions, never loaded here. None: nowhere, so that all is asked closed-book; but "sample" brings a
            folder of its own.
        as_of: the day for which the answers hold, "March 4, 2024"; it stands in the prompt unless it is "".
    """
    if source == "hub":
        raise ValueError(
            "FreshQA is not on the hub but in a sheet that the README of github.com/freshllms/freshqa links to: export "
            "it as CSV and pass --source FILE, or pass --source sample"
        )
    if passages is None and source == "sample":
        passages = str(SAMPLES / "freshqa_passages")
    dataset = read(FRESHQA, partial(_parse_row, as_of=as_of.strip()), split, limit=limit, source=source)
    found: list[list[str]] = [[] for _ in range(len(dataset))]
    if passages is not None:
        found = search(_sealqa() if passages == "sealqa" else _folder(passages), list(dataset["question"]))
        note(f"FreshQA {split} passages", [{"passages": own} for own in found])

    from datasets import List, Value

    labels = [[False] * len(own) for own in found]
    # with their types, which a column of empty lists does not show
    dataset = dataset.add_column("passages", found, feature=List(Value("string")))
    return dataset.add_column("supporting", labels, feature=List(Value("bool")))


def search(pool: list[str], questions: list[str]) -> list[list[str]]:
    """For each question, the passages of `pool` that share a word with it: best first by BM25, at most `MAX_PASSAGES`.

    Scored as in `data.passages.ranking`, but without the library's stop words, which all passages share; with one index
    for all questions: for 600 of them, 10 MB of text in 39,933 passages take 5.6 s on one core and 310 MB of memory.
    """
    found: list[list[str]] = []
    for scores in bm25_scores(pool, questions, stopwords="english"):
        best = [] if scores is None else (-scores).argsort(kind="stable")[:MAX_PASSAGES]
        found.append([pool[number] for number in best if scores[number] > 0])
    return found


def _parse_row(raw: Row, as_of: str) -> Row:
    question, part = text(raw, "question"), field(raw, "split", str)
    if part not in ("DEV", "TEST"):
        raise BadRow(f"has the split {part!r}, neither DEV nor TEST")
    premise = str(raw.get("false_premise")).strip().upper()  # a table reader may have made it a bool
    if premise not in ("TRUE", "FALSE"):
        raise BadRow(f"has {raw.get('false_premise')!r} for its false_premise, neither TRUE nor FALSE")
    cells = [raw.get(f"answer_{number}") for number in range(10)]
    answers = [field(raw, f"answer_{number}", str).strip() for number, cell in enumerate(cells) if cell is not None]
    aliases = list(dict.fromkeys(filter(None, answers)))
    if not aliases:
        raise LeftOut("have no answer")
    return {
        "prompt": rag_messages(question, as_of),
        "question": question,
        "answer": aliases[0],
        "aliases": aliases,
        "false_premise": premise == "TRUE",
        "num_hops": text(raw, "num_hops"),
        "fact_type": text(raw, "fact_type"),
    }


def _folder(folder: str) -> list[str]:
    """The passages of all text files in a folder, each once, file by file in the order of their names."""
    kinds = " or ".join(TEXT_FILES)
    path = Path(os.path.expanduser(folder))
    if not folder or not os.path.isdir(path):
        raise ValueError(f"there is no folder {folder!r} for passages: pass one with {kinds} files, or sealqa")
    passages: dict[str, None] = {}
    for file in sorted(file for file in path.rglob("*") if file.suffix.lower() in TEXT_FILES and file.is_file()):
        try:
            content = file.read_bytes()
            passages |= dict.fromkeys(cut(content.decode("utf-8-sig"), PASSAGE_CHARACTERS))
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise ValueError(f"{file}, line {line} is not UTF-8 text: save it as UTF-8, or remove it") from error
        except OSError as error:
            raise ValueError(f"{file} cannot be read ({error.strerror or error}): check the file") from error
    if not passages:
        raise ValueError(f"the folder {folder} has no text in {kinds} files: put some there, or ask without passages")
    return list(passages)


def _sealqa() -> list[str]:
    """The passages of all documents of LongSeal, each once."""
    rows = read(SEALQA, _documents, "test")
    return list(dict.fromkeys(passage for own in rows["passages"] for passage in own))


def _documents(raw: Row) -> Row:
    passages = []
    for column in ("12_docs", "20_docs", "30_docs"):
        for place, item in items(raw, column).items():
            title, body = "", item
            if not isinstance(item, str):
                own = field(raw, place, dict)
                title = "" if own.get("title") is None else field(raw, f"{place}.title", str)
                body = "" if own.get("text") is None else field(raw, f"{place}.text", str)
            passages += [titled(title, passage) for passage in cut(body, PASSAGE_CHARACTERS)]
    return {"question": text(raw, "question"), "passages": passages}
