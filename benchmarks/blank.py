"""The base before any training: write its tokenizer, processor and config into src/pivot/base, where `MLLM.blank` finds them.

    python benchmarks/blank.py [FOLDER]

Only for who changes the world's words or the base's sizes: weights that lie there no longer fit afterwards, so run
recipes/base.yaml and `benchmarks/base.py --ship` next.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import LlavaConfig, LlavaProcessor, PreTrainedTokenizerFast, Qwen2Config, SiglipImageProcessor, SiglipVisionConfig

from pivot.model.mllm import BASE
from pivot.world.words import CHAT_TEMPLATE, SPECIAL, tokenizer

PIXELS, PATCH, WIDTH = 48, 8, 128
END, START, TURN_END, IMAGE = SPECIAL


def processor() -> LlavaProcessor:
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(),
        pad_token=END,
        eos_token=TURN_END,
        additional_special_tokens=[START, IMAGE],
        model_max_length=1024,
        padding_side="right",
    )
    return LlavaProcessor(
        image_processor=SiglipImageProcessor(size={"height": PIXELS, "width": PIXELS}, resample=3),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def config(vocabulary: dict[str, int]) -> LlavaConfig:
    """A tower and an LLM of six and four layers, 128 wide. Read one layer below the top, as most LLaVA are."""
    tower = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=PIXELS,
        patch_size=PATCH,
        vision_use_head=False,
    )
    llm = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=WIDTH**-0.5,  # the usual 0.02 is for widths of thousands: attention would begin almost uniform
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=vocabulary[TURN_END],
        pad_token_id=vocabulary[END],
    )
    return LlavaConfig(
        vision_config=tower,
        text_config=llm,
        image_token_id=vocabulary[IMAGE],
        vision_feature_select_strategy="full",
        vision_feature_layer=-2,
        image_seq_length=(PIXELS // PATCH) ** 2,
        tie_word_embeddings=True,
    )


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else BASE
    made = processor()
    made.save_pretrained(folder)
    config(made.tokenizer.get_vocab()).save_pretrained(folder)
    print(f"{folder}: {len(made.tokenizer)} tokens")


if __name__ == "__main__":
    main()
