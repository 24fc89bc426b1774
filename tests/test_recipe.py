"""Recipes: what is written is what is run, and what is wrong is said in one line with its place."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from pivot import lookup, plain, recipe
from pivot.knobs import Wrong, fill
from pivot.records import BadInput
from pivot.runfolder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

PLAIN = """
name: small
init: tiny
data:
  pairs: {read: world, split: train, size: 8}
  heldout: {read: world, split: test, size: 6}
arms:
  original: {}
  dpo: {objective: {name: dpo, beta: 0.2}, rates: {tower: 1e-5, projector: 1e-5, llm: 0}}
post: {batch: 4}
probes: {linear: {data: heldout}}
bench: {world: {data: heldout}}
"""


@pytest.fixture
def small(tmp_path: Path) -> str:
    file = tmp_path / "small.yaml"
    file.write_text(PLAIN)
    return str(file)


def wrong(source: str, *changes: str) -> str:
    with pytest.raises(BadInput) as caught:
        recipe.load(source, changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name in recipe.shipped() if not name.startswith("paper/")])  # these: test_paper_stages.py
def test_every_shipped_recipe_is_valid(name: str) -> None:
    given = ["encoder=hf:a/b", "llm=hf:c/d", "pairs=world"] if name == "pivot" else []
    assert recipe.load(name, given).name


def test_what_a_recipe_leaves_open_is_said_with_its_own_command() -> None:
    assert "leaves encoder, llm, pairs to you: add encoder=... llm=... pairs=..., as in: pivot run pivot encoder=hf:" in wrong("pivot")
    assert "leaves llm to you" in wrong("pivot", "encoder=hf:a/b", "pairs=world")
    assert "leaves pairs to you" in wrong("pivot", "init=base", "align=null")
    bare = recipe.load("pivot", ["init=base", "build=null", "pairs=world,size=9"])
    assert bare.init == "base" and bare.data["pairs"]["size"] == 9 and bare.data["captions"] == bare.data["chats"] == bare.data["pairs"]


def test_data_is_named_by_one_line_by_a_path_or_by_another_name(small: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert "no reader knows what is there" in wrong(small, f"pairs={tmp_path / 'mine'}")
    (tmp_path / "mine" / "data.jsonl").touch()
    found = recipe.load(small, [f"pairs={tmp_path / 'mine'}", "heldout=world,size=5,split=test"]).data
    assert found["pairs"]["read"] == "rows" and found["pairs"]["path"] == str(tmp_path / "mine")
    assert (found["heldout"]["size"], found["heldout"]["split"]) == (5, "test")
    assert recipe.load(small, ["pairs={read: world, size: 3}", "heldout=pairs"]).data["heldout"]["size"] == 3
    assert "no such folder or file" in wrong(small, f"pairs={tmp_path / 'nowhere'}")
    for path in ("nope.json", "nope.json,size=5", "chats/nope,size=5", "nope.JSONL", "mixture.yaml"):
        assert f"data '{path}': no such folder or file; check the path" in wrong(small, f"pairs={path}")
    assert "my_lab.pairs" in (own := wrong(small, "pairs=my_lab.pairs")) and "no such folder or file" not in own
    assert "the same rows as" in wrong(small, "pairs=heldout", "heldout=pairs")
    assert "did you mean 'world'" in wrong(small, "pairs=wolrd,size=3")


def test_a_data_set_can_lie_in_a_folder_of_its_own_name(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "the same rows as" in wrong(small, "pairs=pairs")
    Path("pairs").mkdir()
    Path("pairs", "data.jsonl").touch()
    found = recipe.load(small, ["pairs=pairs", "heldout=pairs"]).data
    assert found["pairs"] == found["heldout"] and (found["pairs"]["read"], found["pairs"]["path"]) == ("rows", "pairs")


def test_text_that_names_no_data_is_said_to_be_none_of_what_it_could_be(small: str) -> None:
    said = wrong(small, "pairs=nofolder")
    assert "'nofolder' is neither a folder or file nor a reader or a data set; readers: " in said
    assert "rows" in said and "world" in said and "data sets: " in said and "heldout" in said
    assert "did you mean 'heldout'?" in wrong(small, "pairs=heldot")
    with pytest.raises(BadInput, match=r"'nofolder' is neither a folder or file nor a reader; readers: .*world"):
        recipe.read("nofolder")


def test_how_parts_are_joined_is_no_question_of_a_joined_model(small: str) -> None:
    assert "init 'tiny' is joined already" in wrong(small, "build.layer=-1")
    assert "build: unknown key 'layr'; did you mean 'layer'?" in wrong(small, "build.layr=-1")
    built = recipe.load(small, ["init=null", "encoder=a", "llm=b", "build.layer=-1", "build.pixels=64"])
    assert built.build and (built.build.layer, built.build.pixels, built.build.template) == (-1, 64, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.e3", 1000.0),
        (".5", 0.5),
        ("-2", -2),
        ("07", 7),
        ("inf", "inf"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("[0, 1]", [0, 1]),
        ("null", None),
        ("1e", "1e"),
        ("hf:a/b", "hf:a/b"),
    ],
)
def test_scalars_are_read_as_people_mean_them(text: str, value: Any) -> None:
    read = plain.parse(text, "here")
    assert read == value and type(read) is type(value)


def test_one_probe_or_bench_can_be_used_under_several_names(small: str, tmp_path: Path) -> None:
    twice = recipe.load(small, ["probes.behind={use: linear, at: projector, data: heldout}", "bench.again={use: world, data: pairs}"])
    assert {name: (use["use"], use["at"]) for name, use in twice.probes.items()} == {
        "linear": ("linear", "encoder"),
        "behind": ("linear", "projector"),
    }
    assert {name: (use["use"], use["data"]) for name, use in twice.bench.items()} == {
        "world": ("world", "heldout"),
        "again": ("world", "pairs"),
    }
    recipe.freeze(twice, RunFolder(tmp_path / "run"))
    assert recipe.load(str(tmp_path / "run" / "recipe.yaml")) == twice


def test_overrides_reach_any_depth_and_leave_the_rest(small: str) -> None:
    before = recipe.load(small)
    after = recipe.load(small, ["arms.dpo.objective.beta=5e-1", "post.batch=2", "seeds=[3, 4]"])
    assert after.arms["dpo"].objective == {**(before.arms["dpo"].objective or {}), "beta": 0.5}
    assert plain.differences(before.plain(), after.plain()) == ["seeds", "arms.dpo.objective.beta", "post.batch"]


def test_an_override_can_add_an_arm(small: str) -> None:
    added = recipe.load(small, ["arms.more={objective: {name: sft}, rates: {tower: 1, projector: 0, llm: 0}}"])
    assert list(added.arms) == ["original", "dpo", "more"]


def test_defaults_are_filled_in_and_a_frozen_recipe_is_the_same_recipe(small: str, tmp_path: Path) -> None:
    loaded, folder = recipe.load(small), RunFolder(tmp_path / "run")
    recipe.freeze(loaded, folder)
    frozen = yaml.safe_load(folder.recipe_file.read_text())
    assert frozen["data"]["pairs"]["pixels"] == 48 and frozen["seeds"] == [0] and "epochs" in frozen["post"]
    assert recipe.load(str(folder.recipe_file)) == loaded
    recipe.freeze(loaded, folder)


def test_a_run_folder_refuses_another_recipe_and_names_what_changed(small: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    recipe.freeze(recipe.load(small), folder)
    folder.mark("report")
    with pytest.raises(BadInput, match=r"changed: data\.pairs\.size, post\.batch\); give this one another out="):
        recipe.freeze(recipe.load(small, ["post.batch=2", "data.pairs.size=9", "post.micro=3"]), folder)


def test_a_run_folder_takes_more_of_what_leaves_its_work_as_it_was(small: str, tmp_path: Path) -> None:
    more = ["probes.again={use: linear, data: heldout}", "data.other={read: world, size: 4}", "seeds=[0, 5]", "arms.late={}"]
    folder, longer = RunFolder(tmp_path / "run"), recipe.load(small, more)
    recipe.freeze(recipe.load(small), folder)
    folder.mark("report")
    recipe.freeze(longer, folder)
    assert recipe.load(str(folder.recipe_file)) == longer
    for change, key in (("seeds=[5, 0]", "seeds"), ("probes.again.at=projector", r"probes\.again\.at"), ("post.batch=2", r"post\.batch")):
        with pytest.raises(BadInput, match=rf"changed: {key}\)"):
            recipe.freeze(recipe.load(small, [*more, change]), folder)
    with pytest.raises(BadInput, match="changed: "):  # nothing is taken away
        recipe.freeze(recipe.load(small), folder)


def test_a_folder_where_nothing_was_done_takes_another_recipe(small: str, tmp_path: Path) -> None:
    folder, other = RunFolder(tmp_path / "run"), recipe.load(small, ["post.batch=2"])
    recipe.freeze(recipe.load(small), folder)
    recipe.freeze(other, folder)
    assert recipe.load(str(folder.recipe_file)) == other


def test_what_changes_memory_and_reports_alone_may_change_on_a_rerun(small: str, tmp_path: Path) -> None:
    folder, other = RunFolder(tmp_path / "run"), recipe.load(small, ["post.micro=3", "post.save_every=7", "post.report_to=[trackio]"])
    recipe.freeze(recipe.load(small), folder)
    folder.mark("report")
    recipe.freeze(other, folder)
    assert recipe.load(str(folder.recipe_file)) == other


def test_which_rates_were_tried_may_be_told_afterwards_but_not_which_was_chosen(small: str, tmp_path: Path) -> None:
    folder, told = RunFolder(tmp_path / "run"), recipe.load(small, ["arms.dpo.tried=[1e-6, 1e-5]"])
    recipe.freeze(recipe.load(small), folder)
    folder.mark("report")
    recipe.freeze(told, folder)
    assert recipe.load(str(folder.recipe_file)).arms["dpo"].tried == (1e-6, 1e-5)
    with pytest.raises(BadInput, match=r"changed: arms\.dpo\.rates\.tower"):
        recipe.freeze(recipe.load(small, ["arms.dpo.tried=[1e-6, 1e-5]", "arms.dpo.rates.tower=1e-6"]), folder)


def test_any_objective_of_a_shipped_recipe_is_swapped_by_one_word() -> None:
    """Knobs that mean the same in both stay, the others go; what has no default must be given beside it, in whatever order."""
    tried = 0
    for name in recipe.shipped():
        plain = yaml.safe_load(recipe.find(name).read_text())
        blank = [
            f"data.{data}=world"
            for data, rows in (plain.get("data") or {}).items()
            if rows is None or (isinstance(rows, dict) and rows.get("of", 0) is None)
        ]
        blank = [line.replace("=world", ".of=world") if plain["data"][line[5:-6]] else line for line in blank]
        blank += [f"{part}=tiny" for part in ("init", "encoder", "llm") if part in plain and plain[part] is None]
        for arm, choice in (plain.get("arms") or {}).items():
            before = (choice or {}).get("objective")
            for objective in lookup.names("objective") if before else ():
                place = f"arms.{arm}"
                needs = [f"{place}.objective.reward=answer"] if objective in ("grpo", "ppo") else []
                needs += [f"{place}.objective.reward_model=x"] if needs and "reward" in before else []
                given = {"name", "reward", "reward_model"}
                if objective == "grpo" and before.get("k") == 1:  # one reply has no group
                    needs, given = [*needs, f"{place}.objective.k=4"], given | {"k"}
                form = ".name" if tried % 2 else ""
                changes = [*blank, f"{place}.objective{form}={objective}", *needs]
                now = recipe.load(name, changes).arms[arm].objective
                assert now is not None and now["name"] == objective
                same = ("beta",) if "beta" in now else ("k", "temperature", "top_p", "max_new", "rollout", "passes", "kl")
                stays = {knob: before[knob] for knob in same if knob in before and knob in now and knob not in given}
                assert {knob: now[knob] for knob in stays} == stays
                tried += 1
    assert tried > 60
    discounted = recipe.load("demo", ["arms.dpo.objective.gamma=0.3", "arms.dpo.objective=ppo", "arms.dpo.objective.reward=answer"])
    assert discounted.arms["dpo"].objective is not None and discounted.arms["dpo"].objective["gamma"] == 0.3  # meant for ppo
    weighed = recipe.load(
        "paper/stages/post-dpo", ["init=tiny", "data.pairs=world", "arms.dpo.objective=ppo", "arms.dpo.objective.reward=answer"]
    )
    assert weighed.arms["dpo"].objective is not None and weighed.arms["dpo"].objective["gamma"] == 1  # dpo's is another thing
    swapped = recipe.load("demo", ["arms.dpo.objective.reward=answer", "arms.dpo.objective=grpo", "arms.dpo.objective.k=4"])
    assert swapped.arms["dpo"].objective is not None and swapped.arms["dpo"].objective["k"] == 4


@pytest.mark.parametrize(
    ("change", "place", "advice"),
    [
        ("post.bach=4", "post: unknown key 'bach'", "did you mean 'batch'?"),
        ("sedes=[1]", "unknown key 'sedes'", "did you mean 'seeds'?"),
        ("data.pairs.sice=4", "data.pairs: unknown key 'sice'", "did you mean 'size'?"),
        ("data.pairs.read=wurld", "data.pairs: no data named 'wurld'", "did you mean 'world'?"),
        ("arms.dpo.objective.betta=1", "arms.dpo.objective: unknown key 'betta'", "did you mean 'beta'?"),
        ("arms.dpo.objective.name=dpq", "arms.dpo.objective: no objective named 'dpq'", "did you mean 'dpo'?"),
        ("arms.dpo.objective=dpq", "arms.dpo.objective: no objective named 'dpq'", "did you mean 'dpo'?"),
        ("arms.dpo.objective=3", "arms.dpo.objective: must be a name or a mapping with 'name'", "dpo"),
        ("arms.dpo.objective=grpo", "arms.dpo.objective.reward: is missing", "give it"),
        ("arms.new.objective=dpo", "arms.new.rates: is missing", "give both"),
        ("arms.dpo.rates.towr=1", "arms.dpo.rates: unknown key 'towr'", "did you mean 'tower'?"),
        ("arms.dpo.rates.tower=fast", "arms.dpo.rates.tower", "not 'fast'"),
        ("arms.dpo.rates.tower=-1", "arms.dpo.rates.tower", "greater than or equal to 0"),
        ("arms.dpo.rates={tower: 0, projector: 0, llm: 0}", "arms.dpo.rates", "give a part a learning rate"),
        ("arms.dpo.rates=null", "arms.dpo.rates: is missing", "give both objective and rates"),
        ("arms.dpo.tried=[2e-5, 3e-5]", "arms.dpo.tried: holds none of the arm's rates", "the chosen one among them"),
        ("arms.dpo.tried=[]", "arms.dpo.tried", "at least 1"),
        ("arms.dpo.tried=[1e-5, -1]", "arms.dpo.tried.1", "greater than 0"),
        ("arms.original.tried=[1e-5]", "arms.original.tried: holds none of the arm's rates", "list all"),
        ("arms.original={objective: {name: sft}, rates: {tower: 1, projector: 0, llm: 0}}", "arms.original", "another name"),
        ("post.batch=many", "post.batch", "not 'many'"),
        ("post.data=pears", "post.data: no data named 'pears'", "did you mean 'pairs'?"),
        ("post=null", "post: is missing", "settings"),
        ("probes.linear.data=held", "probes.linear.data: no data named 'held'", "heldout"),
        ("probes.linaer.data=heldout", "probes: no probe named 'linaer'", "did you mean 'linear'?"),
        ("probes.linaer.data=heldout", "probes: no probe named 'linaer'", "needs use: MODULE"),
        ("probes.mine={use: linaer, data: heldout}", "probes.mine.use: no probe named 'linaer'", "did you mean 'linear'?"),
        ("probes.mine={use: 3}", "probes.mine.use: must be one of: align, change, gradcam, linear, segment", "not 3"),
        ("probes.mine={use: linear, at: tower, data: heldout}", "probes.mine.at", "not 'tower'"),
        ("probes.mine={use: linear, data: held}", "probes.mine.data: no data named 'held'", "heldout"),
        ("probes={a/b: {use: linear, data: heldout}}", "probes: 'a/b' is no name", "letters"),
        ("bench.world.dta=heldout", "bench.world: unknown key 'dta'", "did you mean 'data'?"),
        ("probes.linear.batch=0", "probes.linear.batch", "greater than or equal to 1"),
        ("probes.linear.test=5", "probes.linear.test", "less than 1"),
        ("probes.linear.validation=0", "probes.linear.validation", "greater than 0"),
        ("probes.linear.targets=[]", "probes.linear.targets", "at least 1"),
        ("probes.linear.lowest=.nan", "probes.linear.lowest", "not nan"),
        ("probes.linear={data: heldout, lowest: 3, highest: 2}", "probes.linear: lowest 3 is above highest 2", "swap them"),
        ("probes.linear={data: heldout, test: 0.6, validation: 0.5}", "probes.linear: validation 0.5 and test 0.6", "below 1"),
        ("probes.linear={}", "probes.linear.data: is missing", "pairs, heldout"),
        ("arms.dpo.objective.beta=.inf", "arms.dpo.objective.beta", "finite"),
        ("arms.dpo.objective.gamma=1e400", "arms.dpo.objective.gamma", "finite"),
        ("arms.dpo.objective.name=..", "arms.dpo.objective: no objective named '..'", "known: dpo, "),
        ("arms.dpo.objective.name=a..b", "no objective named 'a..b'", "known: "),
        ("arms.dpo.objective.name=_contract", "pivot.objective._contract has no 'Objective'", "must export"),
        ("post.weight_decay=.inf", "post.weight_decay", "finite"),
        ("post.spike=.nan", "post.spike", "not nan"),
        ("seeds=[]", "seeds", "at least 1"),
        ("seeds=[1, 1]", "seeds: must differ", "[1, 1]"),
        ("name=a/b", "name", "not 'a/b'"),
        ("init=null", "give either init", "encoder and llm"),
        ("encoder=hf:x/y", "give either init", "encoder and llm"),
        ("arms=[1]", "arms", "dictionary"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_what_to_do(small: str, change: str, place: str, advice: str) -> None:
    said = wrong(small, change)
    assert place in said and advice in said and small in said


def test_overrides_that_are_none_are_refused(small: str) -> None:
    assert "write key.sub=value" in wrong(small, "post.batch")
    assert "write key.sub=value" in wrong(small, "post..batch=1")
    assert "name is 'small' and holds no keys" in wrong(small, "name.sub=1")
    assert "not YAML" in wrong(small, "seeds=[1")


def test_recipes_are_found_by_name_or_path(tmp_path: Path) -> None:
    assert "demo" in recipe.shipped()
    assert "did you mean 'demo'?" in wrong("dmo")
    assert "recipe not found" in wrong(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [("name: a\nname: b", "key 'name' is given twice"), ("name: [", "not YAML"), ("- a", "holds no keys"), ("", "holds no keys")],
)
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    found = wrong(str(file))
    assert said in found and str(file) in found


@pytest.mark.parametrize("start", [b"\x89PNG\r\n\x1a\n", "name: caf\u00e9".encode("latin-1"), b"\xff\xfe\x00"])
def test_a_file_that_is_no_text_is_refused_by_name(tmp_path: Path, start: bytes) -> None:
    file = tmp_path / "bytes.yaml"
    file.write_bytes(start)
    assert f"{file} is no text in UTF-8 (byte " in wrong(str(file))


def test_a_bench_may_be_asked_its_own_items(small: str, tmp_path: Path) -> None:
    own = recipe.load(small, ["bench={world: {}}"])
    assert own.bench["world"]["data"] is None
    recipe.freeze(own, RunFolder(tmp_path / "run"))
    assert recipe.load(str(tmp_path / "run" / "recipe.yaml")) == own


def test_checking_a_recipe_loads_no_torch() -> None:
    code = (
        "import sys\nfrom pivot import recipe\nrecipe.load('demo')\nsys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_folder_can_be_named_as_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a number, as YAML's null, below the home folder; with its key or, where the reader needs a path, without it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("2024", "007", "1e5", "true", "[x]"):
        Path(name).mkdir()
        Path(name, "data.jsonl").write_text(f'{{"id": "{name}", "prompt": "?"}}\n')
        for source in (f"rows,path={name}", f"rows,{name}", f"rows,~/{name}", f"rows,path=~/{name},size=1", f"rows,path='{name}'"):
            assert recipe.read(source)[0].id == name
    for source, odd in {"rows,2024,007": "007", "world,test": "test", "rows,=3": "=3", "rows,": ""}.items():
        with pytest.raises(BadInput, match=rf"^data '{source}': '{odd}' is no KEY=VALUE; write READER,KEY=VALUE,\.\.\."):
            recipe.read(source)


def test_no_tasks_are_not_all_tasks(small: str) -> None:
    with pytest.raises(BadInput, match="tasks names none"):
        recipe.load(small, ["data.pairs.tasks=[]"]).examples("pairs")


def test_data_can_be_named_in_one_line() -> None:
    assert len(recipe.read("world,split=test,size=4")) == 4
    for tasks in ("word", "[word]", "[word,number]", "[word, number]"):
        found = {example.task for example in recipe.read(f"world,tasks={tasks},size=4")}
        assert found == ({"word", "number"} if "number" in tasks else {"word"})
    for source, said in {"world,size=many": "size", "wurld": "did you mean 'world'?", "world,size": "KEY=VALUE"}.items():
        with pytest.raises(BadInput, match=said):
            recipe.read(source)


def test_data_without_examples_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ModuleType("reader_of_nothing")
    reader.read = lambda: ()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reader_of_nothing.here", reader)
    with pytest.raises(BadInput, match=r"reader_of_nothing\.here' has no examples; check"):
        recipe.read("reader_of_nothing.here")


# ---- knobs


@dataclass(frozen=True)
class Knobs:
    beta: Annotated[float, Field(gt=0)] = 0.1
    kind: Literal["a", "b"] = "a"
    only_checked: Tensor | None = None


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    beta: float = 0.1


def function(path: str, *, beta: float = 0.1) -> None: ...


@pytest.mark.parametrize("what", [Knobs, Model])
def test_defaults_and_types_come_from_the_declaration(what: Any) -> None:
    assert fill(what, {"beta": 1})["beta"] == 1.0
    assert fill(what, {})["beta"] == 0.1
    for given, place in [({"beta": "x"}, ("beta",)), ({"bta": 1}, ())]:
        with pytest.raises(Wrong) as caught:
            fill(what, given)
        assert caught.value.place == place


def test_an_annotation_that_only_type_checkers_see_leaves_the_others_checked() -> None:
    assert fill(Knobs, {"only_checked": 3}) == {"beta": 0.1, "kind": "a", "only_checked": 3}
    for given in ({"beta": 0}, {"kind": "c"}):
        with pytest.raises(Wrong):
            fill(Knobs, given)


def test_a_functions_required_argument_is_asked_for() -> None:
    assert fill(function, {"path": "x"}) == {"path": "x", "beta": 0.1}
    with pytest.raises(Wrong, match="is missing; give it"):
        fill(function, {})


def test_a_callers_own_keys_come_first_and_may_be_required() -> None:
    assert fill(Model, {"data": "x"}, own={"data": ..., "more": None}) == {"data": "x", "more": None, "beta": 0.1}
    with pytest.raises(Wrong, match="is missing"):
        fill(Model, {}, own={"data": ...})
