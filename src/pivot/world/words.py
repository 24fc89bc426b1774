"""The world's own tokenizer: bytes, every word of the world, and one token a capital or digit, so that spelling is visible."""

from __future__ import annotations

import re
from typing import get_args

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pivot.world.item import Form, item

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")

# ChatML without a default system turn: every token counts in a model this small.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(size: int = 640, scenes: int = 3200) -> Tokenizer:
    """Train it on the world's words, each counted once, until every word is one token.

    What it becomes depends on which words there are, not on how often the world says them.
    """
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
    made.train_from_iterator(words(scenes), trainer)
    return made


def words(scenes: int) -> list[str]:
    """Every word of the world and of the roles, as it begins a sentence and as it follows another, where it does."""
    found = {"user", "assistant", "system", "\n", " "}
    for index in range(scenes):
        for form in get_args(Form):
            example = item("train", 0, index, form=form)
            said = [example.prompt, *(response.text for response in example.responses)]
            for text in said:
                for sentence in [text] if isinstance(text, str) else [str(turn["content"]) for turn in text]:
                    found.update(re.findall(r" ?[a-z]+|[^a-z\s]", sentence))
    return sorted(found)
