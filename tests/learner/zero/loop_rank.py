"""What one learner rank does that makes whole updates; see `zero_rank`."""

import json
from pathlib import Path
from typing import Any

import torch
from zero_rank import OBJECTIVE, TEMPERATURE, digest, make, trajectory

from milepost.envs.types import Group, Trajectory, Turn, VersionSpan
from milepost.learner.batch.pack import collate
from milepost.learner.batch.sample import samples
from milepost.learner.config import LearnerConfig
from milepost.learner.credit.filter import FilterConfig
from milepost.learner.credit.modulators import AEMConfig
from milepost.learner.credit.strategies.crbc import CRBCConfig
from milepost.learner.credit.strategies.registry import CreditConfig
from milepost.learner.credit.strategies.steppo import StepPOConfig
from milepost.learner.loop import LearnerRank, UpdateReport
from milepost.learner.loss.critic import CriticConfig
from milepost.learner.recipe import Recipe
from milepost.learner.steps import ParityError
from milepost.learner.token_statistics import STATISTICS, compute_token_statistics
from milepost.learner.zero.actor_critic import ActorCritic
from milepost.learner.zero.zero_model import ZeroError

CREDIT = StepPOConfig(modulators=(AEMConfig(min_range_nats=1e-6),))
WANTED = ("value_loss", "explained_variance", "critic_grad_norm", "grad_norm", "entropy")


def recipe(config: LearnerConfig, credit: CreditConfig, critic: CriticConfig) -> Recipe:
    return Recipe(
        learner=config,
        credit=credit,
        filter=FilterConfig(),
        objective=OBJECTIVE,
        critic=critic,
        temperature=TEMPERATURE,
    )


def with_logprobs(engine: ActorCritic, groups: list[Group], *, shift: float, version: int) -> list[Group]:
    """The groups as an inference engine with the learner's weights, off by `shift`, would have recorded them."""
    result = []
    for group in groups:
        trajectories = []
        for t in group.trajectories:
            (row,) = samples(t, [0.0] * len(t.turns))
            logprobs = engine.token_logprobs([collate([row], engine.packing)], temperature=TEMPERATURE)[0][0]
            turns = []
            for turn in t.turns:
                start, n = len(turn.prompt_ids), len(turn.response_ids)
                values = (logprobs[start : start + n] + shift).tolist()
                span = VersionSpan(version=version, start=0, end=n)
                turns.append(turn_like(turn, values, span))
            trajectories.append(
                Trajectory(task=t.task, group_id=t.group_id, index=t.index, turns=turns, outcome=t.outcome)
            )
        result.append(Group(group_id=group.group_id, task=group.task, trajectories=trajectories))
    return result


def turn_like(turn: Turn, logprobs: list[float], span: VersionSpan) -> Turn:
    return Turn(
        prompt_ids=turn.prompt_ids,
        response_ids=turn.response_ids,
        logprobs=logprobs,
        versions=[span],
        anchor=turn.anchor,
        next_anchor=turn.next_anchor,
        action=turn.action,
        reward=turn.reward,
    )


def some_groups(*, solved: int) -> list[Group]:
    """Three groups of four trajectories, of which `solved` succeed."""
    made = []
    for g in range(3):
        members = [trajectory(10 * g + i, f"g{g}", i, success=i < solved) for i in range(4)]
        made.append(Group(group_id=f"g{g}", task=members[0].task, trajectories=members))
    return made


def run_loop(job: dict[str, Any]) -> dict[str, Any]:
    engine = make(job)
    saw = {str(count): updates(engine, LearnerConfig(**job["config"], minibatches=count)) for count in (1, 2)}
    torch.distributed.barrier()  # a peer that leaves first breaks the other's exchange
    return saw


def updates(engine: ActorCritic, config: LearnerConfig) -> dict[str, Any]:
    """A good update, two whose log-probs don't fit, one with other groups per rank, an empty and a stale one."""
    rank = LearnerRank(engine, recipe(config, CRBCConfig(), CriticConfig()))
    fresh = with_logprobs(engine, some_groups(solved=2), shift=0.0, version=5)
    first = rank.train(fresh, 5)
    saw: dict[str, Any] = {
        "steps": applied(first),
        "parity": first.parity,
        "reasons": [v.reason for v in first.verdicts],
        "metrics": first.metrics,
        "tokens": first.tokens,
        "breaks": first.prefix_breaks,
    }
    before = digest(engine)
    freshly = with_logprobs(engine, some_groups(solved=2), shift=0.0, version=6)
    saw["probe"] = rank.check_parity(freshly[0].trajectories[0].turns, 6)
    off = with_logprobs(engine, some_groups(solved=2), shift=0.5, version=6)
    try:
        rank.train(off, 6)
    except ParityError as error:
        saw["parity_error"] = str(error)
    try:
        rank.train(fresh, 6, probe=lambda: off[0].trajectories[0].turns)
    except ParityError as error:
        saw["probe_error"] = str(error)
    try:
        rank.train(fresh if engine.rank else fresh[:1], 6)
    except ValueError as error:
        saw["different"] = str(error)
    nothing = rank.train(some_groups(solved=0), 6)
    saw["nothing"] = [applied(nothing), nothing.parity, [v.reason for v in nothing.verdicts]]
    saw["unchanged"] = digest(engine) == before
    nearly = with_logprobs(engine, some_groups(solved=2), shift=2.5e-4, version=7)
    stale = rank.train(off, 7, probe=lambda: nearly[0].trajectories[0].turns)
    saw["stale"] = [applied(stale), stale.parity]
    saw["changed"] = digest(engine) != before
    return saw


def run_critic(job: dict[str, Any]) -> dict[str, Any]:
    """What is measured, then three updates with a critic; the third once more after going back to its start."""
    critic = CriticConfig(trunk=job["trunk"], lr=3e-3, value_clip=0.2, **{"minibatches": 1, **job.get("critic", {})})
    config = LearnerConfig(**job["config"])
    engine = make(job, critic)
    groups = with_logprobs(engine, some_groups(solved=2), shift=0.0, version=0)
    max_tokens = config.max_tokens_per_micro_batch
    found = compute_token_statistics(engine, groups, needs=STATISTICS, temperature=TEMPERATURE, max_tokens=max_tokens)
    parts = {"logprobs": found.logprobs, "entropies": found.entropies, "gains": found.history_gains}
    saw: dict[str, Any] = {"measured": {name: numbers.tolist() for name, numbers in parts.items()}}
    saw["untrained"] = found.values.tolist()
    saw["names"] = [name for name, _ in engine.full_tensors()]
    saw["shapes"] = [[name, list(shape)] for name, _, shape in engine.tensor_shapes()]
    rank = LearnerRank(engine, recipe(config, CREDIT, critic))
    before = digest(engine)
    saw["updates"] = [seen(rank.train(groups, 0))]
    saw["policy_moved"] = digest(engine) != before
    saw["updates"].append(seen(rank.train(groups, 1)))
    saved = Path(job["save"])
    engine.save(saved)
    engine.save_policy(saved / "policy")
    saw["updates"].append(seen(rank.train(groups, 2)))
    engine.load(saved)
    saw["again"] = seen(rank.train(groups, 2))
    engine.all_equal(0)  # nobody edits the layout while another rank still reads it
    if engine.rank == 0:
        layout = json.loads((saved / "layout.json").read_text())
        (saved / "layout.json").write_text(json.dumps(layout | {"critic": "none"}))
    engine.all_equal(0)
    try:
        engine.load(saved)
    except ZeroError as error:
        saw["mismatch"] = str(error)
    torch.distributed.barrier()  # a peer that leaves first breaks the other's exchange
    return saw


def applied(report: UpdateReport) -> int:
    """Optimizer steps that changed the policy."""
    return len(report.losses) - report.skipped_steps


def seen(report: UpdateReport) -> dict[str, Any]:
    return {
        "losses": report.losses,
        "steps": applied(report),
        "skipped": report.skipped_steps,
        "phases": sorted(report.seconds),
        **{name: report.metrics[name] for name in WANTED if name in report.metrics},
    }
