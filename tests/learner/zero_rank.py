"""One learner rank as a process of its own: `zero_rank.py <mode> <job.json>`; writes what it saw to `out` as JSON."""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from milepost.envs.types import Group, Task, Trajectory, Turn, VersionSpan
from milepost.learner.config import LearnerConfig
from milepost.learner.credit.crbc import CRBCConfig
from milepost.learner.engine import DeepSpeedEngine, EngineError, Seat
from milepost.learner.filter import FilterConfig
from milepost.learner.loop import LearnerRank, ParityError
from milepost.learner.loss import LossConfig, LossTerms, Policies, denominator, policy_loss
from milepost.learner.pack import collate, plan
from milepost.learner.sample import samples

LOSS = LossConfig()
TEMPERATURE = 0.9
VOCAB = 64


def trajectory(seed: int, group: str, index: int, *, success: bool, version: int = 0) -> Trajectory:
    """Two append-only turns of random tokens, of a length of its own."""
    rng = np.random.default_rng(seed)
    history: list[int] = []
    turns = []
    for step in range(2):
        prompt = [*history, *rng.integers(0, VOCAB, int(rng.integers(2, 6))).tolist()]
        response = rng.integers(0, VOCAB, int(rng.integers(1, 8))).tolist()
        history = prompt + response
        turns.append(
            Turn(
                prompt_ids=prompt,
                response_ids=response,
                logprobs=rng.normal(-4.2, 0.2, len(response)).tolist(),
                versions=[VersionSpan(version=version, start=0, end=len(response))],
                anchor=f"s{step}",
                next_anchor=f"s{step + 1}",
                action=str(index % 2),
                reward=float(success and step == 1),
            )
        )
    return Trajectory(
        task=Task(env="x:Y", seed=0, split="train"),
        group_id=group,
        index=index,
        turns=turns,
        outcome="success" if success else "failure",
    )


def make(job: dict[str, Any]) -> DeepSpeedEngine:
    config = LearnerConfig(**job["config"])
    seat = Seat(rank=job["rank"], world_size=config.ranks, master_addr="127.0.0.1", master_port=job["port"])
    return DeepSpeedEngine(Path(job["model"]), config, seat=seat, seed=0, device=torch.device("cpu"))


def digest(engine: DeepSpeedEngine) -> str:
    sha = hashlib.sha256()
    for name, tensor in engine.full_tensors():
        sha.update(name.encode() + tensor.float().numpy().tobytes())
    return sha.hexdigest()


def step(engine: DeepSpeedEngine, number: int, max_tokens: int, **spoil: Any) -> Any:
    """One update on eight fixed samples of step `number`; `spoil` maps a loss to a worse one or refuses the step."""
    pool = [
        sample
        for index in range(8)
        for sample in samples(trajectory(100 * number + index, "g", index, success=True), [1.0 - 0.5 * index, 0.3])
    ]
    mine = [collate(b) for b in plan(pool, num_ranks=engine.world_size, max_tokens=max_tokens)[engine.rank]]
    total = denominator(pool, "token")

    def loss_fn(k: int, batch: Any, logprobs: Any, entropies: Any) -> LossTerms:
        terms = policy_loss(batch, Policies(logprobs, logprobs), config=LOSS, total=total)
        terms.sums["entropy"] = float(entropies[batch.loss_mask].sum())
        if k == 0 and engine.rank == 0 and "loss" in spoil:
            return LossTerms(spoil["loss"](terms.loss), terms.sums)
        return terms

    approve = spoil.get("approve", lambda _: None)
    return engine.update(mine, loss_fn, temperature=TEMPERATURE, approve=approve)


def run_engine(job: dict[str, Any]) -> dict[str, Any]:
    """Three good steps, three that must leave the weights alone, a fourth good one."""
    engine = make(job)
    saw: dict[str, Any] = {"names": [name for name, _ in engine.full_tensors()]}
    good = [step(engine, number, job["max_tokens"]) for number in range(3)]
    before = digest(engine)
    spoiled = {
        "nan_loss": step(engine, 7, job["max_tokens"], loss=lambda loss: loss * float("nan")),
        "nan_gradient": step(engine, 7, job["max_tokens"], loss=lambda loss: loss + (loss * 0).abs().sqrt()),
    }
    saw["spoiled"] = {name: [s.applied, s.loss] for name, s in spoiled.items()}
    try:
        step(engine, 7, job["max_tokens"], approve=lambda _: 1 / 0)
    except ZeroDivisionError:
        saw["refused"] = True
    saw["unchanged"] = digest(engine) == before
    saw["local_after_gather"] = sum(p.numel() for p in engine._engine.module.parameters())
    good.append(step(engine, 3, job["max_tokens"]))
    saw["steps"] = [[s.loss, s.grad_norm, s.sums["entropy"], s.lr] for s in good]
    saw["applied"] = all(s.applied for s in good)
    if "save" in job:
        engine.save(Path(job["save"]))
        engine.save_policy(Path(job["save"]) / "policy")
        saw["next_loss"] = step(engine, 4, job["max_tokens"]).loss
    torch.distributed.barrier()  # a peer that leaves first breaks the other's exchange
    return saw


def run_resume(job: dict[str, Any]) -> dict[str, Any]:
    engine = make(job)
    engine.load(Path(job["save"]))
    saw: dict[str, Any] = {"next_loss": step(engine, 4, job["max_tokens"]).loss}
    engine.all_equal(0)  # nobody edits the layout while another rank still reads it
    if engine.rank == 0:
        (Path(job["save"]) / "layout.json").write_text('{"ranks": 7, "zero_stage": 3}')
    engine.all_equal(0)
    try:
        engine.load(Path(job["save"]))
    except EngineError as error:
        saw["mismatch"] = str(error)
    torch.distributed.barrier()  # a peer that leaves first breaks the other's exchange
    return saw


def run_frozen(job: dict[str, Any]) -> dict[str, Any]:
    """Rank 1 stays away from the second step; rank 0 must not wait for it longer than the deadline."""
    engine = make(job)
    step(engine, 0, job["max_tokens"])
    if engine.rank == 1:
        time.sleep(300)
    start = time.monotonic()
    try:
        step(engine, 1, job["max_tokens"])
    except RuntimeError as error:
        return {"error": str(error), "waited_s": time.monotonic() - start}
    return {}


def with_logprobs(engine: DeepSpeedEngine, groups: list[Group], *, shift: float, version: int) -> list[Group]:
    """The groups as an inference engine with the learner's weights, off by `shift`, would have recorded them."""
    result = []
    for group in groups:
        trajectories = []
        for t in group.trajectories:
            (row,) = samples(t, [0.0] * len(t.turns))
            logprobs = engine.token_logprobs([collate([row])], temperature=TEMPERATURE)[0][0]
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


def updates(engine: DeepSpeedEngine, config: LearnerConfig) -> dict[str, Any]:
    """A good update, one whose log-probs don't fit, one with other groups per rank, an empty and a stale one."""
    rank = LearnerRank(
        engine, config, loss=LOSS, credit=CRBCConfig(), filter_config=FilterConfig(), temperature=TEMPERATURE
    )
    fresh = with_logprobs(engine, some_groups(solved=2), shift=0.0, version=5)
    first = rank.train(fresh, 5)
    saw: dict[str, Any] = {
        "steps": first.optimizer_steps,
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
        rank.check_parity(off[0].trajectories[0].turns, 6)
    except ParityError as error:
        saw["probe_error"] = str(error)
    try:
        rank.train(fresh if engine.rank else fresh[:1], 6)
    except ValueError as error:
        saw["different"] = str(error)
    nothing = rank.train(some_groups(solved=0), 6)
    saw["nothing"] = [nothing.optimizer_steps, nothing.parity_all, [v.reason for v in nothing.verdicts]]
    saw["unchanged"] = digest(engine) == before
    stale = rank.train(off, 7)
    saw["stale"] = [stale.optimizer_steps, stale.parity, stale.parity_all]
    saw["changed"] = digest(engine) != before
    return saw


if __name__ == "__main__":
    job_ = json.loads(Path(sys.argv[2]).read_text())
    seen = {"engine": run_engine, "resume": run_resume, "frozen": run_frozen, "loop": run_loop}[sys.argv[1]](job_)
    Path(job_["out"]).write_text(json.dumps(seen))
    # As Ray ends a learner: at once. In an orderly exit gloo's threads abort the process now and then.
    os._exit(0)
