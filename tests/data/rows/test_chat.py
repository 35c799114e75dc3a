from gpt_modules.data.rows.chat import encode_conversation, fit_conversation, render_conversation, transcript
from gpt_modules.data.text.tokenizers import Tokenizer

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who wrote Hamlet?"},
    {"role": "assistant", "content": "Shakespeare."},
    {"role": "user", "content": "When?"},
]


def test_transcript_by_hand():
    assert transcript([*MESSAGES, {"role": "assistant", "content": "1600."}]) == [
        ("System: Be brief.\nUser: Who wrote Hamlet?\nAssistant:", False),
        (" Shakespeare.", True),
        ("\nUser: When?\nAssistant:", False),
        (" 1600.", True),
    ]


def test_prompt_ends_where_the_assistant_speaks():
    expected = "System: Be brief.\nUser: Who wrote Hamlet?\nAssistant: Shakespeare.\nUser: When?\nAssistant:"
    assert render_conversation(MESSAGES) == expected


def test_ids_hold_the_end_of_every_answer():
    tokenizer = Tokenizer.gpt2()
    ids = encode_conversation(MESSAGES, tokenizer)
    assert ids.count(tokenizer.eos_id) == 1
    assert tokenizer.decode(ids, skip_special=False) == render_conversation(MESSAGES).replace(
        "Shakespeare.", "Shakespeare.<|endoftext|>"
    )


def test_what_is_learned_follows_what_is_prompted():
    """Ids to generate from are a prefix of the ids that finetuning reads."""
    from gpt_modules.data.sft import encode_demonstrations

    tokenizer = Tokenizer.gpt2()
    whole = [*MESSAGES, {"role": "assistant", "content": "1600."}]
    (example,) = encode_demonstrations([{"messages": whole}], tokenizer, 128, "x")
    prompt = encode_conversation(MESSAGES, tokenizer)
    assert example.tokens[: len(prompt)].tolist() == prompt
    assert example.learned[len(prompt) :].all()
    learned = example.tokens[example.learned].tolist()
    assert tokenizer.decode(learned, skip_special=False) == " Shakespeare.<|endoftext|> 1600.<|endoftext|>"


def test_whole_oldest_turns_are_left_out_and_what_the_system_says_stays():
    tokenizer = Tokenizer.gpt2()
    whole, last = encode_conversation(MESSAGES, tokenizer), encode_conversation([MESSAGES[0], MESSAGES[3]], tokenizer)
    assert fit_conversation(MESSAGES, tokenizer, len(whole)) == (whole, 0)
    for room in (len(whole) - 1, len(last), 1):
        assert fit_conversation(MESSAGES, tokenizer, room) == (last, 1)
