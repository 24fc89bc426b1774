"""The papers' other post-training methods as recipes: every file says what PROTOCOLS says, and trains on stand-ins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import published
import pytest
import torch
import yaml

from pivot import cli, recipe
from pivot.files import read_json, read_jsonl
from pivot.model import MLLM
from pivot.model.critic import save_head
from pivot.objective.grpo import Objective as Grpo
from pivot.records import BadInput
from pivot.train import Rates, Settings
from pivot.train.setup import build

HOME = "paper/post-training/"
FILES = [name for name in recipe.shipped() if name.startswith(HOME)]

COMMON = {"weight_decay": 0.0, "clip": 1.0, "precision": "bf16", "checkpointing": True, "lora": None}
GRPO = {"name": "grpo", "clip_low": 0.2, "clip_high": 0.2, "reduce": "sequence", "scale": True, "passes": 1, "top_p": 1.0}
MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# PROTOCOLS 2.8 and 3.3 (mpo), 3.4 (VLM-R1), 7.3 and 7.4 (VLAA; 10 no. 15 for what is ours), 3.5 (LLaVA-RLHF).
TABLE: dict[str, dict[str, Any]] = {
    "mpo": {
        "objective": {"name": "mpo", "beta": 0.1, "preference": 0.8, "quality": 0.2, "generation": 1.0},
        "rates": (1e-6,) * 3,
        "post": {"batch": 256, "epochs": 3, "schedule": "linear", "warmup": 0.1, "limit": 2048, "too_long": "cut", "label_mask": "clean"},
    },
    "grpo-vlm-r1": {
        "objective": {**GRPO, "k": 8, "temperature": 1.0, "max_new": 2048, "rollout": 1, "kl": 0.04, "kl_target": None},
        "rates": (1e-6,) * 3,
        "post": {"batch": 8 * 2 * 8 // 8, "epochs": 2, "schedule": "linear", "warmup": 0.0},
    },
    "grpo-vlaa": {
        "objective": {**GRPO, "k": 4, "temperature": 0.8, "rollout": 512 * 4 // 256, "kl": 1e-3, "kl_target": 5e-4},
        "rates": (1e-6,) * 3,
        "post": {"batch": 256 // 4, "epochs": 1, "schedule": "cosine", "warmup": 0.03},
    },
    "ppo-llava-rlhf": {
        "objective": {
            **{
                "name": "ppo",
                "k": 1,
                "temperature": 1.0,
                "max_new": 896,
                "rollout": 512 // 256,
                "passes": 2,
                "kl_floor": True,
                "whiten": True,
            },
            **{"clip": 0.2, "value_clip": 0.2, "value": 0.1, "gamma": 1.0, "lam": 1.0, "critic": "separate", "critic_rate": 3e-5},
            "kl": 10 * 0.1,
        },
        "rates": (0, 0, 3e-5),
        "post": {"batch": 256, "epochs": 4, "schedule": "cosine", "warmup": 0.0022, "lora": {"rank": 64, "alpha": 16.0, "targets": MAPS}},
    },
}
JUDGED = {"grpo-vlaa": ("reward_model",), "ppo-llava-rlhf": ("reward_model", "critic_from")}  # knobs that the user fills


def written(name: str) -> dict[str, Any]:
    return yaml.safe_load((recipe.SHIPPED / f"{name}.yaml").read_text())


def arm_of(name: str) -> str:
    (arm,) = written(name)["arms"]
    return str(arm)


def changes(name: str, rows: str, judge: Path | str = "MODEL", init: str = "tiny") -> list[str]:
    """What fills a file's gaps with stand-ins."""
    data = [f"data.{key}.of={rows}" if spec else f"{key}={rows}" for key, spec in written(name)["data"].items()]
    return [f"init={init}", *data, *(f"arms.{arm_of(name)}.objective.{knob}={judge}" for knob in JUDGED.get(name.removeprefix(HOME), ()))]


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_the_protocol_says(name: str) -> None:
    wanted, told = TABLE[name.removeprefix(HOME)], recipe.load(name, changes(name, "world,size=8"))
    arm = told.arms[arm_of(name)]
    assert arm.objective and arm.rates and told.post and told.seeds == (42,)
    assert {key: arm.objective[key] for key in wanted["objective"]} == wanted["objective"]
    assert (arm.rates.tower, arm.rates.projector, arm.rates.llm) == wanted["rates"]
    said = json.loads(json.dumps(told.plain()["post"] | {"lora": told.plain()["post"].get("lora")}))
    post = {**COMMON, **wanted["post"]}
    assert {key: said[key] for key in post} == post


def test_rewards_are_the_protocols() -> None:
    rewards = {name.removeprefix(HOME): written(name)["arms"][arm_of(name)]["objective"].get("reward") for name in FILES}
    assert rewards["grpo-vlm-r1"]["kinds"]["box"] == {"name": "iou", "answer_in": "pixels", "several": "first", "inclusive": True}
    assert rewards["grpo-vlm-r1"]["terms"] == {"format": {"name": "format", "holds": "box"}}
    kinds = {kind: spec if isinstance(spec, str) else spec["name"] for kind, spec in rewards["grpo-vlaa"]["kinds"].items()}
    assert kinds == {"number": "digit", "choice": "choice", "maths": "maths", "box": "iou", "open": "open"}
    assert rewards["grpo-vlaa"]["gate"] and rewards["grpo-vlaa"]["kinds"]["open"]["beta"] == 1 and "terms" not in rewards["grpo-vlaa"]
    weights = {term["name"]: term["weight"] for term in rewards["ppo-llava-rlhf"]["terms"].values()}
    assert (weights, rewards["ppo-llava-rlhf"]["weight"]) == ({"bonus": 20, "length": -100, "finished": 80}, 10)


def test_every_file_is_in_the_table_and_no_two_write_into_one_folder() -> None:
    assert {name.removeprefix(HOME) for name in FILES} == set(TABLE)
    assert len({written(name)["name"] for name in recipe.shipped()}) == len(recipe.shipped())


@pytest.mark.parametrize("name", FILES)
def test_a_files_head_gives_what_it_leaves_open_and_says_what_to_expect(name: str) -> None:
    head = [line for line in (recipe.SHIPPED / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert head[0].split()[1:4] == ["pivot", "run", name]
    given = {part.partition("=")[0] for part in head[0].split()[4:]}
    filled = {change.partition("=")[0] for change in changes(name, "world")}
    assert given == filled - ({"init"} if written(name)["init"] else set())
    for what in ("Needs:", "Makes:", "Takes:", "Expect", "Values:"):
        assert sum(line.startswith(f"# {what}") for line in head) == 1, what
    assert f"runs/{written(name)['name']}/post-{arm_of(name)}/seed-42" in " ".join(head)


def test_what_is_left_open_is_asked_for() -> None:
    with pytest.raises(BadInput, match=r"leaves init, pairs to you: .*as in: pivot run paper/post-training/mpo init="):
        recipe.load(f"{HOME}mpo")
    with pytest.raises(BadInput, match="of names no rows"):
        recipe.load(f"{HOME}grpo-vlm-r1").examples("prompts")
    with pytest.raises(BadInput, match="give the objective reward_model"):
        recipe.load(f"{HOME}grpo-vlaa", ["data.prompts.of=world"])


def test_vlaas_rows_are_told_of_the_tags_and_keep_what_they_are_judged_by(tmp_path: Path) -> None:
    """Read as the file's first line has it."""
    folder = published.vlaa(tmp_path)
    told = recipe.load(f"{HOME}grpo-vlaa", [f"data.prompts.of=vlaa,{folder}", "arms.grpo.objective.reward_model=MODEL"]).examples("prompts")
    own = recipe.read(f"vlaa,{folder}")
    assert len(told) == len(own) > 0
    for ours, theirs in zip(told, own, strict=True):
        assert not isinstance(ours.prompt, str) and "<answer>" in ours.prompt[0]["content"] and ours.prompt[0]["role"] == "system"
        assert (ours.answer, ours.answer_kind, ours.prompt[-1]["content"]) == (theirs.answer, theirs.answer_kind, theirs.prompt)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name.endswith(("mpo", "r1")) else []) for name in FILES])
def test_a_plan_needs_no_weights(name: str, judge: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["run", name, *changes(name, "world,size=12", judge), "--plan", "--json"]) == 0, capsys.readouterr().err
    (post,) = (stage for stage in json.loads(capsys.readouterr().out)["stages"] if stage["stage"].startswith("post-"))
    told, passes = written(name)["post"], TABLE[name.removeprefix(HOME)]["objective"].get("passes", 1)
    assert post["steps"] == told["epochs"] * -(-12 // told["batch"]) * passes and post["flops"] > 0
    knobs = recipe.load(name, changes(name, "world,size=12", judge)).arms[arm_of(name)].objective or {}
    assert post["written_tokens"] == 12 * told["epochs"] * knobs.get("k", 0) * knobs.get("max_new", 0)


PPO = "arms.ppo.objective"
CHAT = "arms.grpo.objective.chat"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("ppo-llava-rlhf", f"{PPO}.critic=shared", "critic_from is where a separate critic begins"),
        ("ppo-llava-rlhf", "post.template=plain", "objective ppo learns from replies that the model writes itself, so template plain"),
        ("ppo-llava-rlhf", "post.label_mask=llava_next", "so label_mask llava_next is none for it; use clean"),
        ("ppo-llava-rlhf", f"{PPO}.chat={{url: 'https://host/v1', model: m}}", "reward 'mixed' asks no chat"),
        ("grpo-vlm-r1", "arms.grpo.objective.reward_model=.", "asks no reward_model"),
        ("grpo-vlm-r1", f"arms.grpo.objective.reward={{name: judge}} {CHAT}={{ur: x, model: m}}", "chat: unknown key 'ur'"),
        ("grpo-vlm-r1", f"arms.grpo.objective.reward={{name: judge}} {CHAT}={{url: foo, model: m}}", "is no endpoint"),
    ],
)
def test_what_a_stage_would_trip_over_hours_later_is_said_at_once(
    name: str, change: str, says: str, judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["run", HOME + name, *changes(HOME + name, "world,size=4", judge), *change.replace(" arms", "\narms").split("\n")]
    for more in (["--plan"], [f"out={tmp_path / 'run'}"]):
        assert cli.call([*given, *more]) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1, err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (f"{PPO}.reward_model=/nowhere", "objective ppo, reward_model: no such folder: /nowhere"),
        (f"{PPO}.critic_from=.", "objective ppo, critic_from: . is no reward model"),
    ],
)
def test_a_plan_is_made_before_the_reward_model_is_trained_and_a_run_is_not(
    change: str, says: str, judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = HOME + "ppo-llava-rlhf"
    given = ["run", name, *changes(name, "world,size=4", judge), change]
    assert cli.call([*given, "--plan"]) == 0
    capsys.readouterr()
    assert cli.call([*given, f"out={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_a_key_that_is_not_there_is_missed_before_anything_trains(judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plan is often made elsewhere, without it."""
    name, chat = "grpo-vlm-r1", f"{CHAT}={{url: 'https://host/v1', model: m, key: PIVOT_TEST_NO_SUCH_KEY}}"
    given = ["run", HOME + name, *changes(HOME + name, "world,size=4", judge), "arms.grpo.objective.reward={name: judge}", chat]
    assert cli.call([*given, "--plan"]) == 0
    assert cli.call([*given, f"out={tmp_path / 'run'}"]) == 2
    assert "PIVOT_TEST_NO_SUCH_KEY, which is not set" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("post-*"))


def test_python_is_told_of_styles_as_recipes_are(tmp_path: Path) -> None:
    grpo = Grpo(reward={"name": "answer"})
    for style in ({"template": "plain"}, {"label_mask": "llava_next"}):
        with pytest.raises(BadInput, match=r"objective grpo learns from replies that the model writes itself, so .* is none for it"):
            build(MLLM.tiny(), grpo, recipe.read("world,size=2"), None, Settings(**style), Rates(tower=0, projector=0, llm=1e-3), tmp_path)


# ---- end to end

SMALL = ["post.batch=2", "post.micro=2", "post.epochs=1", "post.precision=fp32"]
# So that replies of an untaught model differ in what they earn.
SPREAD = ["reward.gate=false", "reward.terms.length={name: length, limit: 40, unit: characters}", "max_new=4"]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with random weights."""
    folder, mllm = tmp_path_factory.mktemp("judge") / "model", MLLM.tiny()
    mllm.save(folder)
    width = mllm.model.config.get_text_config().hidden_size
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_head(folder, {"weight": torch.randn(1, width), "bias": torch.zeros(1)})
    return folder


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if "ppo" in name else pytest.mark.slow) for name in FILES])
def test_a_file_trains_what_it_says(name: str, judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two batches through the command line: each part as its rate says, replies written and paid, the encoder taken out."""
    arm = arm_of(name)
    online = [f"arms.{arm}.objective.{knob}" for knob in SPREAD if "ppo" not in name or "reward" not in knob] if arm != "mpo" else []
    given = [*changes(name, "world,size=4", judge), *SMALL, *online, f"out={tmp_path / 'run'}"]
    assert cli.call(["run", name, *given]) == 0, capsys.readouterr().err
    ledger = read_json(tmp_path / "run" / f"post-{arm}" / "seed-42" / "ledger.json")
    passes = TABLE[name.removeprefix(HOME)]["objective"].get("passes", 1)
    assert (ledger["steps"], ledger["passes"], ledger["seed"]) == (2 * passes, passes, 42)
    assert {part: of["trained"] for part, of in ledger["parts"].items() if part in ledger["rates"]} == {
        part: bool(rate) for part, rate in ledger["rates"].items()
    }
    k = TABLE[name.removeprefix(HOME)]["objective"].get("k")
    assert (ledger["written_tokens"] > 0) == bool(k)
    if k:
        assert f"{k} replies" in ledger["learns"] or (k == 1 and "a reply" in ledger["learns"])
        lines = read_jsonl(tmp_path / "run" / f"post-{arm}" / "seed-42" / "metrics.jsonl")
        assert "reward" in lines[0] and any(key.startswith("rewards/") for key in lines[0])
    card = (tmp_path / "run" / f"encoder-{arm}" / "seed-42" / "README.md").read_text(encoding="utf-8")
    (told,) = (line for line in card.splitlines() if line.startswith(f"- post: {arm} ("))
    assert "{" not in told and ("reward (mixed, " in told) == bool(k)
    assert (tmp_path / "run" / "report" / "index.html").exists()
