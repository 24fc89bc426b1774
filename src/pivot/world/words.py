"""The world's own tokenizer: bytes, every word of the world, and one token a capital or digit, so that spelling is visible."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pivot.world.item import TASKS, item

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")

# ChatML without a default system turn: every token counts in a model this small.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(size: int = 640, scenes: int = 3200) -> Tokenizer:
    """Train it on the world's sentences, until every word is one token. The same arguments give the same tokenizer."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[A-Z0-9\n]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_sentences(scenes), trainer)
    return made


def _sentences(scenes: int) -> list[str]:
    # Both styles and both forms; the roles are words too.
    said = ["user", "assistant", "system", "\n"] * scenes
    for index in range(scenes):
        pair = item("train", 0, index, tasks=TASKS)
        said += [str(pair.prompt), *(str(response.text) for response in pair.responses), pair.truth.caption if pair.truth else ""]
        talk = item("train", 0, index, tasks=TASKS, form="turns")
        said += [str(talk.prompt), *(turn["content"] for response in talk.responses for turn in response.text if not isinstance(turn, str))]
    return said
