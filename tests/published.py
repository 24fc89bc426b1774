"""Data sets in the layouts in which they are published, small and with content of their own.

Each function writes one below a folder and returns the path to open. As they stand all rows are sound. With `odd` come the oddities that
the published sets are known for: values of other types, pictures under other names, rows of text alone, several pictures, turns that
nobody asked for.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "orange", "purple", "teal")
SHAPES = ("circle", "square", "bar")


def drawn(number: int, size: tuple[int, int] = (32, 24)) -> Image.Image:
    """A shape on a plain ground; every number has its own picture."""
    image = Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, 200))
    pen, colour, left = ImageDraw.Draw(image), COLOURS[number % len(COLOURS)], 4 + number % 5
    outline = pen.ellipse if SHAPES[number % 3] == "circle" else pen.rectangle
    outline((left, 4, left + (6 if SHAPES[number % 3] == "bar" else 14), 18), fill=colour)
    return image


def called(number: int) -> str:
    """What is to be seen in that picture."""
    return f"{COLOURS[number % len(COLOURS)]} {SHAPES[number % 3]}"


def encoded(number: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    drawn(number).save(out, kind)
    return out.getvalue()


def put(folder: Path, name: str, number: int) -> str:
    """Write a picture below a folder, of the kind that its name says; returns the name."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn(number).save(file)
    return name


def hub(number: int, name: str | None = None) -> dict[str, Any]:
    """A picture as the Hub stores it in parquet."""
    return {"bytes": encoded(number), "path": name}


def array(file: Path, rows: Sequence[Mapping[str, Any]], indent: int | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    return file


def lines(file: Path, rows: Sequence[Mapping[str, Any]], end: str = "\n") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + end, encoding="utf-8")
    return file


HUB_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def parquet(file: Path, rows: Sequence[Mapping[str, Any]], schema: Mapping[str, pa.DataType], group: int = 2) -> Path:
    """Rows with the note on their features that the Hub's library leaves in a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    features = {name: {"_type": "Image"} if kind == HUB_IMAGE else {"_type": "Value"} for name, kind in schema.items()}
    noted = pa.schema(list(schema.items()), {"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], noted), file, row_group_size=group)
    return file


def asked(question: str, answer: str, *more: str) -> list[dict[str, str]]:
    """Turns of a human and a gpt, in turn."""
    said = (question, answer, *more)
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(said)]


# ---- conversations


def llava(folder: Path, odd: bool = False) -> Path:
    """One JSON array beside its pictures, as LLaVA's instruction data and the captions that align a projector."""
    rows: list[dict[str, Any]] = [
        {
            "id": "000000000009",
            "image": put(folder, "coco/train2017/000000000009.jpg", 1),
            "conversations": asked("<image>\nWhat is to be seen?", f"A {called(1)}.", "Is it large?", "No, it is small."),
        },
        {
            "id": "gqa-2",
            "image": put(folder, "gqa/images/2.png", 2),
            "conversations": asked("Name the shape.\n<image>", f"It is a {called(2)}."),
            "data_source": "gqa",
        },
        {"id": "talk-3", "conversations": asked("How do you spell “naïve”?", "With two dots: naïve.")},
    ]
    if odd:
        rows += [
            {
                "id": 4,
                "image": [put(folder, "two/a.jpg", 4), put(folder, "two/b.jpg", 5)],
                "conversations": asked("<image>\n<image>\nWhich?", "One."),
            },
            {"id": "starts-with-gpt", "conversations": [{"from": "gpt", "value": "Hello."}, *asked("What is 2 + 2?", "4.")]},
            {
                "id": "system-6",
                "conversations": [{"from": "system", "value": "Be brief."}, *asked("Who are you?", "A model.")],
                "model": "x",
            },
            {"id": "unanswered-7", "conversations": asked("Is it raining?", "Yes.", "And there?")},
        ]
    return array(folder / "llava.json", rows, indent=2)


def cambrian(folder: Path, odd: bool = False) -> Path:
    """JSON lines of LLaVA's rows, pictures in a folder for each source."""
    rows: list[dict[str, Any]] = [
        {"id": "ocr-1", "image": put(folder, "ocr_vqa/images/1.jpg", 11), "conversations": asked("<image>\nWho wrote it?", "Ada Blum.")},
        {"id": "chart-2", "image": put(folder, "chartqa/train/png/2.png", 12), "conversations": asked("<image>\nHow many bars?", "3")},
        {"id": "text-3", "conversations": asked("Count to three.", "1, 2, 3.")},
    ]
    if odd:
        rows += [
            {
                "id": 737,
                "image": put(folder, "vg/VG_100K/737.jpg", 13),
                "conversations": asked("What colour?\n<image>", "Teal."),
                "source": "vg",
            },
            {"id": "null-image", "image": None, "conversations": asked("Say hello.", "Hello.")},
        ]
    return lines(folder / "Cambrian737k.jsonl", rows, end="" if odd else "\n")


def onevision(folder: Path, odd: bool = False) -> Path:
    """A folder for each sub-set, each with parts of parquet; pictures inside, none in sub-sets of text alone."""
    turn = pa.list_(pa.struct({"from": pa.string(), "value": pa.string()}))
    schema = {"id": pa.string(), "image": HUB_IMAGE, "conversations": turn, "data_source": pa.string()}

    def of(number: int, source: str, question: str = "<image>\nWhat is it?") -> dict[str, Any]:
        talk = asked(question, f"A {called(number)}.")
        return {"id": f"{source}-{number}", "image": hub(number, f"{number}.jpg"), "conversations": talk, "data_source": source}

    text = {"id": "magpie-1", "image": None, "conversations": asked("Tell a joke.", "No."), "data_source": "magpie_pro"}
    other = {**text, "id": "magpie-2", "conversations": asked("Tell another.", "Yes.")}
    whole = folder / "LLaVA-OneVision-Data"
    parquet(whole / "ai2d(gpt4v)" / "train-00000-of-00002.parquet", [of(21, "ai2d"), of(22, "ai2d"), of(23, "ai2d")], schema)
    parquet(whole / "ai2d(gpt4v)" / "train-00001-of-00002.parquet", [of(24, "ai2d")], schema)
    parquet(whole / "magpie_pro(l3_80b_mt)" / "train-00000-of-00001.parquet", [text, other], schema)
    if odd:
        twice, none = of(25, "tqa", "<image>\n<image>\nWhich?"), of(26, "tqa", "What is it?")
        parquet(whole / "tqa(cauldron,llava_format)" / "train-00000-of-00001.parquet", [twice, none], schema)
    return whole


def vlaa(folder: Path, odd: bool = False) -> Path:
    """Reasoning: question, gold answer, and a trace of thought that ends in an answer."""
    traced = "<think>\nLet me look at the shapes.\n</think>\n\n{}"
    sources = {
        "clevr_math/images/CLEVR_1.png": ("How many shapes are left?", "1"),
        "geoqa170k/images/test/2.png": ("Which angle? A: 30° B: 60°", "B"),
        "synthesis/images/3.png": ("Solve for x.", "\\frac{1}{2}"),
        "arxivqa/images/4.jpg": ("Which panel? A) left B) right", "A"),
        "docvqa/5.png": ("Who signed?", "A. Blum"),
        "vizwiz/6.jpg": ("What is this?", "a cup"),
        "allava_laion/images/7.jpeg": ("What is unusual?", "The colour."),
        "coco/train2017/000000000008.jpg": ("Where is the cup?", "[0.1, 0.2, 0.7, 0.5]"),
        "vg/VG_100K_2/9.jpg": ("Where is the dog?", "[0.0, 0.0, 0.5, 0.5]"),
    }
    rows: list[dict[str, Any]] = [
        {
            "id": f"vlaa-{number}",
            "image": put(folder / "images", name, 30 + number),
            "question": question,
            "gt": gold,
            "ds_answer": traced.format(gold),
            "caption": f"A {called(30 + number)} on a plain ground.",
            "meta": {"caption_model_id": "gpt-4o", "rationale": None},
        }
        for number, (name, (question, gold)) in enumerate(sources.items(), 1)
    ]
    if odd:
        rows += [
            {**rows[0], "id": 10, "image": put(folder / "images", "clevr_math/images/10.png", 40), "gt": 3},
            {**rows[4], "id": "chart-11", "image": put(folder / "images", "chartqa/11.png", 41), "verifier_type": "open"},
        ]
    return array(folder / "VLAA-Thinking-SFT-126K.json", rows)


# ---- preferences


def mmpr(folder: Path, odd: bool = False) -> Path:
    """A folder with meta.json; paths in it begin with the name of the folder."""
    whole = folder / "MMPR-v1.2"

    def entry(root: str, rows: Sequence[Mapping[str, Any]], name: str, repeat: float = 1) -> dict[str, Any]:
        lines(whole / "annotations" / f"{name}.jsonl", rows)
        annotation = f"MMPR-v1.2/annotations/{name}.jsonl"
        return {
            "root": f"MMPR-v1.2/images/{root}",
            "annotation": annotation,
            "data_augment": False,
            "repeat_time": repeat,
            "length": len(rows),
        }

    def of(number: int, image: Any, question: str = "What is it?") -> dict[str, Any]:
        said = {"question": question, "chosen": f"It is a {called(number)}.", "rejected": f"It is a {called(number + 1)}, perhaps."}
        return {**({"image": image} if image else {}), **said}

    ai2d, scan = whole / "images" / "ai2d", whole / "images" / "geo"
    plain = [of(number, put(ai2d, f"abc/{number}.png", number), "<image>\nWhat is it?") for number in (51, 52, 53)]
    bare = [of(number, put(scan, f"{number}.jpg", number)) for number in (54, 55)]
    meta = {
        "ai2d_cot_prefix": entry("ai2d/", plain, "ai2d_cot_prefix", 1),
        "geo_correctness": entry("geo", bare, "geo_correctness", 2 if odd else 1),
        "left_out": entry("geo", bare, "left_out", 0),
    }
    if odd:
        put(scan, "56.jpg", 56)
        several = of(58, [put(scan, "58.jpg", 58), put(scan, "59.jpg", 59)])
        odds = [of(56, "56.gif"), of(57, None, "What is 2 + 2?"), several, {**several, "question": "<image> or <image>?"}]
        meta["odd"] = {**entry("geo", odds, "odd", 1), "max_dynamic_patch": 12}
        meta["part"] = entry("ai2d", plain, "part", 0.67)
    (whole / "meta.json").write_text(json.dumps(meta, indent=4))
    return whole


def llava_dpo(folder: Path, odd: bool = False) -> Path:
    """Pairs as LLaVA-NeXT's DPO trainer reads them, beside their pictures."""
    rows: list[dict[str, Any]] = [
        {
            "id": f"dpo-{number}",
            "prompt": f"<image>\nDescribe picture {number}.",
            "chosen": f"A {called(number)}.",
            "rejected": f"A {called(number + 1)} and a cat.",
            "image": put(folder, f"pictures/{number}.jpg", number),
            "answer": f"A {called(number)}.",
        }
        for number in (61, 62, 63)
    ]
    if odd:
        rows[2].pop("answer")
        rows += [
            {**rows[0], "id": 64, "prompt": "Describe <image> it,\n<image>please."},
            {**rows[1], "id": "no-tag", "prompt": "Describe it."},
            {**rows[1], "id": "other-picture", "image_rejected": put(folder, "pictures/66.jpg", 66)},
            {key: value for key, value in rows[1].items() if key != "image"} | {"id": "text", "prompt": "Say no."},
        ]
    return array(folder / "dpo.json", rows)


def rlaif(folder: Path, odd: bool = False) -> Path:
    """RLAIF-V: parts of parquet with question, chosen and rejected as columns."""
    names = ("ds_name", "question", "chosen", "rejected", "origin_dataset", "origin_split")
    schema = {**dict.fromkeys(names, pa.string()), "idx": pa.int64(), "image": HUB_IMAGE, "image_path": pa.string()}

    def of(number: int) -> dict[str, Any]:
        return {
            "ds_name": "RLAIF-V",
            "image": hub(number),
            "question": f"What stands in picture {number}?",
            "chosen": f"A {called(number)}.",
            "rejected": f"A {called(number + 1)} with a hat.",
            "origin_dataset": "COCO",
            "origin_split": json.dumps({"model": "seven", "type": "detail"}),
            "idx": number if not odd else 7,
            "image_path": f"{number}.jpg",
        }

    whole = folder / "RLAIF-V-Dataset"
    parquet(whole / "RLAIF-V-Dataset_000.parquet", [of(71), of(72), of(73)], schema)
    parquet(whole / "RLAIF-V-Dataset_001.parquet", [of(74)], schema)
    return whole


def rlhf_v(folder: Path, odd: bool = False) -> Path:
    """RLHF-V: one parquet file whose column `text` is JSON."""
    names = ("ds_name", "text", "origin_dataset", "origin_split")
    schema = {**dict.fromkeys(names, pa.string()), "idx": pa.int64(), "image": HUB_IMAGE, "image_path": pa.string()}

    def of(number: int) -> dict[str, Any]:
        said = {"question": f"What is in picture {number}?", "chosen": f"A {called(number)}.", "rejected": f"Two of {called(number)}."}
        if odd:
            said["note"] = "“checked”"
        row = {"ds_name": "RLHF-V", "image": hub(number, f"{number}.jpg"), "text": json.dumps(said), "origin_dataset": "LCS-558K"}
        return {**row, "origin_split": "vqa", "idx": number, "image_path": f"{number}.jpg"}

    return parquet(folder / "RLHF-V-Dataset.parquet", [of(81), of(82), of(83)], schema)


def trl(folder: Path, odd: bool = False) -> Path:
    """Rows of TRL's vision data: chat messages whose content is a list of parts, pictures beside."""

    def text(said: str) -> dict[str, str]:
        return {"type": "text", "text": said}

    def of(number: int) -> dict[str, Any]:
        return {
            "id": f"trl-{number}",
            "images": [put(folder, f"images/{number}.png", number)],
            "prompt": [{"role": "user", "content": [{"type": "image"}, text(f"What is {number}?")]}],
            "chosen": [{"role": "assistant", "content": [text(f"A {called(number)}.")]}],
            "rejected": [{"role": "assistant", "content": [text(f"A {called(number + 1)}, I think.")]}],
        }

    rows: list[dict[str, Any]] = [of(91), of(92), of(93)]
    if odd:
        user, right, wrong = (
            {"role": role, "content": said} for role, said in (("user", "Hello."), ("assistant", "Hi."), ("assistant", "Go."))
        )
        system = {"role": "system", "content": "Be kind."}
        image = put(folder, "images/94.png", 94)
        rows += [
            {"prompt": "<image>\nWhat is it?", "chosen": "A cup.", "rejected": "A cat.", "image": image},
            {"chosen": [system, user, right, user, right], "rejected": [system, user, right, user, wrong]},
            {"prompt": "Hello.", "chosen": [user, right], "rejected": [user, wrong], "score": 3},
            {"prompt": "Say hi.", "completion": "Hi."},
            {"prompt": [user], "completion": [right], "images": []},
            {"messages": [system, {**user, "content": [text("Look: "), {"type": "image"}]}, right, user, right], "images": [image]},
            {"prompt": "Say go.", "completion": "Hi.", "label": False},
        ]
    return lines(folder / "trl.jsonl", rows)


# ---- pictures alone, with captions, with masks


def classes(folder: Path, odd: bool = False) -> Path:
    """ImageNet's layout: a folder for each class. With `odd`, below train/ and val/, beside files that are no pictures."""
    whole = folder / "imagenet"
    for split in ("train", "val") if odd else ("",):
        for number, name in enumerate(("n01440764", "n01443537", "n01484850")):
            for which in range(2 + number):
                put(whole / split, f"{name}/{name}_{which}.{'JPEG' if not odd or which else 'png'}", 100 + 10 * number + which)
        if odd:
            (whole / split / "n01440764" / "wnid.txt").write_text("a fish")
    if odd:
        (whole / "LOC_synset_mapping.txt").write_text("n01440764 tench\n")
    return whole


def masks(folder: Path, odd: bool = False) -> Path:
    """SceneParse150: pictures and maps of class numbers under the same names, in two splits."""
    whole, dice = folder / "ADEChallengeData2016", np.random.default_rng(0)
    for split, count in (("training", 3), ("validation", 2)):
        for which in range(1, count + 1):
            name = f"ADE_{'train' if split == 'training' else 'val'}_{which:08d}"
            put(whole / "images" / split, f"{name}.jpg", 130 + which)
            file = whole / "annotations" / split / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            mask = Image.fromarray(dice.integers(0, 151, (24, 32), dtype=np.uint8))
            if odd:  # stored with a palette: its indices are the classes
                mask.putpalette([value for index in range(256) for value in (index * 7 % 256, index * 13 % 256, 255 - index)])
            mask.save(file)
    (whole / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t11664\t1172\t1\twall\n")
    return whole


def captions(folder: Path, odd: bool = False) -> Path:
    """Pictures inside parquet, each with its caption; with `odd`, with several of them."""
    schema = {"image": HUB_IMAGE, "text": pa.list_(pa.string()) if odd else pa.string(), "url": pa.string()}
    rows = [{"image": hub(number, f"{number}.jpg"), "text": f"A {called(number)}.", "url": f"wiki/{number}"} for number in (141, 142, 143)]
    if odd:
        rows = [{**row, "text": [row["text"], "A drawing."]} for row in rows]
    return parquet(folder / "wit_1024.parquet", rows, schema)


def captioned_folder(folder: Path, odd: bool = False) -> Path:
    """Pictures in a folder, each with a text of the same name beside it; with `odd`, in folders of shards."""
    whole = folder / "captioned"
    for number in (151, 152, 153):
        place = whole / f"{number % 2:05d}" if odd else whole
        put(place, f"{number}.jpg", number)
        (place / f"{number}.txt").write_text(f"A {called(number)}.\n", encoding="utf-8")
    return whole


Layout = Callable[..., Path]
READERS: dict[Layout, str] = {  # who reads what
    llava: "llava",
    cambrian: "llava",
    onevision: "onevision",
    vlaa: "vlaa",
    mmpr: "mmpr",
    llava_dpo: "llava_dpo",
    rlaif: "rlaif",
    rlhf_v: "rlaif",
    trl: "trl",
    classes: "classes",
    masks: "masks",
    captions: "captions",
    captioned_folder: "captions",
}
