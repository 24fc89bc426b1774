"""LoRA: the LLM learns through adapters that end in its weights, whatever the objective, and nothing else of it moves."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_flops import counted, no_packing, row  # noqa: F401  (a fixture that is used by itself)
from test_online import grpo, left_after, ppo
from training import ALL, DPO, SFT, curve, distance, fresh, run, same, weights

from pivot import cli
from pivot.data.collate import collate
from pivot.files import read_json
from pivot.model import MLLM, Scorer
from pivot.model.critic import Critic
from pivot.model.flops import row_flops
from pivot.model.lora import adapters
from pivot.objective.mpo import Objective as MPO
from pivot.objective.reward_model import Objective as RewardModel
from pivot.records import BadInput, CheckFailed, Example
from pivot.train import Rates, Settings
from pivot.train.parts import adapt, asked, freeze
from pivot.train.settings import Lora
from pivot.train.setup import _free, _learner, _wake

TOWER, PROJECTOR, LLM = "model.vision_tower", "model.multi_modal_projector", "model.language_model"
LORA: dict[str, Any] = {"lora": {"rank": 4, "alpha": 8}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))


def adapted(mllm: MLLM, targets: Sequence[str] = ("all-linear",)) -> Any:
    """Adapters in an MLLM, trained as far as chance would."""
    found = adapters(mllm.model, 4, 8, targets)
    found.put(mllm.model)
    torch.manual_seed(1)
    for name, weight in mllm.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.1)
    return found


def logps(mllm: MLLM, examples: Sequence[Example]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([one for row in Scorer(mllm)(collate([mllm.encode(e) for e in examples])).logps for one in row])


# ---- into the weights


@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj", "v_proj"]])
def test_merged_weights_say_what_the_adapted_model_said(mllm: MLLM, pairs: list[Example], targets: Any) -> None:
    before, first = weights(mllm), logps(mllm, pairs)
    found = adapted(mllm, targets)
    learned = logps(mllm, pairs)
    assert (learned - first).abs().max() > 0.01
    gathered = found.merged(mllm.model.state_dict())
    found.merge(mllm.model)
    assert (logps(mllm, pairs) - learned).abs().max() < 1e-5
    after = weights(mllm)
    assert after.keys() == before.keys() == gathered.keys() and distance(after, gathered) < 1e-6
    changed = {name.rpartition(".")[0].rpartition(".")[2] for name in after if not torch.equal(after[name], before[name])}
    assert changed == set(found.targets)


def test_taken_out_they_leave_no_trace(mllm: MLLM) -> None:
    before, names = weights(mllm), [type(module) for module in mllm.model.modules()]
    adapted(mllm).remove(mllm.model)
    assert same(weights(mllm), before) and [type(module) for module in mllm.model.modules()] == names


# ---- training


OBJECTIVES: dict[str, Any] = {
    "sft": SFT(),
    "dpo": DPO(),
    "mpo": MPO(),
    "grpo": grpo(k=2),
    "ppo": ppo(passes=1),
    "ppo shared": ppo(passes=1, critic="shared"),
    "reward_model": RewardModel(),
}


TWO: dict[str, Any] = {"batch": 2, **LORA}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name == "ppo shared" else name for name in OBJECTIVES])
def test_every_objective_trains_adapters(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, name: str) -> None:
    """And the margins of those with a reference begin at zero, which the loop itself sees to."""
    mllm = fresh(shared_mllm)
    run(mllm, OBJECTIVES[name], pairs[:4], tmp_path, **TWO)
    before = weights(shared_mllm)
    after = {key.replace(".base_layer.", "."): value for key, value in weights(mllm).items() if ".lora_" not in key}
    assert distance(before, after, LLM) == 0 < distance(before, after, TOWER)
    assert all(float(value.abs().max()) > 0 for key, value in weights(mllm).items() if ".lora_B." in key)
    facts = read_json(tmp_path / "ledger.json")
    assert facts["lora"]["parameters"] == sum(value.numel() for key, value in weights(mllm).items() if ".lora_" in key)
    assert facts["parts"]["llm"]["trained"] and facts["parts"]["llm"]["moved"] > 0


def test_a_critic_of_its_own_has_its_own_adapters(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    """Of the policy's weights, or of a reward model's that was trained before; neither trains the LLM whole."""
    run(fresh(shared_mllm), RewardModel(), pairs[:4], tmp_path / "judge", model=True, **TWO)
    for start in (None, str(tmp_path / "judge" / "model")):
        learner = _learner(fresh(shared_mllm), ppo(critic_from=start), Settings(**TWO))
        assert isinstance(learner, Critic) and learner.beside
        _free(learner, ALL, Settings(**TWO))
        own, policy = set(learner.own()), {name for name, weight in learner.scorer.named_parameters() if weight.requires_grad}
        assert {name.removeprefix("beside.") for name in own} - policy == {"head.weight", "head.bias"}
        assert all(".lora_" in name for name in own if LLM in name) and any(LLM in name for name in own)


@pytest.mark.parametrize("tower", [0.0, 1e-3])
def test_what_is_saved_is_a_plain_mllm(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, tower: float) -> None:
    """With stock names and hashes that hold; the head, the embeddings and frozen parts as they were, the tower's idle end too."""
    mllm = fresh(shared_mllm)
    run(mllm, SFT(), pairs[:4], tmp_path, rates=Rates(tower, 0.0, 1e-3), model=True, **TWO)
    before, loaded = weights(shared_mllm), MLLM.load(tmp_path / "model")
    after = weights(loaded)
    assert same(after, weights(mllm)) and after.keys() == before.keys()
    assert {path.name for path in (tmp_path / "model").iterdir()} == {path.name for path in _saved(shared_mllm, tmp_path / "as it was")}
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert all(name.split(".")[-2].endswith("_proj") for name in moved if name.startswith(LLM))
    assert len([name for name in moved if name.startswith(LLM)]) == 14
    assert any(name.startswith(TOWER) for name in moved) == (tower > 0)
    assert not any(name.startswith((PROJECTOR, "lm_head")) for name in moved)


def _saved(mllm: MLLM, folder: Path) -> list[Path]:
    mllm.save(folder)
    return list(folder.iterdir())


@pytest.mark.parametrize(
    ("objective", "leave"), [(SFT(), 3), pytest.param(grpo(k=2, kl=0.1), 3, marks=pytest.mark.slow)], ids=["sft", "grpo"]
)
def test_a_killed_run_goes_on_to_the_same_bits(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, objective: Any, leave: int) -> None:
    settings = {**TWO, "micro": 2, "save_every": 1, "warmup": 0.0, "schedule": "constant"}
    whole, again = fresh(shared_mllm), fresh(shared_mllm)
    run(whole, objective, pairs[:6], tmp_path / "whole", **settings)
    left_after(leave, shared_mllm, objective, pairs[:6], tmp_path / "left", **settings)
    with pytest.raises(BadInput, match=r"changed: settings\.lora"):
        run(fresh(shared_mllm), objective, pairs[:6], tmp_path / "left", **{**settings, "lora": None})
    run(again, objective, pairs[:6], tmp_path / "left", **settings)
    assert same(weights(again), weights(whole)) and curve(tmp_path / "left") == curve(tmp_path / "whole")


def test_adapters_that_are_cut_off_are_caught(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the layers compute without them."""
    from peft.tuners.lora.layer import Linear

    monkeypatch.setattr(Linear, "forward", lambda self, *args, **kwargs: self.base_layer(*args, **kwargs))
    with pytest.raises(CheckFailed, match="the llm has a learning rate but no gradient in"):
        run(fresh(shared_mllm), SFT(), pairs[:4], tmp_path, **TWO)


def test_weights_that_move_below_adapters_are_caught(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: every update also changes one of the LLM's own weights."""
    mllm, step = fresh(shared_mllm), torch.optim.AdamW.step

    def and_one_more(self: torch.optim.AdamW, *args: Any) -> Any:
        mllm.model.get_parameter(f"{LLM}.layers.1.mlp.up_proj.base_layer.weight").data.add_(0.01)
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", and_one_more)
    with pytest.raises(CheckFailed, match=r"the llm moved in .*layers\.1\.mlp\.up_proj\.base_layer\.weight although that is frozen"):
        run(mllm, SFT(), pairs[:4], tmp_path, **TWO)


# ---- what it costs


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
@pytest.mark.parametrize(
    ("targets", "checkpointing"),
    [
        (("all-linear",), True),
        (("q_proj", "v_proj"), False),
        pytest.param(("all-linear",), False, marks=pytest.mark.slow),
        pytest.param(("q_proj", "v_proj"), True, marks=pytest.mark.slow),
    ],
)
def test_the_formula_counts_adapters(mllm: MLLM, targets: Any, checkpointing: bool) -> None:
    settings = Settings(lora=Lora(rank=8, targets=targets))
    whole = row_flops(mllm.model.config, row(mllm.model.config, 1, 11, (9, 4)), checkpointing=checkpointing)
    freeze(mllm, ALL)
    found = adapt(mllm, ALL, settings)
    _wake(mllm, checkpointing)
    example = row(mllm.model.config, 1, 11, (9, 4))
    told = row_flops(mllm.model.config, example, checkpointing=checkpointing, adapters=found)
    expected = counted(mllm.model, example, "shared")
    assert told == pytest.approx(expected, rel=0.005)
    assert whole != pytest.approx(expected, rel=0.01)


def test_a_recipe_with_adapters_runs_and_costs_what_its_plan_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = tmp_path / "small.yaml", tmp_path / "run"
    lora = {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]}
    rates = {"tower": 1e-3, "projector": 1e-3, "llm": 1e-3}
    arms = {"dpo": {"objective": {"name": "dpo"}, "rates": rates}}
    post = {"batch": 2, "micro": 1, "save_every": 9, "lora": lora}
    plain = {"name": "small", "init": "tiny", "data": {"pairs": {"read": "world", "size": 4}}, "arms": arms, "post": post}
    file.write_text(yaml.safe_dump(plain))
    planned = {}
    for change in ([], ["post.lora=null"]):
        assert cli.call(["run", str(file), "--plan", "--json", f"out={folder}", *change]) == 0
        planned[bool(change)] = {one["stage"]: one for one in json.loads(capsys.readouterr().out)["stages"]}["post-dpo/seed-0"]
    told, whole = planned[False], planned[True]
    assert cli.call(["run", str(file), f"out={folder}"]) == 0
    facts = read_json(folder / "post-dpo" / "seed-0" / "ledger.json")
    assert facts["lora"] == {**lora, "parameters": 2 * 4 * (32 + 32 + 32 + 16)}
    assert told["flops"] == pytest.approx(facts["flops"] + facts["reference"]["flops"]) and told["flops"] < whole["flops"]
    llm = sum(weight.numel() for weight in MLLM.tiny().parts()["llm"].parameters())
    assert whole["parameters"] - told["parameters"] == llm - facts["lora"]["parameters"]
    memory = told["memory"]
    assert memory["weights"] == whole["memory"]["weights"] + 4 * facts["lora"]["parameters"]
    assert memory["optimizer"] == 2 * 4 * told["parameters"] and memory["total"] < whole["memory"]["total"]


# ---- what does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("post.lora.rnak=4", "post.lora: unknown key 'rnak'; did you mean 'rank'?"),
        ("post.lora.rank=0", "post.lora.rank: input should be greater than or equal to 1, not 0"),
        ("post.lora=64", "post.lora: must be a mapping of rank, alpha, targets, not 64"),
        ("post.lora.targets=[q_prj]", "lora.targets: the LLM's layers have no linear map 'q_prj'; did you mean 'q_proj'?"),
        ("arms.sft.rates.llm=0", "lora trains the LLM at its rate, and rates.llm is 0: give it a rate, or leave lora out"),
        ("post.lora.targets=some", "lora.targets: the LLM's layers have no linear map 'some'; known: down_proj, gate_proj, k_proj,"),
        ("post.lora.targets=5", "post.lora.targets: input should be a valid tuple, not 5"),
    ],
)
def test_what_does_not_fit_is_found_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    file = tmp_path / "small.yaml"
    arms = {"sft": {"objective": {"name": "sft"}, "rates": {"tower": 1e-3, "projector": 1e-3, "llm": 1e-3}}}
    data = {"pairs": {"read": "world", "size": 4}}
    file.write_text(yaml.safe_dump({"name": "small", "init": "tiny", "data": data, "arms": arms, "post": {"lora": {"rank": 4}}}))
    assert cli.call(["run", str(file), f"out={tmp_path / 'run'}", change]) == 2
    assert message in capsys.readouterr().err


def test_without_peft_it_says_how_to_get_it(shared_mllm: MLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BadInput, match=r"pip install 'pivot-vision\[lora\]'"):
        asked(shared_mllm, ALL, Settings(**LORA))
