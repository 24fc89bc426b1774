"""Pictures of other rows: the control of whether a gain comes from seeing."""

from __future__ import annotations

import pytest

from pivot.data.strangers import read
from pivot.data.world import read as world
from pivot.pictures import picture
from pivot.records import BadInput

OF = "world,split=test,size=40"


def test_no_row_keeps_its_picture_and_each_picture_is_shown_once() -> None:
    own, others = world(split="test", size=40), read(of=OF)
    before, after = ([picture(rows[n].images[0]).tobytes() for n in range(40)] for rows in (own, others))
    assert sorted(before) == sorted(after)
    assert all(a != b for a, b in zip(before, after, strict=True))
    for n in range(40):
        assert (own[n].id, own[n].prompt, own[n].answer) == (others[n].id, others[n].prompt, others[n].answer)
        assert others[n].truth is None  # it would be of the picture that went


def test_the_seed_decides_whose_picture_it_is() -> None:
    a, b, again = read(of=OF), read(of=OF, seed=1), read(of=OF)
    looks = [[picture(rows[n].images[0]).tobytes() for n in range(40)] for rows in (a, b, again)]
    assert looks[0] == looks[2] != looks[1]
    assert a.fingerprint() == again.fingerprint() != b.fingerprint()


def test_one_row_has_no_stranger() -> None:
    with pytest.raises(BadInput, match="give more rows"):
        read(of="world,size=1")
