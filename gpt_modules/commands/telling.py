"""An answer that is told while it comes."""

import sys
from collections.abc import Iterator, Sequence

from gpt_modules.commands.speaker import Sampling, Speaker


class Telling:
    """One answer of a speaker, piece by piece; a function of the prompt, the seed and its place.

    Args:
        ids: of the prompt, for which there is room.
        place: what makes its noise its own.
    """

    def __init__(self, speaker: Speaker, sampling: Sampling, ids: Sequence[int], place: str) -> None:
        self._speaker, self._sampling, self._ids, self._place = speaker, sampling, list(ids), place
        self.ended = False
        """Whether it came to its end; else it was cut off."""

    def __iter__(self) -> Iterator[str]:
        from gpt_modules.backbone import noise_of
        from gpt_modules.backbone.decoding.batching import Batch, Row
        from gpt_modules.backbone.decoding.step import SamplingRule
        from gpt_modules.data.text.streaming import AnswerText

        most, temperature, top_k, top_p, seed = self._sampling
        text = AnswerText(self._speaker.tokenizer, turn=True)
        ends = frozenset(self._speaker.tokenizer.end_ids)
        rule = SamplingRule(temperature, top_k, top_p)
        batch = Batch(self._speaker.model, 1)
        batch.join(Row(self._ids, most, rule, noise_of(f"{seed} {self._place}"), ends))
        while len(batch):
            for said in batch.turn():
                if said.token is not None:
                    yield text.add(said.token)
                self.ended = said.end == "stop"
        yield text.close()


class Voice:
    """A model that answers conversations. letter: before its answers, where there are two."""

    def __init__(self, name: str, speaker: Speaker, letter: str = "") -> None:
        self.name, self.speaker, self.letter = name, speaker, letter

    def answer(self, messages: Sequence[dict[str, str]], sampling: Sampling, place: str) -> tuple[str, bool]:
        """Say the answer as it comes: (its text, whether it came to its end). Ctrl-C stops it.

        Of a conversation that is too long, whole oldest turns are not read, which stderr is told; of one turn that is,
        the beginning.
        """
        from gpt_modules.data.rows.chat import fit_conversation

        room = self.speaker.model.config.n_positions - sampling.max_new_tokens
        ids, left_out = fit_conversation(messages, self.speaker.tokenizer, room)
        if left_out:
            _tell(f"the first {left_out} turns are not read: there is room for {room} tokens, the context of "
                  f"{self.speaker.model.config.n_positions} less --max-new-tokens")  # fmt: skip
        if len(ids) > room:
            _tell(f"{len(ids)} tokens, the first {len(ids) - room} are not read: there is room for {room}")
        telling, found = Telling(self.speaker, sampling, ids[-room:], place), ""
        if self.letter:
            write(f"{self.letter}: ")
        try:
            for piece in telling:
                found += piece
                write(piece)
        except KeyboardInterrupt:
            write(" ...")
        write("\n")
        if not telling.ended:
            _tell("cut off (/set max_new_tokens, /retry): what is said next is answered as if it had ended there, as a "
                  "chat template writes it")  # fmt: skip
        return found.strip(), telling.ended


def write(text: str) -> None:
    """Part of a line of standard output, at once; what its encoding lacks is written as an escape."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
