"""The MLLM: a stock transformers model, its processor, and the tap at which its tower is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from pivot.data.collate import Row, TooLong, encode
from pivot.data.speech import LabelMask, Style
from pivot.encoder import Encoder, names, outside, towers
from pivot.encoder.source import PIXELS, quiet, reach
from pivot.files import hash_tensors, read_json, write_json
from pivot.model import detached, small
from pivot.model import llm as llms
from pivot.model.families import FAMILIES, context, family, parts
from pivot.model.languages import language
from pivot.model.template import BASE, IMAGE
from pivot.model.template import template as chosen
from pivot.records import BadInput, Example, Tap

NOTES = "pivot.json"  # beside the stock files: the tap, and a hash of each part's weights
# Of a Hub model; one of each line must be there.
NEEDED = (("config.json",), ("model.safetensors", "model.safetensors.index.json"), ("processor_config.json", "preprocessor_config.json"))


class MLLM:
    """A stock transformers MLLM and what must travel with it. Made by `build`, `load` or `tiny`."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, tap: Tap) -> None:
        self.model = model
        self.processor = processor
        self.tap = tap
        self.family = family(model.config)

    @classmethod
    def build(
        cls,
        encoder: str | Encoder,
        llm: str | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        template: str | None = None,
        layer: int | None = None,
        pixels: int | tuple[int, int] | None = None,
        dtype: str = "float32",
        seed: int = 0,
    ) -> MLLM:
        """Put an encoder and an LLM together with a fresh 2-layer MLP between them.

        Both are taken over, not copied. `layer`: where the tower is read, by default the encoder's own tap. `tokenizer`: needed
        only with an LLM that is given as a module. `pixels`: an image size other than the encoder's own. `template`: the chat
        template, as Jinja text or the path of a .jinja file; by default the tokenizer's own, else ChatML. `seed` decides the
        projector and any new embedding.
        """
        if isinstance(encoder, str):
            encoder = Encoder.load(encoder, dtype=dtype, pixels=pixels)
        elif pixels is not None:
            encoder = encoder.resized(pixels)
        if isinstance(llm, str):
            llm, tokenizer = llms.load(llm, dtype)
        if tokenizer is None:
            raise BadInput("MLLM.build: an LLM given as a module comes without its tokenizer; pass tokenizer=")
        mllm = cls._built(encoder, llm, tokenizer, template, layer, seed)
        llms.prove(llm, mllm.model)
        return mllm.to(dtype=dtype)

    @classmethod
    def _built(
        cls,
        encoder: Encoder,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None,
        layer: int | None,
        seed: int,
    ) -> MLLM:
        encoder = encoder.fitting()
        tap = encoder.tap if layer is None else towers.default_tap(encoder.model.config, layer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokenizer = llms.with_image_token(tokenizer, llms.prepare(llm), template is not None)
            model = _join(encoder, llm, tap, tokenizer.get_vocab()[IMAGE])
        processor = _processor(encoder.model, encoder.processor, tokenizer, chosen(tokenizer, template))
        model.generation_config = _generation_config(processor)
        return cls(model, processor, tap)

    @classmethod
    def tiny(cls, encoder: str = "siglip", llm: str = "qwen2", seed: int = 0, family: str = "llava") -> MLLM:
        """Random weights that depend on the seed alone, with the base's tokenizer and processor.

        `llava` of any families of the two tables; another family of MLLMs has its own tower and LLM, and own processor.
        """
        if family != "llava":
            return cls(*small.make(family, seed))
        row, base = language(llm), AutoProcessor.from_pretrained(BASE, backend=PIXELS)
        size = base.image_processor.size["height"]
        tower = Encoder.tiny(encoder, pixels=size, patch=base.patch_size, seed=seed).model
        config = {
            "vocab_size": len(base.tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "pad_token_id": base.tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": base.tokenizer.eos_token_id,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            body = AutoModelForCausalLM.from_config(towers.CONFIG_MAPPING[row.model_type](**{**config, **row.tiny}))
        eyes = Encoder(tower, base.image_processor, towers.default_tap(tower.config))
        return cls.build(eyes, body, tokenizer=base.tokenizer, template=base.chat_template, seed=seed + 2)

    @classmethod
    def blank(cls, seed: int = 0) -> MLLM:
        """The shipped base's architecture, tokenizer and processor with random weights: what `recipes/base.yaml` begins with."""
        processor = AutoProcessor.from_pretrained(BASE, backend=PIXELS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlavaForConditionalGeneration(LlavaConfig.from_pretrained(BASE))
        model.generation_config = _generation_config(processor)
        return cls(model, processor, family(model.config).tap(model.config)).to(dtype="float32")

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device | None = None, dtype: str | None = None) -> MLLM:
        """Open the shipped "base", a folder, or a Hub model ("hf:OWNER/NAME").

        With a pivot.json, the weights in memory must have the hashes in it. Without `dtype` they stay as they were stored, except
        that half precision (fp16, in which the base is shipped) is opened as fp32.
        """
        where, here = _place(str(source), NEEDED)
        _, processor = _described(where, here)
        try:
            with quiet():
                opened: Any = AutoModelForImageTextToText.from_pretrained(
                    where, dtype="auto", output_loading_info=True, local_files_only=here
                )
                model, report = opened
        except (OSError, ValueError) as failed:
            raise BadInput(f"cannot open MLLM {where}: {llms.first_line(failed)}") from failed
        lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
        if lacking:
            raise BadInput(f"MLLM {where}: {len(lacking)} weights are missing or of another shape, first {lacking[0]}; save it again")
        mllm = cls(model, processor, family(model.config).tap(model.config))
        notes = Path(where) / NOTES
        if notes.is_file():
            told = read_json(notes)
            mllm.tap = Tap(**told["tap"])
            mllm._check(told["weights"], where)
        stored = next(model.parameters()).dtype
        return mllm.to(device, dtype or ("float32" if stored == torch.float16 else None))

    def save(self, folder: str | Path) -> None:
        """Write a folder that plain transformers opens; pivot.json comes last."""
        folder = Path(folder)
        (folder / NOTES).unlink(missing_ok=True)
        with quiet():
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)
        write_json(folder / NOTES, {"tap": asdict(self.tap), "weights": self.hashes()})

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> MLLM:
        """Move and cast in place; returns itself."""
        if device is not None:
            self.model.to(device)  # type: ignore[arg-type]
        if dtype is not None:
            self.model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)  # type: ignore[arg-type]
        return self

    def parts(self) -> dict[str, nn.Module]:
        """Tower, projector and LLM: every parameter in exactly one. The LLM includes its head, tied or not."""
        return parts(self.model)

    def encode(
        self,
        example: Example,
        label_mask: LabelMask = "clean",
        limit: int | None = None,
        template: Style = "chat",
        too_long: TooLong = "refuse",
    ) -> Row:
        """Tokenise one example. A row longer than `limit`, or than what the LLM was made for, is a `BadInput`, or cut if that is asked."""
        return encode(example, self.processor, label_mask, limit, context(self.model.config), template, too_long)

    def hashes(self) -> dict[str, str]:
        """A hash of each part's weights."""
        return {name: hash_tensors(part.state_dict()) for name, part in self.parts().items()}

    def detach(self) -> Encoder:
        """The tower as an encoder with its tap, an image processor and its projector. It shares their weights with this model."""
        return detached.take_out(self.model, self.processor, self.tap)

    @property
    def code(self) -> list[str]:
        """Hashes of the files that towers of the user's own in it are written in; empty without such."""
        return outside.code(self.model)

    @property
    def dequantised(self) -> str | None:
        """The kind of GGUF file that its LLM was unpacked from, if it was."""
        return (getattr(self.model.config.get_text_config(), "pivot_source", None) or {}).get("dequantised")

    def attach(self, encoder: Encoder) -> MLLM:
        """Put back an encoder that was detached from this MLLM or one of its shape; returns itself. The projector stays its own."""
        detached.put_back(encoder, self.detach(), self.parts()["tower"])
        return self

    def _check(self, told: Mapping[str, str], where: str | Path) -> None:
        for name, found in self.hashes().items():
            if told.get(name) != found:
                raise BadInput(f"MLLM {where}: the weights of its {name} are not those that were saved; save it again or delete {NOTES}")


def describe(source: str | Path) -> MLLM:
    """What `MLLM.load` opens, from its settings alone: its model has no storage. What is no MLLM is a `BadInput`."""
    where, here = _place(str(source), (NEEDED[0], NEEDED[2]))
    config, processor = _described(where, here)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    notes = Path(where) / NOTES
    return MLLM(model, processor, Tap(**read_json(notes)["tap"]) if notes.is_file() else family(config).tap(config))


def describe_parts(encoder: Encoder, llm: str, template: str | None = None) -> MLLM:
    """What `MLLM.build` makes of these, from settings alone: its model has no storage, and what only weights tell is not checked."""
    body, tokenizer = llms.described(llm)
    encoder.model.to("meta")  # type: ignore[arg-type]  # some come with weights, which nobody will look at
    return MLLM._built(encoder, body, tokenizer, template, None, 0)


def _described(where: str, here: bool) -> tuple[PreTrainedConfig, ProcessorMixin]:
    try:
        with quiet():
            config = AutoConfig.from_pretrained(where, local_files_only=here)
            if _is_encoder(config):
                advice = "give an MLLM; `pivot probe linear` reads an encoder as it is"
                raise BadInput(f"MLLM {where}: this is an encoder already ({config.model_type}), without an LLM; {advice}")
            family(config)  # one that is not in the table is refused by its name
            processor = AutoProcessor.from_pretrained(where, local_files_only=here)
            # By itself: a processor of videos beside it knows no such backend.
            processor.image_processor = AutoImageProcessor.from_pretrained(where, backend=PIXELS, local_files_only=here)
            return config, processor
    except BadInput:
        raise
    except ImportError as lacking:  # transformers reads a processor whole, and its part for videos only with torchvision
        raise BadInput(f"cannot open MLLM {where}: its processor needs torchvision; run pip install 'pivot-vision[encoders]'") from lacking
    except (OSError, ValueError) as failed:
        raise BadInput(f"cannot open MLLM {where}: {llms.first_line(failed)}") from failed


def holds_mllm(source: str) -> bool:
    """Whether a name is one of an MLLM: "base", or a folder or Hub model whose config is of a known MLLM family."""
    if source == "base":
        return True
    if names.parse(source) != names.Name((names.Part(source),)):
        return False  # an ensemble, or a layer: a name of encoders
    if not source.startswith("hf:") and not (Path(source) / "config.json").is_file():
        return False
    where = source if Path(source).is_dir() else source.removeprefix("hf:")
    here = where == source or reach(where, NEEDED[:1])  # the config alone: an encoder need not have an MLLM's files
    try:
        return AutoConfig.from_pretrained(where, local_files_only=here).model_type in [row.model_type for row in FAMILIES]
    except Exception:  # of any kind, from a foreign config: whoever opens it as something else says why it cannot be opened
        return False


def _is_encoder(config: PreTrainedConfig) -> bool:
    return config.model_type in [name for row in towers.ROWS for name in (row.model_type, *row.combined)]


def _join(encoder: Encoder, llm: PreTrainedModel, tap: Tap, image_token: int) -> LlavaForConditionalGeneration:
    if tap.norm:
        raise BadInput("stock LLaVA reads hidden states before the final norm: use a tap without norm")
    tower, row = encoder.model, encoder.family
    rows, columns = encoder.grid
    blocks = towers.num_blocks(tower.config)
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=llm.config,
        image_token_index=image_token,
        image_seq_length=rows * columns + towers.prefix(tower.config) - (row.strategy == "default"),
        vision_feature_layer=tap.layer or -blocks - 1,  # transformers takes 0 for "none"
        vision_feature_select_strategy=row.strategy,
        tie_word_embeddings=llm.config.tie_word_embeddings,
    )
    with torch.device("meta"):  # a shell: two of its three parts exist already
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower, model.model.language_model, model.lm_head = tower, llm.base_model, llm.get_output_embeddings()
    model.config.vision_config, model.config.text_config = tower.config, llm.config
    projector = model.model.multi_modal_projector.to_empty(device=llm.device)
    for layer in (projector.linear_1, projector.linear_2):
        nn.init.normal_(layer.weight, std=getattr(llm.config, "initializer_range", 0.02))
        nn.init.zeros_(layer.bias)
    return model.eval()


def _processor(tower: PreTrainedModel, image_processor: Any, tokenizer: PreTrainedTokenizerBase, template: str) -> LlavaProcessor:
    row = towers.family(tower.config)
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=row.strategy,
        num_additional_image_tokens=towers.prefix(tower.config),
        image_token=IMAGE,
        chat_template=template,
    )


def _generation_config(processor: ProcessorMixin) -> GenerationConfig:
    """Greedy, ended by the end of the assistant's turn: an LLM's own sampling defaults are not the MLLM's."""
    from pivot.data.turns import formatting

    pad = processor.tokenizer.pad_token_id
    end = formatting(processor).tail[0]
    return GenerationConfig(eos_token_id=end, pad_token_id=end if pad is None else pad)


def _place(source: str, needed: Sequence[tuple[str, ...]]) -> tuple[str, bool]:
    """Folder or Hub name of an MLLM, and whether the needed files of it are on this machine."""
    if source == "base":
        return str(BASE), True
    if Path(source).is_dir():
        return source, True
    if not source.startswith("hf:"):
        raise BadInput(f"MLLM '{source}': no such folder; check the path, run the stage that makes it, take 'base', or write hf:OWNER/NAME")
    name = source.removeprefix("hf:")
    return name, reach(name, needed)
