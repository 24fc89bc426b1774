"""Chat templates in the styles that LLM families have: prompt, picture, turns, end token and label mask, or a line that helps.

The templates are written here, with the traits of the families' own. The oracle is the stock processor, which renders and
tokenises a whole conversation at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from pivot.data.collate import Row, encode
from pivot.data.turns import formatting
from pivot.model.mllm import BASE
from pivot.model.template import SYSTEM, template
from pivot.records import BadInput, Example, Response

REFUSE = "{{ raise_exception('only user and assistant may speak') }}"
STYLES = {
    # no system turn, another name for the assistant, stripped texts, a begin token of its own
    "gemma": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}" + REFUSE + "{% endif %}"
        "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    # two newlines after a header, a system turn with the date of the day
    "llama3": (
        "{{ bos_token }}{% if messages[0]['role'] != 'system' %}<|start_header_id|>system<|end_header_id|>\n\n"
        "Today Date: {{ strftime_now('%d %b %Y') }}\n\n<|eot_id|>{% endif %}"
        "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    # no header for the assistant, a blank before its text
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}{% else %}" + REFUSE + "{% endif %}{% endfor %}"
    ),
    # a blank on either side of its text, the system turn folded into the user's
    "llama2": (
        "{% set said = namespace(first='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{% set said.first = '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' %}{% elif m['role'] == 'user' %}"
        "{{ bos_token }}[INST] {{ said.first }}{% set said.first = '' %}{{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    # an end token behind whatever nobody answers
    "phi3": (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
    ),
    # no end to a user's turn, no newline after the last of the assistant's
    "olmo2": (
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{{ '' if loop.last else '\n' }}{% else %}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    # the end token after every turn, no begin token: the tokenizer puts it there
    "zephyr": (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
}
SPECIAL = {
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "phi3": ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
}
# What ends the assistant's turn, where that is not the tokenizer's end token.
END = {"gemma": "<end_of_turn>", "llama3": "<|eot_id|>", "phi3": "<|end|>"}
TALK = (
    {"role": "assistant", "content": "Red."},
    {"role": "user", "content": "And how many?"},
    {"role": "assistant", "content": "Two of them."},
)


def byte_tokenizer(*special: str, adds_begin: bool = False) -> PreTrainedTokenizerFast:
    """Every byte a token, as GPT-2's and Llama 3's kind would have it without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _wrapped(made, special, adds_begin)


def blank_tokenizer(*special: str, adds_begin: bool = True) -> PreTrainedTokenizerFast:
    """Letters, and blanks as a letter that is put in front of a text, as sentencepiece has it for Llama 2, Mistral 0.1 and Phi-3."""
    letters = [chr(n) for n in range(33, 127)] + ["\n", "▁"]
    made = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    return _wrapped(made, special, adds_begin)


def old_blank_tokenizer(*special: str, adds_begin: bool = True) -> PreTrainedTokenizerFast:
    """The same as tokenizer files had it before: a blank in front of whatever follows a control token, too."""
    letters = [chr(n) for n in range(33, 127)] + ["\n", "▁"]
    made = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _wrapped(made, special, adds_begin)


def _wrapped(made: Tokenizer, special: tuple[str, ...], adds_begin: bool) -> PreTrainedTokenizerFast:
    made.add_special_tokens(["<s>", "</s>", *special, "<image>"])
    if adds_begin:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=[*special, "<image>"],
        clean_up_tokenization_spaces=False,
    )


def processor(style: str, kind: Any = byte_tokenizer, adds_begin: bool | None = None, given: str | None = None) -> Any:
    tokenizer = kind(*SPECIAL.get(style, ()), adds_begin=style == "zephyr" if adds_begin is None else adds_begin)
    tokenizer.chat_template = STYLES.get(style)
    return LlavaProcessor(
        image_processor=AutoImageProcessor.from_pretrained(BASE, backend="pil"),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        image_token="<image>",
        chat_template=template(tokenizer, given),
    )


def said(made: Any, row: Row, number: int = 0) -> str:
    """Everything of one response's row, as text, its picture as one placeholder."""
    ids = row.trunks[0].span.ids + row.branches[number].ids
    return made.tokenizer.decode(ids).replace("<image>" * 36, "<image>")


def learnt(made: Any, row: Row, number: int = 0) -> str:
    branch = row.branches[number]
    return made.tokenizer.decode([token for token, wanted in zip(branch.ids, branch.supervised, strict=True) if wanted])


def stock(made: Any, example: Example) -> list[int]:
    """The conversation as the stock processor tokenises it: rendered and tokenised whole."""
    turns: list[Any] = [
        {"role": "user", "content": [{"type": "image", "image": example.images[0]}, {"type": "text", "text": example.prompt}]}
    ]
    answer = example.responses[0].text
    for turn in [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer:
        turns.append({"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]})
    found = made.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
    return found["input_ids"][0].tolist()


@pytest.fixture
def asked(picture: Any) -> Example:
    return Example("asked", (picture(1),), "Which colour?", (Response("Red."), Response("Blue, I think", role="rejected")))


@pytest.fixture
def talked(picture: Any) -> Example:
    return Example("talked", (picture(1),), "Which colour?", (Response(TALK),))


CASES = [
    *[(style, byte_tokenizer) for style in STYLES],
    *[(style, kind) for style in ("mistral", "llama2", "phi3", "zephyr") for kind in (blank_tokenizer, old_blank_tokenizer)],
]


@pytest.mark.parametrize(("style", "kind"), CASES)
@pytest.mark.parametrize("many", [False, True], ids=["one turn", "turns"])
def test_rows_are_what_the_stock_processor_makes(style: str, kind: Any, many: bool, asked: Example, talked: Example) -> None:
    made, example = processor(style, kind), talked if many else asked
    row = encode(example, made)
    ours, whole = row.trunks[0].span.ids + row.branches[0].ids, stock(made, example)
    assert whole[: len(ours)] == ours, "our rows end with the end token; a template may go on"
    assert whole[len(ours) :] == [] or set(made.tokenizer.decode(whole[len(ours) :])) <= set("\n</s>")


@pytest.mark.parametrize(("style", "kind"), CASES)
def test_the_answer_and_its_end_are_learnt_and_nothing_else(style: str, kind: Any, asked: Example, talked: Example) -> None:
    made = processor(style, kind)
    end = END.get(style, "</s>")
    assert made.tokenizer.decode([formatting(made).tail[0]]) == end
    row = encode(asked, made)
    assert not any(row.trunks[0].span.supervised)
    for number, response in enumerate(asked.responses):
        found = learnt(made, row, number)
        assert found.endswith(end) and found.removesuffix(end).strip() == response.text
    found = learnt(made, encode(talked, made))
    assert [part.strip() for part in found.split(end)] == ["Red.", "Two of them.", ""]
    assert "And how many?" in said(made, encode(talked, made))


@pytest.mark.parametrize("style", STYLES)
def test_the_picture_stands_once_before_its_question(style: str, asked: Example) -> None:
    made = processor(style)
    text = said(made, encode(asked, made))
    assert text.count("<image>") == 1 and "<image>\nWhich colour?" in text
    assert text.count("<s>") == (0 if style == "phi3" else 1), "one begin token, whoever brings it; none if nobody does"


@pytest.mark.parametrize("style", STYLES)
def test_a_system_turn_is_said_or_refused_with_the_templates_reason(style: str, picture: Any) -> None:
    prompt = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"})
    example = Example("ruled", (picture(1),), prompt, (Response("A ring."),))
    made = processor(style)
    if style in ("gemma", "mistral"):
        with pytest.raises(BadInput, match=r"row ruled: the chat template refuses .*only user and assistant may speak") as caught:
            encode(example, made)
        assert "\n" not in str(caught.value) and "template=" in str(caught.value)
    else:
        text = said(made, encode(example, made))
        assert text.index("Be brief.") < text.index("What is it?") < text.index("A ring.")


def test_the_day_does_not_change_a_row(asked: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    made = processor("llama3")
    assert "Today Date: 26 Jul 2024" in said(made, encode(asked, made))
    assert "strftime_now" not in template(byte_tokenizer(), STYLES["gemma"])


# ---- which template


def thinking() -> PreTrainedTokenizerFast:
    """A ChatML tokenizer whose own template rewrites turns, as Qwen3's and SmolLM3's do."""
    made = byte_tokenizer("<|im_start|>", "<|im_end|>")
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


def test_chatml_goes_before_a_template_that_thinks(asked: Example, talked: Example) -> None:
    made = processor("", kind=lambda *special, adds_begin: thinking())
    made.chat_template = template(thinking())
    text = said(made, encode(talked, made))
    assert text == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<image>\nWhich colour?<|im_end|>\n"
        "<|im_start|>assistant\nRed.<|im_end|>\n"
        "<|im_start|>user\nAnd how many?<|im_end|>\n<|im_start|>assistant\nTwo of them.<|im_end|>"
    )
    made.chat_template = template(thinking(), thinking().chat_template)
    with pytest.raises(BadInput, match="an assistant turn must be the generation prompt and then its text; use another template"):
        encode(asked, made)


@pytest.mark.parametrize("style", ["olmo2", "phi4"])
def test_knowing_chatmls_tokens_is_not_speaking_it(style: str) -> None:
    """OLMo 2's tokenizer has them unused; Phi-4 puts a token of its own behind the role."""
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_sep|>", "<|im_end|>")
    phi4 = "{% for m in messages %}<|im_start|>{{ m['role'] }}<|im_sep|>{{ m['content'] }}<|im_end|>{% endfor %}"
    own = STYLES.get(style, phi4 + "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}")
    tokenizer.chat_template = own
    assert template(tokenizer).endswith(own)
    tokenizer.chat_template = None
    assert SYSTEM in template(tokenizer), "without any, there is nothing better than ChatML"


def test_a_given_template_is_text_or_a_file(tmp_path: Path, asked: Example) -> None:
    file = tmp_path / "plain.jinja"
    file.write_text(STYLES["zephyr"])
    tokenizer = byte_tokenizer()
    assert template(tokenizer, file) == template(tokenizer, str(file)) == template(tokenizer, STYLES["zephyr"])
    assert template(tokenizer, file).endswith(STYLES["zephyr"])
    made = processor("gemma", given=str(file))
    assert "<|assistant|>\nRed.</s>" in said(made, encode(asked, made)), "what is given goes before the tokenizer's own"


def test_a_template_that_places_pictures_stays_as_it_is() -> None:
    own = (BASE / "chat_template.jinja").read_text(encoding="utf-8")
    assert template(byte_tokenizer(), own) == own


def test_of_several_templates_the_default_is_taken() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"rag": "{{ documents[0] }}", "default": STYLES["zephyr"]}
    assert template(tokenizer).endswith(STYLES["zephyr"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("/nowhere/x.jinja", "cannot be read .*give a .jinja file"),
        ("zephyr", "neither Jinja text nor the path"),
        ("{% for m in messages %}", "the chat template cannot be used: .*endfor"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "it loses the picture or the text"),
        ("{{ raise_exception('not today') }}", "not today"),
    ],
)
def test_what_cannot_be_a_template_is_one_line(given: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        template(byte_tokenizer(), given)
    assert "\n" not in str(caught.value)
