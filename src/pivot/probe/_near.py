"""Classifiers that fit nothing: class means, and the vote of nearest neighbours, both by cosine.

Features are read a block of items at a time, never copied as a whole. Shapes: N items, D features, K classes, B items of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = 4096  # items at a time, on either side: 64 MB of cosines
TEMPERATURE = 0.07  # of a neighbour's vote, as in DINO's evaluation


def prototypes(x: Tensor, y: Tensor, fitted: Tensor, classes: int, asked: Tensor, rows: Tensor) -> Tensor:
    """The class whose L2-normalised mean of L2-normalised features x[fitted] is nearest to each of asked[rows]: (len(rows),)."""
    means = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=x.device)
    for some in fitted.split(BLOCK):
        means.index_add_(0, y[some], normalize(x[some].double(), dim=1))
    means = normalize(means, dim=1)
    return torch.cat([(asked[some].double() @ means.T).argmax(1) for some in rows.split(BLOCK)])


def neighbours(x: Tensor, y: Tensor, fitted: Tensor, classes: int, asked: Tensor, rows: Tensor, k: int) -> Tensor:
    """The class that the k of x[fitted] nearest to each of asked[rows] vote for, each with weight exp(cosine / TEMPERATURE)."""
    k = min(k, len(fitted))
    guesses = []
    for some in rows.split(BLOCK):
        unit = normalize(asked[some].float(), dim=1)
        near, labels = unit.new_empty(len(some), 0), y.new_empty(len(some), 0)
        for others in fitted.split(BLOCK):
            cosines = torch.cat([near, unit @ normalize(x[others].float(), dim=1).T], dim=1)
            near, at = cosines.topk(min(k, cosines.shape[1]), dim=1)
            labels = torch.cat([labels, y[others].expand(len(some), -1)], dim=1).gather(1, at)
        votes = torch.zeros(len(some), classes, dtype=torch.float64, device=x.device)
        guesses.append(votes.scatter_add_(1, labels, (near.double() / TEMPERATURE).exp()).argmax(1))
    return torch.cat(guesses)
