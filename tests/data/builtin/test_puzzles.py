import re
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt_modules.data.builtin.puzzles import possession_rows, quantifier_rows

FEW = 5  # individuals: enough for a witness of every sentence that needs one


@pytest.fixture(scope="module")
def quantifiers():
    return quantifier_rows("train"), quantifier_rows("validation")


@pytest.fixture(scope="module")
def possessions():
    return possession_rows("train"), possession_rows("validation")


SENTENCE = r"(all|no|some|not all) (\w+) are (not )?(\w+)"


def truth(sentence, extension):
    """In which of the worlds a sentence is true, from its words."""
    quantifier, subject, negated, predicate = re.fullmatch(SENTENCE, sentence.lower()).groups()
    a, b = extension[subject], extension[predicate]
    b = ~b if negated else b
    return {"all": (a & ~b) == 0, "no": (a & b) == 0, "some": (a & b) != 0, "not all": (a & ~b) != 0}[quantifier]


def words_of(text):
    """What the sentences are about, and the properties, in the order of their appearance."""
    return list(dict.fromkeys(word for match in re.findall(SENTENCE, text.lower()) for word in (match[1], match[3])))


def enumerated(text, pair):
    """The answer, by every assignment of sets of FEW individuals to the nouns and properties, as bit masks, in which
    those exist that the sentences are about.
    """
    words = words_of(f"{text} {pair}")
    worlds = np.meshgrid(np.arange(1, 2**FEW), *[np.arange(2**FEW)] * (len(words) - 1), indexing="ij")
    extension = dict(zip(words, worlds, strict=True))
    possible = np.logical_and.reduce([truth(premise, extension) for premise in text.rstrip(".").split(". ")])
    found = truth(pair.rstrip("."), extension)[possible]
    assert found.size
    return "entailment" if found.all() else "neutral" if found.any() else "contradiction"


def renamed(row):
    """The row with noun and properties by order of appearance, so that rows which differ in these alone are equal."""
    text = f"{row['text']}|{row['pair']}".lower()
    for letter, word in zip("xyz", words_of(text), strict=False):
        text = text.replace(word, letter)
    return tuple(text.split("|"))


def test_answers_hold_in_every_world(quantifiers):
    labels = {}
    for row in quantifiers[0] + quantifiers[1]:
        assert labels.setdefault(renamed(row), row["label"]) == row["label"]
    assert len(labels) > 300
    for (text, pair), label in labels.items():
        assert enumerated(text, pair) == label, (text, pair)


@pytest.mark.parametrize(
    ("text", "pair", "label"),
    [
        ("All x are y.", "Some x are y.", "entailment"),
        ("No x are y.", "Not all x are y.", "entailment"),
        ("No x are not y.", "All x are y.", "entailment"),
        ("Some x are not y. All x are z.", "All x are y.", "contradiction"),
        ("Some x are not y. All x are z.", "Some x are y.", "neutral"),
        ("Not all x are y.", "Some x are y.", "neutral"),
    ],
)
def test_the_enumeration_knows_its_logic(text, pair, label):
    assert enumerated(text, pair) == label


def owner(text):
    """Who has the thing at the end, read off the sentences one after another."""
    owners = {}
    for name, verb, thing, other in re.findall(r"(\w+) (has|gives|takes) the (\w+)(?: (?:to|from) (\w+))?\.", text):
        assert verb == "has" or owners[thing] == (other if verb == "takes" else name)
        owners[thing] = other if verb == "gives" else name
    return owners[re.search(r"Who has the (\w+)\?", text)[1]]


def test_stories_tell_who_has_it(possessions):
    for row in possessions[0] + possessions[1]:
        assert row["choices"][row["label"]] == owner(row["text"])
        mentions = Counter(re.findall(r"[A-Z]\w+", row["text"].split("Who")[0]))
        assert set(mentions) == set(row["choices"])
        assert len(set(mentions.values())) == 1


def test_the_last_sentence_and_the_last_name_do_not_tell(possessions):
    """Each alone is right about as often as guessing among three."""
    for pick in (0, -1):
        right = 0
        for row in possessions[0]:
            names = re.findall(r"[A-Z]\w+", row["text"].split("Who")[0])
            right += names[pick] == row["choices"][row["label"]]
        assert right / len(possessions[0]) < 0.45


def test_rows_are_distinct_balanced_and_split_by_text(quantifiers, possessions):
    for train, validation in (quantifiers, possessions):
        assert 10_000 <= len(train) <= 20_000
        assert 1_000 <= len(validation) <= 2_000
        assert not {row["text"] for row in train} & {row["text"] for row in validation}
        assert len({(row["text"], row.get("pair")) for row in train}) == len(train)
    shares = Counter(row["label"] for row in quantifiers[0])
    assert all(0.3 < count / len(quantifiers[0]) < 0.37 for count in shares.values())
    places = Counter(row["label"] for row in possessions[0])
    assert all(0.3 < count / places.total() < 0.37 for count in places.values())


def test_rows_are_a_function_of_the_seed(quantifiers):
    assert quantifier_rows("validation") == quantifiers[1]
    assert quantifier_rows("validation", seed=1) != quantifiers[1]
    assert possession_rows("validation", seed=1) == possession_rows("validation", seed=1)


def test_words_are_few(quantifiers, possessions):
    for rows in (quantifiers, possessions):
        text = " ".join(f"{row['text']} {row.get('pair', '')}" for row in rows[0] + rows[1])
        assert len(set(re.findall(r"\w+", text.lower()))) < 50


def counts(texts, words):
    rows = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    return torch.tensor([[row[word] for word in words] for row in rows], dtype=torch.float32)


def fitted(features, labels, classes):
    """Weights of a multinomial logistic regression, or of a score an answer where `classes` is 1."""
    weight = torch.zeros(features.shape[-1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(scores(features, weight), labels) + 1e-5 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


def scores(features, weight):
    out = features @ weight[:-1] + weight[-1]
    return out.squeeze(-1) if features.dim() == 3 else out


def test_a_bag_of_words_does_not_know_quantifiers(quantifiers):
    names = ["contradiction", "entailment", "neutral"]
    labels = [torch.tensor([names.index(row["label"]) for row in rows]) for rows in quantifiers]
    words = sorted({word for row in quantifiers[0] for word in re.findall(r"\w+", row["text"].lower())})
    together = [counts([f"{row['text']} {row['pair']}" for row in rows], words) for rows in quantifiers]
    apart = [
        torch.cat([counts([row["text"] for row in rows], words), counts([row["pair"] for row in rows], words)], 1)
        for rows in quantifiers
    ]
    for train, validation in (together, apart):
        weight = fitted(train, labels[0], 3)
        accuracy = float((scores(validation, weight).argmax(1) == labels[1]).float().mean())
        assert 0.33 < accuracy < 0.65


def test_a_bag_of_words_does_not_know_who_has_it(possessions):
    """Every word of the story beside every word of the answer, a score an answer."""
    sides = [[row for row in rows if len(row["choices"]) == 3] for rows in possessions]
    words = sorted({word for row in sides[0] for word in re.findall(r"\w+", row["text"].lower())})
    names = sorted({name for row in sides[0] for name in row["choices"]})
    features = []
    for rows in sides:
        story = counts([row["text"] for row in rows], words)
        answer = torch.tensor([[[name == choice for name in names] for choice in row["choices"]] for row in rows])
        features.append((story[:, None, :, None] * answer[:, :, None, :]).flatten(2))
    labels = [torch.tensor([row["label"] for row in rows]) for rows in sides]
    weight = fitted(features[0], labels[0], 1)
    accuracy = float((scores(features[1], weight).argmax(1) == labels[1]).float().mean())
    assert 0.25 < accuracy < 0.42


def test_words_alone_leave_the_answer_open(quantifiers):
    """With two premises, the most frequent answer to each bag of words is right little more often than by chance."""
    rows = [row for row in quantifiers[0] if row["text"].count(".") == 2]
    bags = {}
    for row in rows:
        text = " ".join(renamed(row))
        bag = min(tuple(sorted(re.findall(r"\w+", text.translate(order)))) for order in ({}, {121: "z", 122: "y"}))
        bags.setdefault(bag, Counter())[row["label"]] += 1
    assert sum(max(bag.values()) for bag in bags.values()) / len(rows) < 0.45
