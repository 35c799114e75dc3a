"""Perplexity of a text that is longer than the model's context, by windows that slide over it.

GPT-2's numbers are made of the total log-probability that the model gives to a corpus, divided by the number of its
*canonical* units: the words, characters or bytes that the corpus's own literature counts, whatever tokens the model
reads (Radford et al. 2019, section 3.1). The model reads the text after an invertible de-tokenizer (`detokenizers`),
the units are counted in the text before it: nats of what is the same text, once put back as people write it.

The first token of a text is predicted from the end token. Windows do not overlap by default, so that a token has
between 1 and `n_positions` tokens before it; a shorter stride gives each token more context, lowers the perplexity and
costs `n_positions / stride` times the work. The paper does not say which stride its numbers were made with.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import islice

from gpt_modules.backbone import GPT
from gpt_modules.data.text.tokenizers import Tokenizer
from gpt_modules.errors import UserError
from gpt_modules.evaluation.tasks.scoring import Progress, Row, continuation_logprobs

# Windows held at a time: with a stride of 1 there are as many as tokens, each as long as the context.
_WINDOWS = 1024


@dataclass(frozen=True)
class CorpusScore:
    """Minus the log-probability of a text in nats, and its length in every unit. Scores of several texts add up.

    words (what white space parts, and each line's end), characters and bytes (UTF-8) are those of the text as it was
    given, tokens those that the model predicted.
    """

    nats: float
    tokens: int
    words: int
    characters: int
    bytes: int

    def __add__(self, other: "CorpusScore") -> "CorpusScore":
        return CorpusScore(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def token_perplexity(self) -> float:
        """exp(nats a token): comparable between models of one tokenizer only."""
        return _perplexity(self.nats, self.tokens)

    @property
    def word_perplexity(self) -> float:
        """exp(nats a word), the PPL of WikiText and the Penn Treebank, whose words include each line's end."""
        return _perplexity(self.nats, self.words)

    @property
    def byte_perplexity(self) -> float:
        """exp(nats a byte)."""
        return _perplexity(self.nats, self.bytes)

    @property
    def bits_per_byte(self) -> float:
        """The BPB of enwik8."""
        return _ratio(self.nats, self.bytes) / math.log(2)

    @property
    def bits_per_character(self) -> float:
        """The BPC of text8."""
        return _ratio(self.nats, self.characters) / math.log(2)


def corpus_nats(
    model: GPT,
    tokenizer: Tokenizer,
    text: str,
    stride: int | None = None,
    detokenizer: Callable[[str], str] | None = None,
    max_tokens_a_batch: int = 8192,
) -> CorpusScore:
    """The score of one text.

    Args:
        text: As the corpus ships it; its units are counted here.
        stride: Tokens that each window after the first predicts, 1 to `n_positions`; None: `n_positions`.
        detokenizer: Makes of `text` what the model reads.

    Raises:
        UserError: A text without a token, or a stride out of range.
    """
    (score,) = corpus_scores(model, tokenizer, [text], stride, detokenizer, max_tokens_a_batch)
    if not score.tokens:
        raise UserError("text: found no token in it, expected at least one to predict")
    return score


def corpus_scores(
    model: GPT,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    stride: int | None = None,
    detokenizer: Callable[[str], str] | None = None,
    max_tokens_a_batch: int = 8192,
    progress: Progress | None = None,
) -> list[CorpusScore]:
    """The score of each text; arguments as of `corpus_nats`, and who is told how far it is."""
    tokens = tokenizer.encode_batch([text if detokenizer is None else detokenizer(text) for text in texts])
    nats = document_nats(model, tokens, tokenizer.start_id, stride, max_tokens_a_batch, progress)
    return [
        CorpusScore(one, len(ids), len(text.split()) + text.count("\n"), len(text), len(text.encode()))
        for one, ids, text in zip(nats, tokens, texts, strict=True)
    ]


def document_nats(
    model: GPT,
    documents: Sequence[list[int]],
    first: int,
    stride: int | None = None,
    max_tokens_a_batch: int = 8192,
    progress: Progress | None = None,
) -> list[float]:
    """Minus the log-probability in nats of each document, all of its tokens predicted once; 0 for one without any.

    Args:
        documents: Token ids. first: The token that each document's first one is predicted from.
        stride: As of `corpus_nats`. progress: Told after each part of the windows.
    """
    limit = model.config.n_positions
    stride = limit if stride is None else stride
    if not 1 <= stride <= limit:
        raise UserError(f"stride: found {stride}, expected 1 to n_positions = {limit}")
    nats, done = [0.0] * len(documents), 0
    rows = ((number, row) for number, tokens in enumerate(documents) for row in windows(tokens, first, limit, stride))
    while part := list(islice(rows, _WINDOWS)):
        scores = continuation_logprobs(model, [row for _, row in part], max_tokens_a_batch)
        for (number, _), score in zip(part, scores, strict=True):
            nats[number] -= score.logprob
            done += score.tokens
        if progress is not None:
            progress(done / sum(map(len, documents)))
    return nats


def windows(tokens: list[int], first: int, n_positions: int, stride: int) -> Iterator[Row]:
    """(context, continuation) of each window: every token is in one continuation, and the model reads `n_positions`
    tokens at most.

    The first window predicts as many tokens as it can; those after it `stride` each, with all the context that fits,
    and so does a last one that has fewer left.
    """
    text = [first, *tokens]  # the input of a window that ends before text[end] is text[end - n_positions : end]
    done = 0
    while done < len(tokens):
        end = min(done + (stride if done else n_positions), len(tokens))
        yield text[max(0, end - n_positions) : done + 1], text[done + 1 : end + 1]
        done = end


def _ratio(nats: float, units: int) -> float:
    return nats / units if units else math.nan


def _perplexity(nats: float, units: int) -> float:
    mean = _ratio(nats, units)
    return math.inf if mean > 700.0 else math.exp(mean)  # beyond a float
