"""What the page's words mean, each said where it occurs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

# By the name of an objective.
OBJECTIVES = {
    "mpo": (
        "mpo",
        "Mixed preference optimisation: which of two responses is better, how good each is by itself, and how to write the chosen one.",
    ),
    "kto": ("kto", "Kahneman-Tversky optimisation judges each response by itself, against what responses have gained in general."),
    "orpo": (
        "orpo",
        "Odds-ratio preference optimisation: sft, and with it better odds for the chosen response. It needs no model to compare with.",
    ),
    "grpo": (
        "grpo",
        "Group relative policy optimisation: the model writes several replies to a prompt, and those that earn more than their mean "
        "become likelier.",
    ),
    "ppo": (
        "ppo",
        "Proximal policy optimisation: the model writes a reply, and each of its tokens is held against what a critic had expected "
        "before it.",
    ),
    "reward_model": ("reward model", "Learns a number for a reply, higher for the chosen of two. What it writes is not learned."),
}
# By metric: a pattern that fits some part of a path, as in miou, prototype/mean or 4-shot/class.
METRICS = {
    "prototype": ("prototype classifier", "Takes the class whose mean feature is the nearest. Nothing is fitted."),
    r"knn|k-?nn-?\d*": (
        "k-NN classifier",
        "An image is of the class that most of its nearest neighbours in training are of.",
    ),
    r"\d+-shot": ("few-shot", "The same classifier, trained on so few images of each class."),
    r"zero[-_]shot": (
        "zero-shot",
        "Images are held against the names of the classes by the text tower that the encoder was trained with. It says how much of that "
        "common ground is left.",
    ),
    r"recall": (
        "macro recall",
        "Of the patches in which a class is, the share in which it is found; then the mean over classes, rare ones counting as much as "
        "frequent ones. Whoever finds everything everywhere has it whole: see precision.",
    ),
    r"precision": (
        "precision",
        "Of the patches that are said to have a class, the share that has it; mean over classes that are said at all.",
    ),
    r"miou.*|iou": (
        "mIoU",
        "Where a class is found and where it is: the area common to both over the area of both together; mean over classes. Of patches, "
        "or of pixels, to which each patch hands its class.",
    ),
    r"energy": (
        "energy",
        "How much of the loss's gradient falls on the region that the question is about, over that region's share of the picture. "
        "1: as much as on anything else.",
    ),
    r"pointing.*": (
        "pointing game",
        "How often a point thrown into the patch with the largest gradient hits the region: the share of that patch that it covers.",
    ),
    r"auc": ("AUC", "How likely a patch in the region has a larger gradient than one outside of it. 0.5 is chance."),
    r"average_precision|ap": (
        "average precision",
        "Patches by falling gradient: how many of those passed are in the region, averaged over the region's own. By chance somewhat more "
        "than its share of the picture: see chance/ap.",
    ),
    r"entropy": ("entropy", "How scattered a map is: 0 all in one patch, 1 the same everywhere."),
    r"cam": (
        "Grad-CAM",
        "The map that weighs each channel by its mean gradient and adds up what is positive. Without that: the gradient's size.",
    ),
    r"global": (
        "global question",
        "The negative control: to describe the picture is about all of it, so maps should not favour the region.",
    ),
    r"mutual_knn.*": (
        "mutual k-NN",
        "An image and its caption each have nearest neighbours, as the encoder and as a language model see them: the share that both have "
        "in common, at the pair of layers where it is the largest.",
    ),
    r"cka": (
        "CKA",
        "Whether two sets of features hold the same likenesses between images, whatever turns or stretches them. 1: the same.",
    ),
    r"cknna": ("CKNNA", "CKA that looks at nearest neighbours alone."),
    r"cosine": ("cosine", "Of a patch's feature before and after, on the same picture. 1: the same direction."),
    r"weights": ("weight change", "How far weights are from those of the original encoder, relative to their size."),
    r"elsewhere": ("elsewhere", "The same map against the region of another item: what it is worth to look at usual places."),
    r"chance|majority|permuted": (
        "chance",
        "What would be had without seeing the picture. Scores are to be held against it, and not against 0.",
    ),
}


def objectives(used: Collection[str]) -> Iterator[tuple[str, str]]:
    """Those of the objectives that a page tells of."""
    yield from (said for name, said in OBJECTIVES.items() if name in used)


def metrics(shown: Collection[str]) -> Iterator[tuple[str, str]]:
    """Those of the metrics that a page shows."""
    parts = {part for metric in shown for part in metric.split("/")}
    yield from (said for pattern, said in METRICS.items() if any(re.fullmatch(pattern, part) for part in parts))
