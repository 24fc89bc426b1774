"""Pictures of other rows: the control of whether a gain comes from seeing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import published
import pytest

from pivot import recipe
from pivot.data.strangers import Strangers, read
from pivot.data.world import read as world
from pivot.oneline import described
from pivot.pictures import fingerprint, picture
from pivot.records import BadInput, Example

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


def sharing(folder: Path) -> dict[str, Sequence[Example]]:
    """Sixty rows over four pictures, as most data has them: by name, as copies under names of their own, inside parquet, as bytes."""
    rows = [{"id": str(n), "conversations": published.asked(f"<image>\nWhat {n}?", "A cup.")} for n in range(60)]
    names = [published.put(folder, f"{n}.png", 1 + n % 4) for n in range(60)]
    files = {"names": [names[n % 4] for n in range(60)], "copies": names}
    found: dict[str, Sequence[Example]] = {}
    for kind, shown in files.items():
        file = folder / f"{kind}.json"
        file.write_text(json.dumps([{**row, "image": name} for row, name in zip(rows, shown, strict=True)]))
        found[kind] = recipe.read(f"llava,{file}")
    pairs = [{"question": f"What {n}?", "chosen": "A.", "rejected": "B.", "idx": n, "image": published.hub(1 + n % 4)} for n in range(60)]
    kinds = {**dict.fromkeys(("question", "chosen", "rejected"), published.pa.string()), "idx": published.pa.int64()}
    found["parquet"] = recipe.read(f"rlaif,{published.parquet(folder / 'a.parquet', pairs, {**kinds, 'image': published.HUB_IMAGE})}")
    found["bytes"] = [Example(str(n), ((folder / names[n]).read_bytes(),), "What?") for n in range(60)]
    return found


@pytest.mark.parametrize("kind", ["names", "copies", "parquet", "bytes"])
def test_a_picture_that_many_rows_share_is_no_stranger_to_any_of_them(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    own = sharing(tmp_path)[kind]
    others = Strangers(own, 0)
    assert not [row.id for row, other in zip(own, others, strict=True) if fingerprint(row.images) == fingerprint(other.images)]


def test_of_several_pictures_none_is_a_rows_own() -> None:
    a, b, c, d = (bytes([n]) for n in range(4))
    own = [Example(str(n), (a, b) if n % 3 else (c, d) if n % 2 else (b, c), "") for n in range(30)]
    others = Strangers([row for row in own if row.images != (b, c)], 0)
    assert all({*row.images}.isdisjoint(other.images) for row, other in zip(others.rows, others, strict=True))
    with pytest.raises(BadInput, match=r"strangers: row 0: .* has 2 pictures of its own; give more rows with other pictures"):
        Strangers([Example(str(n), (a, (b, c)[n]), "") for n in range(2)], 0)[0]


def test_what_is_wrong_is_said_of_strangers_and_one_line_names_them() -> None:
    assert read(**{k: v for k, v in described("strangers,of={read: world, split: test, size: 40}").items() if k != "read"}) == read(of=OF)
    for of, said in (
        (5, "strangers: of must be one line that names data, or a mapping with 'read'"),
        ("world,sizes=3", "strangers: of: unknown key 'sizes'"),
        ({"read": "world", "weight": -1}, "strangers: weight of 'of' is -1"),
    ):
        with pytest.raises(BadInput) as caught:
            read(of=of)
        assert str(caught.value).startswith(said)
