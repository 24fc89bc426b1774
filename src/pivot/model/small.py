"""Small MLLMs of the architectures that are not built from parts, with random weights: for tests and dry runs."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from pivot.encoder.source import PIXELS
from pivot.model.families import family as row_of
from pivot.model.template import BASE
from pivot.records import BadInput, Tap

SIDE, PATCH = 48, 8  # pixels
LLM = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "image_size": SIDE,
    "patch_size": PATCH,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vision_use_head": False,
}
PINPOINTS = [[SIDE * rows, SIDE * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PACKED: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "window_size": 4 * PATCH,
        "fullatt_block_indexes": [1],
    },
}
# Pictures between tokens of their own, and a system turn where the data has none.
QWEN_TEMPLATE = """{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for turn in messages -%}
{{ '<|im_start|>' + turn['role'] + '\\n' }}
{%- for part in turn['content'] -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""


def make(family: str, seed: int) -> tuple[PreTrainedModel, ProcessorMixin, Tap]:
    """Model, processor and tap of a small one."""
    makers = {"llava_onevision": _onevision, "qwen2_vl": _qwen, "qwen2_5_vl": _qwen}
    if family not in makers:
        raise BadInput(f"no small MLLM of family '{family}'; known: llava, {', '.join(makers)}")
    settings, processor = makers[family](family, AutoProcessor.from_pretrained(BASE, backend=PIXELS))
    tokenizer = processor.tokenizer
    common = {**LLM, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings["text_config"] = {**common, **settings["text_config"], "bos_token_id": None}
    settings["tie_word_embeddings"] = True
    config = CONFIG_MAPPING[family](**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config).eval()
    return model, processor, row_of(model.config).tap(model.config)


def _onevision(family: str, base: ProcessorMixin) -> tuple[dict[str, Any], ProcessorMixin]:
    """Up to 3 x 3 tiles, of which 4 are kept: larger ones are shrunk."""
    base.tokenizer.add_tokens(["<video>"], special_tokens=True)
    shape = {"image_grid_pinpoints": PINPOINTS, "vision_aspect_ratio": "anyres_max_4"}
    images = transformers.LlavaOnevisionImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS)
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=images,
        tokenizer=base.tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=shape["vision_aspect_ratio"],
        chat_template=base.chat_template,
    )
    settings = {
        **shape,
        "vision_config": SIGLIP,
        "text_config": {"model_type": "qwen2"},
        "image_token_index": processor.image_token_id,
        "video_token_index": processor.video_token_id,
    }
    return settings, processor


def _qwen(family: str, base: ProcessorMixin) -> tuple[dict[str, Any], ProcessorMixin]:
    """Pictures of 2 x 2 to 4 x 4 merged patches, or longer ones of as many."""
    base.tokenizer.add_tokens(list(VISION_TOKENS), special_tokens=True)
    name = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor"}[family]
    size = {"shortest_edge": (4 * PATCH) ** 2, "longest_edge": (8 * PATCH) ** 2}
    processor = getattr(transformers, name)(
        image_processor=transformers.Qwen2VLImageProcessorPil(patch_size=PATCH, size=size),
        tokenizer=base.tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(patch_size=PATCH, size=size),
        chat_template=QWEN_TEMPLATE,
    )
    start, end, image, video = base.tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))
    settings = {
        "vision_config": {"depth": 2, "num_heads": 2, "patch_size": PATCH, **PACKED[family]},
        "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}},
        "image_token_id": image,
        "video_token_id": video,
        "vision_start_token_id": start,
        "vision_end_token_id": end,
    }
    return settings, processor
