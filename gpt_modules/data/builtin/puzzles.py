"""Two tasks with known answers, for which the words alone do not do: their order counts.

quantifiers   entailment. "No poets are happy. Not all poets are rich." and "Some poets are rich." The answer is
              computed from the meaning of the sentences, in every world that can be. Which quantifier goes with which
              property, and what is said and what is asked, decides; the same words arranged in another way have
              another answer.
possessions   multiple choice. A thing changes hands among three people, given or taken: who has it in the end? Every
              name stands in a story equally often, and a story is as likely under any exchange of the names, so its
              words say nothing about the answer.

Rows are a function of the seed. A text goes to validation or to training by its hash, so none is in both.
"""

import random
from collections import Counter, defaultdict
from functools import cache, lru_cache
from itertools import product
from typing import NamedTuple

from gpt_modules.data.splits import Row, Split, split_of

ROWS = 13_500  # of both splits together
SINGLE_PREMISES = 0.3  # of the rows

FORMS = {
    "all": "All {} are {}.",
    "no": "No {} are {}.",
    "some": "Some {} are {}.",
    "not all": "Not all {} are {}.",
    "some not": "Some {} are not {}.",
    "no not": "No {} are not {}.",
}
NOUNS = ("poets", "farmers", "singers", "sailors", "doctors", "cooks", "pilots", "artists", "dancers", "writers",
         "teachers", "miners", "hunters", "drivers", "nurses", "runners", "lawyers", "readers", "kings", "guards",
         "boys", "girls", "men", "women")  # fmt: skip
PROPERTIES = ("happy", "rich")
LABELS = ("contradiction", "entailment", "neutral")
SUBJECT = 0
TERMS = range(3)  # those a sentence is about, and two properties
KINDS = range(2 ** len(TERMS))  # of individuals: bit t of a kind says whether it is a t

NAMES = ("Tom", "Ann", "Sam", "Kate")
OBJECTS = ("ball", "book", "key", "hat")
PEOPLE, MOST_MOVES = 3, 4


class Sentence(NamedTuple):
    """A form of `FORMS` and the property (1 or 2) in it."""

    form: str
    predicate: int


class Problem(NamedTuple):
    """Premises and a hypothesis, in terms."""

    premises: tuple[Sentence, ...]
    hypothesis: Sentence


def quantifier_rows(split: Split, seed: int = 0) -> list[Row]:
    """`{"text", "pair", "label"}`: premises, a hypothesis, and entailment, contradiction or neutral."""
    return _part(_quantifiers(seed), split)


def possession_rows(split: Split, seed: int = 0) -> list[Row]:
    """`{"text", "choices", "label"}`: a story and a question, the names in it, and which of them has the thing."""
    return _part(_possessions(seed), split)


@lru_cache(maxsize=1)
def _quantifiers(seed: int) -> list[Row]:
    generator = random.Random(f"quantifiers {seed}")
    rows: dict[tuple[str, str], Row] = {}
    while len(rows) < ROWS:
        label = LABELS[len(rows) % len(LABELS)]
        problems = _problems(1 if generator.random() < SINGLE_PREMISES else 2)[label]
        problem = generator.choice(generator.choice(problems))
        terms = (generator.choice(NOUNS), *generator.sample(PROPERTIES, 2))
        text = " ".join(_say(sentence, terms) for sentence in problem.premises)
        pair = _say(problem.hypothesis, terms)
        rows[text, pair] = {"text": text, "pair": pair, "label": label}
    return list(rows.values())


def relation(problem: Problem) -> str | None:
    """What the premises say about the hypothesis; None where they contradict one another."""
    worlds = [world for world in _worlds() if all(_holds(premise, world) for premise in problem.premises)]
    truths = {_holds(problem.hypothesis, world) for world in worlds}
    if not truths:
        return None
    return "neutral" if len(truths) == 2 else "entailment" if True in truths else "contradiction"


@cache
def _worlds() -> list[frozenset[int]]:
    """Every set of kinds of individuals that may exist together, if there are any that the sentences are about:
    sentences that say no more than which kinds exist cannot tell further worlds apart.
    """
    subsets = (frozenset(kind for kind in KINDS if chosen >> kind & 1) for chosen in range(2 ** len(KINDS)))
    return [world for world in subsets if any(kind >> SUBJECT & 1 for kind in world)]


@cache
def _holds(sentence: Sentence, world: frozenset[int]) -> bool:
    subjects = {kind for kind in world if kind >> SUBJECT & 1}
    both = {kind for kind in subjects if kind >> sentence.predicate & 1}
    rest = subjects - both
    return {
        "all": both == subjects,
        "no": not both,
        "some": bool(both),
        "not all": both != subjects,
        "some not": bool(rest),
        "no not": not rest,
    }[sentence.form]


@cache
def _problems(premises: int) -> dict[str, list[list[Problem]]]:
    """Problems by answer, and in it by their words. With two premises, only words that in other arrangements have every
    other answer.
    """
    by_words: dict[object, dict[str, list[Problem]]] = defaultdict(lambda: defaultdict(list))
    for problem in _candidates(premises):
        label = relation(problem)
        if label is not None:
            by_words[_words(problem)][label].append(problem)
    groups = [group for group in by_words.values() if premises == 1 or len(group) == len(LABELS)]
    return {label: [group[label] for group in groups if label in group] for label in LABELS}


def _candidates(premises: int) -> list[Problem]:
    """All problems up to names: the first premise is about property 1, a second one about property 2."""
    first, second = ([Sentence(form, predicate) for form in FORMS] for predicate in (1, 2))
    if premises == 1:
        return [Problem((premise,), hypothesis) for premise, hypothesis in product(first, first + second)]
    return [Problem((p, q), hypothesis) for p, q, hypothesis in product(first, second, first + second)]


def _words(problem: Problem) -> object:
    """The words and how often each stands, whatever the properties are called."""
    counts = []
    for x, y in ("xy", "yx"):
        text = " ".join(_say(sentence, ("a", x, y)) for sentence in (*problem.premises, problem.hypothesis))
        counts.append(tuple(sorted(Counter(text.lower().replace(".", "").split()).items())))
    return min(counts)


def _say(sentence: Sentence, terms: tuple[str, ...]) -> str:
    return FORMS[sentence.form].format(terms[SUBJECT], terms[sentence.predicate])


@lru_cache(maxsize=1)
def _possessions(seed: int) -> list[Row]:
    generator = random.Random(f"possessions {seed}")
    rows: dict[str, Row] = {}
    while len(rows) < ROWS:
        row = _story(generator)
        rows.setdefault(row["text"], row)
    return list(rows.values())


def _story(generator: random.Random) -> Row:
    """A thing goes from hand to hand among three people: each time its owner gives it to another, or another takes it.
    Who is mentioned less often than others watches, somewhere in between, until all are mentioned equally often.
    """
    names, thing = generator.sample(NAMES, PEOPLE), generator.choice(OBJECTS)
    owner = generator.choice(names)
    sentences, mentions = [f"{owner} has the {thing}."], [owner]
    for _ in range(generator.randint(1, MOST_MOVES)):
        other = generator.choice([name for name in names if name != owner])
        gives = f"{owner} gives the {thing} to {other}.", f"{other} takes the {thing} from {owner}."
        sentences.append(generator.choice(gives))
        mentions += [owner, other]
        owner = other
    counts = Counter(mentions)
    for name in names:
        for _ in range(max(counts.values()) - counts[name]):
            sentences.insert(generator.randint(0, len(sentences)), f"{name} watches.")
    text = " ".join([*sentences, f"Who has the {thing}?"])
    choices = generator.sample(names, PEOPLE)
    return {"text": text, "choices": choices, "label": choices.index(owner)}


def _part(rows: list[Row], split: Split) -> list[Row]:
    return [dict(row) for row in rows if split_of(row["text"]) == split]
