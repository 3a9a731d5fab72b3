"""The small worlds that ship with the repository: our own, in the raw schemas of HotpotQA and MuSiQue, from a seed.

    python -m data.rag_sample    # rewrites data/samples/{hotpotqa,musique}_{train,test}.jsonl, byte for byte the same

Every row is a world of its own with invented names: what Tarby is in one row says nothing about the Tarby of the next,
so that no answer can be remembered, and only the passages tell it. A question follows a chain of relations ("On which
river does the birthplace of Orla Vale lie?"), with one paragraph for each step. The other paragraphs follow the same
relations from other beginnings, so that each answer has rivals in the same words, and a lexical ranking mostly finds
the first step but seldom the last: that one shares with the question no more than its rivals do. HotpotQA also
compares two things, or asks whether they agree.

A passage has 20 tokens on average in SmolLM2's vocabulary, for a model of 135M parameters on two CPU cores. `HOPS`,
`PARAGRAPHS` and `FILLER` are the knobs for difficulty.
"""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data.source import Row, write_samples

SEED = 6
ROWS = {"train": 256, "test": 64}
HOPS = (2, 2, 2, 2, 3, 3, 3, 4)  # of MuSiQue's questions, in turn
HOTPOTQA_KINDS = ("bridge",) * 6 + ("which", "same")  # in turn
PARAGRAPHS = {"hotpotqa": 6, "musique": 8}
FILLER = 0.6  # probability that a paragraph says a second thing about its subject


class Relation(NamedTuple):
    """What a thing of the kind `subject` has to do with one of the kind `object`. Each text has a place for {s}."""

    subject: str
    object: str
    told: str
    """A sentence that says it, with a place for {o} too."""
    phrase: str
    """The object by way of the subject, "the birthplace of {s}"; "" where no question goes on from there."""
    asked: tuple[str, ...]


# Name, subject, object, told, phrase and the ways to ask.
_TOLD = """
author | novel | person | {s} was written by {o}. | the author of {s} | Who wrote {s}?
setting | novel | town | {s} is set in the town of {o}. | the setting of {s} | In which town is {s} set?
published | novel | year | {s} came out in {o}. | | In what year did {s} come out?
director | film | person | {s} was directed by {o}. | the director of {s} | Who directed {s}?
star | film | person | {s} has {o} in the main part. | the star of {s} | Who has the main part in {s}?
shown | film | year | {s} was first shown in {o}. | | In what year was {s} first shown?
founder | company | person | {s} was founded by {o}. | the founder of {s} | Who founded {s}?
seat | company | town | {s} has its main office in {o}. | the home town of {s} |
    In which town is the main office of {s}?
product | company | product | {s} makes {o}. | | What does {s} make?
opened | company | year | {s} opened in {o}. | | In what year did {s} open?
birthplace | person | town | {s} was born in {o}. | the birthplace of {s} | In which town was {s} born? |
    Where was {s} born?
employer | person | company | {s} works for {o}. | the employer of {s} | Which company does {s} work for?
spouse | person | person | {s} is married to {o}. | the spouse of {s} | Who is married to {s}?
instrument | person | instrument | {s} plays the {o}. | | Which instrument does {s} play?
job | person | job | {s} is a {o} by trade. | | What is {s} by trade?
river | town | river | {s} lies on the river {o}. | the river through {s} | On which river does {s} lie? |
    Which river flows through {s}?
province | town | province | {s} is a town in {o}. | the province of {s} | In which province is {s}?
mayor | town | person | {s} has {o} as its mayor. | the mayor of {s} | Who is the mayor of {s}?
founded | town | year | {s} was founded in {o}. | | In what year was {s} founded?
capital | province | town | {s} has its capital at {o}. | the capital of {s} | What is the capital of {s}?
governor | province | person | {s} has {o} as its governor. | the governor of {s} | Who is the governor of {s}?
mouth | river | lake | {s} is a river and flows into {o}. | the lake below {s} | Which lake does {s} flow into?
length | river | miles | {s} is {o} long. | | How long is {s}?
depth | lake | metres | {s} is {o} deep. | | How deep is {s}?
fish | lake | fish | {s} is full of {o}. | | Which fish is {s} full of?
"""
RELATIONS = {
    name: Relation(subject, thing, told, phrase, tuple(asked))
    for line in _TOLD.replace("\n    ", " ").strip().splitlines()
    for name, subject, thing, told, phrase, *asked in [[cell.strip() for cell in line.split("|")]]
}

_PERSONS = (
    "Orla Bram Tilda Joren Mirel Osric Linna Rowan Sanna Tobin Ulla Vesna Wim Yara Zeno Halla Ivo Kesta Edda Corin",
    "Vale Quill Thorne Ashby Brandt Corwell Falk Garrow Holt Jessop Kerrin Lorne Mott Pryce Rusk Selby Tull Umber Wick",
)
_ADJECTIVES, _NOUNS = (
    "Grey Silent Broken Golden Last Paper Hidden Winter Iron Second Lost Narrow Burning Empty",
    "Lantern Bridge Orchard Mirror Harbour Garden Letter Station Crown Window Road Tower Island Clock",
)
# For each kind of thing: how its name is written, and the parts to choose from.
NAMES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    kind: (written, tuple(firsts.split()), tuple(seconds.split()) or ("",))
    for kind, written, firsts, seconds in (
        ("person", "{} {}", *_PERSONS),
        ("novel", "The {} {}", _ADJECTIVES, _NOUNS),
        ("film", "{} {}", _ADJECTIVES, _NOUNS),
        ("company", "{} {}", "Hallam Borin Nolt Talver Ferro Oskan Dellow Rimm Carver", "Works Brothers Mills Group"),
        ("town", "{}{}", "Tar Bril Mor Hal Ves Kel Dun Lor Pen Sar Wes Gol", "by mere holm wick dale stow ley ham"),
        ("province", "{}{}", "Nor Est Har Osk Tam Vel Drus Cal Bel Ger", "vale mark land aria"),
        ("river", "{}", "Arvel Brenn Cass Dorrin Elva Fenna Gavel Hest Issa Jorn Lune Maive Orrin Tessel Ulm Yare", ""),
        ("lake", "Lake {}", "Orm Sill Keld Brae Tamsin Vorr Ebba Nock Garth Illis Rook Sorrel Wenna Aske Dray", ""),
        ("product", "{}", "clocks boots bells kites lamps ropes tiles combs candles carpets pianos bicycles", ""),
        ("instrument", "{}", "fiddle harp flute drum cello organ horn lute piano banjo trumpet guitar", ""),
        ("job", "{}", "baker judge pilot nurse painter farmer teacher sailor tailor dentist chemist gardener", ""),
        ("fish", "{}", "trout perch pike tench carp salmon bream herring", ""),
        ("year", "{}", " ".join(map(str, range(1540, 1990))), ""),
        ("miles", "{} miles", " ".join(map(str, range(12, 400))), ""),
        ("metres", "{} metres", " ".join(map(str, range(12, 400))), ""),
    )
}
# Other ways to write a name, by kind: MuSiQue's aliases.
ALIASES: dict[str, Callable[[str], str]] = {
    "person": lambda name: f"{name[0]}. {name.split()[1]}",
    "river": lambda name: f"River {name}",
    "lake": lambda name: name.removeprefix("Lake "),
    "province": lambda name: f"{name} Province",
    "miles": lambda name: name.replace("miles", "mi"),
    "metres": lambda name: name.replace("metres", "m"),
}

# Which of two things comes first, and which comes last, by the number that a relation gives them.
WHICH = (
    ("founded", "Which town is older, {a} or {b}?", min),
    ("founded", "Which town was founded later, {a} or {b}?", max),
    ("opened", "Which company opened first, {a} or {b}?", min),
    ("published", "Which novel came out later, {a} or {b}?", max),
    ("shown", "Which film was shown first, {a} or {b}?", min),
    ("length", "Which river is longer, {a} or {b}?", max),
    ("depth", "Which lake is deeper, {a} or {b}?", max),
)
SAME = (
    ("province", "Are {a} and {b} in the same province?"),
    ("birthplace", "Were {a} and {b} born in the same town?"),
    ("mouth", "Do {a} and {b} flow into the same lake?"),
    ("seat", "Are the main offices of {a} and {b} in the same town?"),
    ("instrument", "Do {a} and {b} play the same instrument?"),
    ("employer", "Do {a} and {b} work for the same company?"),
    ("author", "Were {a} and {b} written by the same person?"),
)


class Fact(NamedTuple):
    """One step of a chain: `subject` has `relation`, a key of `RELATIONS`, to `object`."""

    subject: str
    relation: str
    object: str


class Paragraph(NamedTuple):
    """What a row tells about the subject of one fact: one or two sentences, `fact` the index of the one that counts."""

    title: str
    sentences: list[str]
    fact: int


class World:
    """The names of one row, each for one thing only."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._parts: dict[str, tuple[str, str]] = {}

    def name(self, kind: str, like: str = "") -> str:
        """A name that is new in this world, half the time with a word or a syllable of the name `like`."""
        written, firsts, seconds = NAMES[kind]
        shared = self.rng.choice((None, None, 0, 1)) if like and len(seconds) > 1 else None
        while True:
            parts = [self.rng.choice(firsts), self.rng.choice(seconds)]
            if shared is not None:
                parts[shared] = self._parts[like][shared]
            name = written.format(*parts)
            if name not in self._parts:
                self._parts[name] = (parts[0], parts[1])
                return name

    def chain(self, path: tuple[str, ...], like: str = "") -> list[Fact]:
        """One fact for each relation of `path`, the object of each the subject of the next, all names new."""
        facts = []
        subject = self.name(RELATIONS[path[0]].subject, like)
        for relation in path:
            facts.append(Fact(subject, relation, self.name(RELATIONS[relation].object)))
            subject = facts[-1].object
        return facts

    def paragraph(self, fact: Fact, told: tuple[str, ...]) -> Paragraph:
        """The paragraph on the subject of `fact`; what else it may say is under none of the relations in `told`."""
        kind = RELATIONS[fact.relation].subject
        others = [name for name, other in RELATIONS.items() if other.subject == kind and name not in told]
        facts = [fact]
        if others and self.rng.random() < FILLER:
            other = self.rng.choice(others)
            facts.insert(self.rng.randrange(2), Fact(fact.subject, other, self.name(RELATIONS[other].object)))
        # From the second sentence on, people go by their last name and everything else is "It".
        again = fact.subject.split()[-1] if kind == "person" else "It"
        names = (fact.subject, again)
        sentences = [
            RELATIONS[one.relation].told.format(s=name, o=one.object) for one, name in zip(facts, names, strict=False)
        ]
        return Paragraph(fact.subject, sentences, facts.index(fact))


def paths(hops: int) -> dict[str, list[tuple[str, ...]]]:
    """Every chain of that many different relations that a question can follow, under the last of its relations."""
    found: list[tuple[str, ...]] = [(name,) for name in RELATIONS]
    for _ in range(hops - 1):
        found = [
            (name, *path)
            for path in found
            for name, relation in RELATIONS.items()
            if relation.phrase and relation.object == RELATIONS[path[0]].subject and name not in path
        ]
    by_last: dict[str, list[tuple[str, ...]]] = {}
    for path in found:
        by_last.setdefault(path[-1], []).append(path)
    return by_last


def ask(start: str, path: tuple[str, ...], rng: random.Random) -> str:
    """The question that follows `path` from `start` on.

    >>> ask("Orla Vale", ("birthplace", "mayor"), random.Random(0))
    'Who is the mayor of the birthplace of Orla Vale?'
    """
    asked_of = start
    for relation in path[:-1]:
        asked_of = RELATIONS[relation].phrase.format(s=asked_of)
    return rng.choice(RELATIONS[path[-1]].asked).format(s=asked_of)


def composed(world: World, path: tuple[str, ...], size: int) -> tuple[str, list[Fact], list[Paragraph], set[str]]:
    """A question along `path`: its text, its chain, `size` paragraphs in any order, and the titles of the gold ones."""
    chain = world.chain(path)
    facts = list(chain)
    while len(facts) < size:  # a chain that is cut to fit loses its beginning, as the end holds the rival answer
        facts += world.chain(path, like=chain[0].subject)[len(facts) - size :]
    paragraphs = [world.paragraph(fact, path) for fact in facts]
    world.rng.shuffle(paragraphs)
    return ask(chain[0].subject, path, world.rng), chain, paragraphs, {fact.subject for fact in chain}


def compared(world: World, kind: str, size: int) -> tuple[str, str, list[Paragraph], set[str]]:
    """A comparison, of the kind "which" or "same": its question and answer, then as in `composed`."""
    rng = world.rng
    relation, asked, pick = rng.choice(WHICH) if kind == "which" else (*rng.choice(SAME), None)
    (first,) = world.chain((relation,))
    facts = [first, *(world.chain((relation,), like=first.subject)[0] for _ in range(size - 1))]
    if pick is not None:
        answer = pick(facts[:2], key=lambda fact: int(fact.object.split()[0])).subject
    else:
        answer = rng.choice(("yes", "no"))
        if answer == "yes":
            facts[1] = facts[1]._replace(object=first.object)
    paragraphs = [world.paragraph(fact, (relation,)) for fact in facts]
    rng.shuffle(paragraphs)
    question = asked.format(a=facts[0].subject, b=facts[1].subject)
    return question, answer, paragraphs, {fact.subject for fact in facts[:2]}


def hotpotqa_rows(rng: random.Random) -> Iterator[Row]:
    """Raw rows of HotpotQA, without their id."""
    turn = _in_turn(paths(2), rng)
    while True:
        for kind in HOTPOTQA_KINDS:
            world = World(rng)
            size = PARAGRAPHS["hotpotqa"] - rng.randrange(2)
            if kind == "bridge":
                question, chain, paragraphs, gold = composed(world, next(turn), size)
                answer = chain[-1].object
            else:
                question, answer, paragraphs, gold = compared(world, kind, size)
            facts = [(paragraph.title, paragraph.fact) for paragraph in paragraphs if paragraph.title in gold]
            yield {
                "question": question,
                "answer": answer,
                "type": "bridge" if kind == "bridge" else "comparison",
                "level": "easy",
                "supporting_facts": {"title": [title for title, _ in facts], "sent_id": [fact for _, fact in facts]},
                "context": {
                    "title": [paragraph.title for paragraph in paragraphs],
                    # As in the real rows, a sentence brings the space before it.
                    "sentences": [[own[0], *(f" {more}" for more in own[1:])] for _, own, _ in paragraphs],
                },
            }


def musique_rows(rng: random.Random) -> Iterator[Row]:
    """Raw rows of MuSiQue, without their id."""
    turns = {hops: _in_turn(paths(hops), rng) for hops in sorted(set(HOPS))}
    while True:
        for hops in HOPS:
            question, chain, paragraphs, gold = composed(World(rng), next(turns[hops]), PARAGRAPHS["musique"])
            place = {paragraph.title: index for index, paragraph in enumerate(paragraphs)}
            steps = []
            for step, fact in enumerate(chain):
                relation = RELATIONS[fact.relation]
                asked = relation.asked[0].format(s=f"#{step}" if step else fact.subject)
                steps.append(
                    {"id": step, "question": asked, "answer": fact.object, "paragraph_support_idx": place[fact.subject]}
                )
            kind, answer = RELATIONS[chain[-1].relation].object, chain[-1].object
            yield {
                "question": question,
                "answer": answer,
                "answer_aliases": [ALIASES[kind](answer)] if kind in ALIASES else [],
                "answerable": True,
                "question_decomposition": steps,
                "paragraphs": [
                    {"idx": i, "title": title, "paragraph_text": " ".join(sentences), "is_supporting": title in gold}
                    for i, (title, sentences, _) in enumerate(paragraphs)
                ],
            }


def _in_turn(by_last: dict[str, list[tuple[str, ...]]], rng: random.Random) -> Iterator[tuple[str, ...]]:
    """Paths at random, every last relation equally often."""
    while True:
        for last in rng.sample(sorted(by_last), len(by_last)):
            yield rng.choice(by_last[last])


def build() -> dict[str, list[Row]]:
    """The raw rows of each file, by its name. No question comes twice in a set, be it in one split or in both."""
    files: dict[str, list[Row]] = {}
    for name, rows in (("hotpotqa", hotpotqa_rows), ("musique", musique_rows)):
        made = rows(random.Random(f"{name} {SEED}"))
        asked: set[str] = set()
        for split, count in ROWS.items():
            kept: list[Row] = []
            while len(kept) < count:
                row = next(made)
                if row["question"] not in asked:
                    asked.add(row["question"])
                    kept.append({"id": f"tunebook_{split}_{len(kept) + 1}", **row})
            files[f"{name}_{split}"] = kept
    return files


if __name__ == "__main__":
    write_samples(build())
