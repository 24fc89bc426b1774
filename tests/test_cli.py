"""The verbs: quick help, one line for what is wrong, output for people and for machines."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import pivot
from pivot import chain, cli, recipe, screen
from pivot.cli import planned
from pivot.model import MLLM
from pivot.records import BadInput, CheckFailed, Measurement
from pivot.screen import Screen
from pivot.study.statistics import differences
from pivot.work import Event

VERBS = ["demo", "run", "report", "ask", "detach", "env", "data", "probe", "bench"]


def test_help_is_quick_and_loads_neither_torch_nor_numpy() -> None:
    code = "import sys; sys.argv = ['pivot', '--help']\nfrom pivot.cli import call\ncode = call()\n"
    code += "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'rich'} & set(sys.modules); sys.exit(code or bool(heavy))"
    seconds = []
    for _ in range(3):  # the first one may have to compile
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of the processor, not of the clock: nothing here waits for anything, and the machine may be busy with other tests.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0 and done.stderr == "" and all(f"  {verb} " in done.stdout for verb in VERBS)
    assert min(seconds) < 0.3


@pytest.mark.parametrize(
    "verb",
    [
        *([name] for name in ("demo", "run", "report", "ask", "detach", "env")),
        *(["data", name] for name in ("make", "convert", "filter", "show")),
    ],
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_verb_explains_itself_and_speaks_json(verb: list[str], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call([*verb, flag]) == 0
    said = capsys.readouterr().out
    assert f"pivot {' '.join(verb)}" in said and "--json" in said


@pytest.mark.parametrize("group", [[], ["data"], ["probe"]])
def test_a_verb_left_out_is_answered_with_help(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(group) == 0
    out, err = capsys.readouterr()
    assert "Usage:" in out and "Commands:" in out and err == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demmo"], "Did you mean 'demo'?"),
        (["run"], "Missing argument"),
        (["demo", "--plam"], "--plan"),
        (["data", "shw"], "Did you mean 'show'"),
        (["ask", "base", "x.png"], "Missing argument"),
        (["data", "show", "--index", "many"], "'--index': Input should be a valid integer"),
    ],
)
def test_wrong_use_is_one_line_with_the_nearest_and_exit_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(arguments) == 2
    out, err = capsys.readouterr()
    assert says in err and "--help" in err and err.count("\n") == 1 and out == ""


def test_a_failed_check_exits_1_with_its_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: Any) -> None:
        raise CheckFailed("the tower did not move")

    monkeypatch.setattr(chain, "run", fail)
    assert cli.call(["demo"]) == 1
    assert capsys.readouterr().err == "pivot: the tower did not move\n"


def test_a_name_cannot_move_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x1b]0;title\x07\u202e\ud83d"
    for error in (CheckFailed(f"{evil} failed"), BadInput(f"{evil} not found")):
        monkeypatch.setattr(chain, "run", mock.Mock(side_effect=error))
        cli.call(["demo"])
        said = capsys.readouterr().err
        assert said.startswith(r"pivot: \x1b[2J\x1b]0;title\x07\u202e\ud83d ") and said.count("\n") == 1
    assert cli.call(["data", "doctor", str(tmp_path / f"{evil[:4]}.json")]) == 2
    assert r"\x1b[2J.json" in capsys.readouterr().err


def test_ctrl_c_promises_to_go_on_only_where_a_verb_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe, "read", mock.Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr(recipe, "load", mock.Mock(side_effect=KeyboardInterrupt))
    out = str(tmp_path / "out.json")
    for arguments, resumes in (
        (["data", "convert", "world", out], False),
        (["data", "filter", "world", out, "--rule", "under30"], False),
        (["data", "make", out], False),
        (["data", "show", "world"], False),
        (["data", "doctor", "world"], False),
        (["data", "prefer", "base", "world", out], True),
        (["bench", "run", "base", "--data", "world"], True),
        (["run", "demo"], True),
        (["demo"], True),
    ):
        assert cli.call(arguments) == 2
        said = capsys.readouterr().err
        assert "stopped by Ctrl-C" in said and said.count("\n") == 1 and (cli.KEPT in said) == resumes, arguments
        monkeypatch.setattr(sys, "argv", ["pivot", *arguments])
        assert cli.call() == 2 and capsys.readouterr().err == said


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.call(["demo"])


def test_the_demo_is_its_recipe_with_changes_and_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(chain, "run", lambda *rest: asked.append(rest))
    assert cli.call(["demo", f"out={tmp_path / 'a'}", "post.batch=16", "--only", "bench-*", "--again"]) == 0
    assert cli.call(["demo"]) == 0
    (asked_for, folder, _, *which), (_, default, *_) = asked
    assert (asked_for.name, asked_for.post.settings["batch"], folder.path, which) == ("demo", 16, tmp_path / "a", ["bench-*", True])
    assert default.path == Path("runs/demo")


def test_the_run_ends_with_a_table_of_arms_in_the_recipes_order_and_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(recipe: Any, folder: Any, *_: Any) -> None:
        for number, arm in enumerate(("dpo", "original", "sft")):
            metrics = {"tasks/word": 0.1, "domains/General": number / 8, "mean": number / 4}
            folder.write_measurement(Measurement("bench", "world", metrics, 9, arm=arm, parts={"domains/General": [], "mean": []}))
            folder.write_measurement(Measurement("probe", "linear", {"kind": 0.5, "prototype/kind": 0.4}, 9, arm=arm))
        folder.report.mkdir(parents=True)
        (folder.report / "index.html").touch()

    monkeypatch.setattr(chain, "run", run)
    assert cli.call(["demo", f"out={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith(("bench", "probe"))] == [
        ["bench", "world", "General", "mean"],
        ["probe", "linear", "kind"],
    ]
    assert [line.split() for line in lines if line.startswith(("original", "sft", "dpo"))][:3] == [
        ["original", "12.5", "25.0"],
        ["sft", "25.0", "50.0"],
        ["dpo", "0.0", "0.0"],
    ]
    assert lines[-1] == f"page: {tmp_path / 'report' / 'index.html'}"


def test_json_is_all_that_machines_see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(recipe: Any, folder: Any, tell: Callable[[Event], None], *which: Any) -> None:
        tell(Event("begin", "post"))
        tell(Event("progress", "post", {"done": 1, "total": 2, "loss": float("nan")}))
        folder.write_measurement(Measurement("probe", "linear", {"kind": 0.5}, 9, arm="dpo"))

    monkeypatch.setattr(chain, "run", run)
    assert cli.call(["demo", f"out={tmp_path}", "--json"]) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert err == "" and events[:2] == [
        {"event": "begin", "stage": "post"},
        {"event": "progress", "stage": "post", "done": 1, "total": 2, "loss": None},
    ]
    assert events[2]["event"] == "results" and events[2]["measurements"][0]["metrics"] == {"kind": 0.5}


def test_only_the_main_process_of_a_launch_speaks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(chain, "run", lambda recipe, folder, tell, *which: tell(Event("done", "post")))
    for flags in ([], ["--json"]):
        assert cli.call(["demo", f"out={tmp_path}", *flags]) == 0
        assert capsys.readouterr() == ("", "")


# ---- how progress looks


class Clock:
    """Time that goes as fast as the test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(screen.time, "monotonic", lambda: self.now)


def steps(shown: Screen, clock: Clock, first: int, last: int, seconds: float) -> None:
    shown.tell(Event("begin", "post"))
    for step in range(first, last + 1):
        clock.now += seconds
        shown.tell(Event("progress", "post", {"done": step, "total": last, "loss": 0.5}))
    shown.tell(Event("done", "post"))


def test_work_under_two_seconds_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    steps(Screen(said.append, None, json=False), Clock(monkeypatch), 1, 18, 0.1)
    assert [line.split() for line in said] == [["post", "1.8", "s"]]


def test_without_a_terminal_there_is_a_line_now_and_then_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    steps(Screen(said.append, None, json=False), Clock(monkeypatch), 1, 100, 0.5)
    assert [line.split() for line in said] == [
        ["post", f"{done}/100", "2/s,", f"{(100 - done) / 2:.1f}", "s", "left", "loss", "0.5"] for done in (20, 40, 60, 80, 100)
    ] + [["post", "50.0", "s"]]


def test_a_resumed_stage_counts_its_rate_from_where_it_went_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    steps(Screen(said.append, None, json=False), Clock(monkeypatch), 81, 100, 1.0)
    assert "1/s, 10.0 s left" in said[0]


def test_of_replies_that_earn_the_newest_reward_is_shown_and_not_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss says nothing there, and only the first update of a rollout tells what was earned."""
    said, clock = list[str](), Clock(monkeypatch)
    shown = Screen(said.append, None, json=False)
    for stage in ("post-grpo", "post-sft"):
        shown.tell(Event("begin", stage))
        for step in range(1, 21):
            clock.now += 1.0
            earned = {"reward": step / 100, "frac_reward_zero_std": 0.25} if stage == "post-grpo" and step % 4 == 1 else {}
            shown.tell(Event("progress", stage, {"done": step, "total": 20, "loss": 1e-9, **earned}))
    assert [line.partition("left")[2].split() for line in said[:2]] == [
        ["reward", "0.09", "frac_reward_zero_std", "0.25"],
        ["reward", "0.17", "frac_reward_zero_std", "0.25"],
    ]
    assert said[2].endswith("loss 1e-09"), "another stage begins with nothing"


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    drawn, said = io.StringIO(), list[str]()
    with Screen(said.append, drawn, json=False) as shown:
        steps(shown, Clock(monkeypatch), 1, 10, 1.0)
        assert shown.bar is None
    with Screen(said.append, drawn, json=False) as shown:
        clock = Clock(monkeypatch)
        for done in range(3):
            shown.work("words of [/red] \x1b[2J", done, 9)
            clock.now += 2.0
    assert r"words of [/red] \x1b[2J" in drawn.getvalue(), "neither markup nor a control sequence"
    assert "post" in drawn.getvalue() and "left" in drawn.getvalue() and len(said) == 1


@pytest.mark.parametrize(("seconds", "text"), [(0, "0.0 s"), (59.94, "59.9 s"), (60, "1:00"), (125.4, "2:05"), (3609, "1:00:09")])
def test_durations_read_like_clocks(seconds: float, text: str) -> None:
    assert screen.duration(seconds) == text


def test_tables_line_up() -> None:
    lines = screen.table(["arm", "n"], [["a", 1000], ["longer", None], ["c", 0.12345]]).splitlines()
    assert lines == ["arm         n", "------  -----", "a       1,000", "longer       ", "c       0.123"]


def test_a_metric_that_has_no_value_is_a_dash() -> None:
    found = Measurement("probe", "segment", {"recall": 0.5, "precision": math.nan}, 4, arm="a")
    ((_, rows),) = screen.scores([found])
    assert rows == [["a", "50.0", "-"]]
    ((_, rows),) = screen.compared([(found, found, differences([found], [found]))])
    assert [row[1] for row in rows] == ["+0.0", "-"]


# ---- verbs that run without weights


def test_data_show_and_make_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    source = ["--data", "world,split=test,size=3"]
    assert cli.call(["data", "make", str(tmp_path / "out"), *source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "out"), "examples": 3}
    rows = [json.loads(line) for line in (tmp_path / "out" / "data.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        picture = tmp_path / f"{index}.png"
        assert cli.call(["data", "show", source[1], "--index", str(index), "--image", str(picture), "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown == {key: value for key, value in row.items() if key not in ("images", "truth")}
        with Image.open(picture) as one, Image.open(tmp_path / "out" / row["images"][0]) as other:
            assert one.tobytes() == other.tobytes()
    assert cli.call(["data", "show", source[1]]) == 0
    assert "chosen:" in capsys.readouterr().out


def test_a_probe_has_its_knobs_on_the_command_line(
    mllm: MLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    mllm.detach().save(tmp_path / "encoder")

    def found(*options: str) -> dict[str, Any]:
        assert cli.call(["probe", "linear", str(tmp_path / "encoder"), "--data", "world,split=test,size=40", "--json", *options]) == 0
        (one,) = json.loads(capsys.readouterr().out)["measurements"]
        return one

    plain = found()
    assert plain["name"] == "linear" and plain == found("--at", "encoder", "--seed", "0", "--batch", "16")
    behind = found("--at", "projector", "--targets", "kind, colour", "--test", "0.5", "--validation", "0.2")
    assert behind["name"] == "linear-projector" and behind["n"] > plain["n"]
    assert {metric for metric in behind["metrics"] if "/" not in metric} == {"kind", "colour", "mean"}
    assert found("--seed", "1")["metrics"] != plain["metrics"]


def test_what_is_kept_is_never_written_over_by_something_else(
    mllm: MLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    mllm.detach().save(tmp_path / "encoder")
    (tmp_path / "file").write_text("mine")
    probe = ["probe", "linear", str(tmp_path / "encoder"), "--set", "targets=[kind]", "--set", "halvings=0", "--data"]
    monkeypatch.setattr(recipe, "read", lambda _source: pytest.fail("the folder comes first"))
    assert cli.call([*probe, "world,split=test,size=40", "--out", str(tmp_path / "file")]) == 2
    monkeypatch.undo()
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    out = ["--out", str(tmp_path / "run")]
    assert cli.call([*probe, "world,split=test,size=40", *out]) == 0 == cli.call([*probe, "world,split=test,size=40", "--batch", "7", *out])
    (file,) = (tmp_path / "run" / "measurements").iterdir()
    kept = file.read_bytes()
    capsys.readouterr()
    assert cli.call([*probe, "world,split=test,size=44", *out]) == 2
    shown = capsys.readouterr()
    assert "probe linear" in shown.out and f"nothing is kept: {file} is of something else" in shown.err
    assert file.read_bytes() == kept


def test_a_probe_takes_an_mllm_as_the_encoder_in_it(
    mllm: MLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    mllm.save(tmp_path / "mllm")
    mllm.detach().save(tmp_path / "encoder")
    names = [str(tmp_path / "mllm"), str(tmp_path / "encoder"), "base"]
    assert cli.call(["probe", "linear", *names, "--data", "world,split=test,size=40", "--json"]) == 0
    inside, taken_out, base = (one["metrics"] for one in json.loads(capsys.readouterr().out)["measurements"])
    assert inside == taken_out != base


def test_a_row_without_task_and_domain_is_shown_without_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.jsonl").write_text('{"id": "bare", "prompt": "?"}\n{"id": "half", "prompt": "?", "task": "word"}\n')
    for index, head in enumerate(("bare", "half  word")):
        assert cli.call(["data", "show", f"rows,{tmp_path}", "--index", str(index)]) == 0
        assert capsys.readouterr().out.splitlines()[0] == head


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["--version"]) == 0
    assert capsys.readouterr() == (f"pivot {pivot.__version__}\n", "")


def test_a_bench_keeps_what_was_answered_before(
    mllm: MLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default folder is the same for every model and every time."""
    monkeypatch.chdir(tmp_path)
    for place in ("a/b", "a_b", "a/c"):  # the first two are called alike
        next(mllm.parts()["projector"].parameters()).data.add_(1)
        mllm.save(Path(place))
    ask = ["--data", "world,split=test,size=4", "--json"]
    assert cli.call(["bench", "run", "a/b", *ask]) == 0
    answers = tmp_path / "runs/bench/answers/a_b-seed-0-world.jsonl"
    said, before = capsys.readouterr().out, answers.read_bytes()
    assert cli.call(["bench", "run", "a/b", *ask]) == 0
    assert capsys.readouterr().out == said
    for other in (["a_b", *ask], ["a/b", "--data", "world,split=test,size=6"]):
        assert cli.call(["bench", "run", *other]) == 2
        assert "give another --arm or --out" in capsys.readouterr().err
    assert (
        cli.call(["bench", "run", "a_b", *ask, "--arm", "third"]) == cli.call(["bench", "run", "../" + tmp_path.name + "/a/c", *ask]) == 0
    )
    assert answers.read_bytes() == before
    assert len(list((tmp_path / "runs/bench/measurements").iterdir())) == 3


def test_env_names_versions(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert cli.call(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["torch"] == torch.__version__


@pytest.mark.parametrize("name", [name for name in recipe.shipped() if not name.startswith("paper/")])  # these: test_paper_stages.py
@pytest.mark.usefixtures("no_memory", "few_read")
def test_every_shipped_recipe_has_a_plan(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["init=tiny", "build=null", "pairs=world"] if name == "pivot" else []  # what that one leaves to its user
    assert cli.call(["run", name, *given, "--plan", "--json", f"out={tmp_path / 'run'}"]) == 0
    rows = json.loads(capsys.readouterr().out)["stages"]
    assert all(row["flops"] > 0 for row in rows if row["stage"].startswith(("align", "instruct", "post")))


@pytest.mark.usefixtures("no_memory", "few_read")
def test_a_bench_without_data_is_planned_with_its_own_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["run", "demo", "bench={world: {}}", "--plan", "--json", f"out={tmp_path / 'run'}", "init=tiny"]) == 0
    rows = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    assert rows["bench-world-dpo/seed-0"]["examples"] == 640


@pytest.mark.usefixtures("few_read")
def test_plan_runs_nothing(tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert cli.call(["demo", "--plan", "--json", f"out={out}", "init=tiny"]) == 0
    rows = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    assert not out.exists()
    assert rows["post-dpo/seed-0"]["steps"] == 125 and rows["post-dpo/seed-0"]["examples"] == 2000
    assert rows["post-dpo/seed-0"]["flops"] > rows["post-sft/seed-0"]["flops"] > 0
    assert rows["bench-world-dpo/seed-0"]["examples"] == 600 and rows["report"]["state"] == "to do"
    request.getfixturevalue("no_memory")
    assert cli.call(["demo", "--plan", f"out={out}", "init=tiny"]) == 0
    assert "post-dpo/seed-0" in capsys.readouterr().out and not out.exists()


@pytest.mark.usefixtures("few_read", "no_memory")
def test_a_plan_says_once_what_is_so_of_several_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["demo", "--plan", f"out={tmp_path / 'run'}", "init=tiny", "seeds=[0,3]"]) == 0
    told = capsys.readouterr().out
    assert told.count("post-dpo/seed-{0,3} ") == 2 and "post-dpo/seed-0" not in told  # in both tables
    assert "figures in a row of several seeds are those of one" in told


def test_seeds_that_differ_keep_rows_of_their_own() -> None:
    states = {"post-a/seed-0": "finished", "post-a/seed-1": "to do", "post-a/seed-2": "to do", "post-b/seed-1": "to do", "report": "to do"}
    rows = [[stage, state] for stage, state in states.items()]
    named = [row[0] for row in planned.repeated(rows)]
    assert named == ["post-a/seed-0", "post-a/seed-{1,2}", "post-b/seed-1", "report"]
