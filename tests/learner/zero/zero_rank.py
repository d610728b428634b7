"""What one learner rank does in each mode: a job in, what it saw out. `rank_process` gives it a process of its own."""

import contextlib
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.utils import safe_get_full_grad
from safetensors.torch import save_file
from torch.distributed import FileStore

from milepost.envs.types import Task, Trajectory, Turn, VersionSpan
from milepost.learner.batch.pack import MicroBatch, collate, plan
from milepost.learner.batch.sample import Sample, samples
from milepost.learner.config import LearnerConfig
from milepost.learner.lora import LoraConfig
from milepost.learner.loss.critic import CriticConfig
from milepost.learner.loss.entropy import EntropyConfig, num_turns
from milepost.learner.loss.loss import LossConfig, LossTerms, Policies, denominator
from milepost.learner.loss.objective import Entropies, Objective, objective_terms
from milepost.learner.loss.offpolicy import OffPolicyConfig
from milepost.learner.training import ProcessGroupMember
from milepost.learner.zero.actor_critic import ActorCritic, Models
from milepost.learner.zero.zero_model import ZeroError

OBJECTIVE = Objective()
TEMPERATURE = 0.9
VOCAB = 64
OPENING = [9, 8, 7, 6]


def trajectory(seed: int, group: str, index: int, *, success: bool, version: int = 0) -> Trajectory:
    """Two append-only turns, of a length of its own; all begin alike, and some go on alike into their first answer."""
    rng = np.random.default_rng(seed)
    history: list[int] = []
    turns = []
    for step in range(2):
        added = rng.integers(0, VOCAB, int(rng.integers(2, 6))).tolist() if step else OPENING
        response = rng.integers(0, VOCAB if step else 2, int(rng.integers(1, 8))).tolist()
        prompt = [*history, *added]
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


def make(job: dict[str, Any], critic: CriticConfig | None = None) -> ActorCritic:
    config = LearnerConfig(**job["config"])
    store = FileStore(job["store"], config.ranks)
    member = ProcessGroupMember(rank=job["rank"], world_size=config.ranks, store=store)
    lora = LoraConfig(**job.get("lora", {}))
    models = Models(Path(job["model"]), critic=critic, lora=lora, base=job.get("base", ""))
    return ActorCritic(models, config, member=member, seed=0, device=torch.device("cpu"))


def digest(engine: ActorCritic) -> str:
    sha = hashlib.sha256()
    for name, tensor in engine.full_tensors():
        sha.update(name.encode() + tensor.float().numpy().tobytes())
    return sha.hexdigest()


def share(engine: ActorCritic, pool: list[Sample], max_tokens: int) -> list[MicroBatch]:
    """The rank's micro-batches."""
    ranks = plan(pool, num_ranks=engine.world_size, max_tokens=max_tokens, packing=engine.packing)
    return [collate(members, engine.packing) for members in ranks[engine.rank]]


def step(engine: ActorCritic, number: int, max_tokens: int, **spoil: Any) -> Any:
    """One update on eight fixed samples of step `number`; `spoil` maps a loss to a worse one or refuses the step."""
    pool = [
        sample
        for index in range(8)
        for sample in samples(trajectory(100 * number + index, "g", index, success=True), [1.0 - 0.5 * index, 0.3])
    ]
    mine = share(engine, pool, max_tokens)
    total = denominator(pool, OBJECTIVE.loss)

    def loss_fn(k: int, batch: Any, logprobs: Any, entropies: Any) -> LossTerms:
        seen = Entropies(entropies, None, num_turns(pool))
        terms = objective_terms(batch, Policies(logprobs, logprobs), seen, objective=OBJECTIVE, total=total)
        if k == 0 and engine.rank == 0 and "loss" in spoil:
            return LossTerms(spoil["loss"](terms.loss), terms.sums)
        return terms

    def look(_: Any) -> None:
        """As for parity: a pass between the gradient and the step."""
        engine.token_logprobs(mine, temperature=TEMPERATURE)

    return engine.update(mine, loss_fn, temperature=TEMPERATURE, approve=spoil.get("approve", look))


def run_engine(job: dict[str, Any]) -> dict[str, Any]:
    """Three good steps, three that must leave the weights alone, a fourth good one."""
    engine = make(job)
    saw: dict[str, Any] = {"names": [name for name, _ in engine.full_tensors()]}
    how = {} if job.get("looks", True) else {"approve": lambda _: None}
    good = [step(engine, number, job["max_tokens"], **how) for number in range(3)]
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
    saw["local_after_gather"] = sum(p.numel() for p in engine._policy.module.parameters())
    good.append(step(engine, 3, job["max_tokens"], **how))
    saw["steps"] = [[s.loss, s.grad_norm, s.sums["entropy"], s.lr] for s in good]
    saw["applied"] = all(s.applied for s in good)
    if "save" in job:
        engine.save(Path(job["save"]))
        engine.save_policy(Path(job["save"]) / "policy")
        saw["next_loss"] = step(engine, 4, job["max_tokens"]).loss
    torch.distributed.barrier()  # a peer that leaves first breaks the other's exchange
    return saw


class Seen(Exception):
    """The gradient was looked at; the step is not wanted."""


def run_split(job: dict[str, Any]) -> dict[str, Any]:
    """Rank 0 writes the whole gradient of one step under each of the job's objectives; no step is made."""
    engine = make(job)
    pool = [
        sample
        for index in range(7)
        for sample in samples(trajectory(900 + index, "g", index, success=True), [1.0 - 0.5 * index, 0.3])
    ]
    mine = share(engine, pool, job["max_tokens"])
    gradients = {}
    for name, sections in job["objectives"].items():
        objective = Objective(
            loss=LossConfig(**sections["loss"]),
            offpolicy=OffPolicyConfig(**sections["offpolicy"]),
            entropy=EntropyConfig(**sections["entropy"]),
        )
        for parameter, gradient in split_gradient(engine, pool, mine, objective).items():
            gradients[f"{name}|{parameter}"] = gradient
    if engine.rank == 0:
        save_file(gradients, job["gradients"])
    torch.distributed.barrier()  # a peer that leaves first breaks the other's exchange
    return {"micro_batches": len(mine)}


def split_gradient(engine: Any, pool: list[Any], mine: list[Any], objective: Objective) -> dict[str, torch.Tensor]:
    """Of a policy that moved a little, and differently at each token, since the update began."""
    total, spread = denominator(pool, objective.loss), 0.3 if objective.loss.ratio == "token" else 1e-3
    found: dict[str, torch.Tensor] = {}

    def loss_fn(_: int, batch: Any, logprobs: Any, entropies: Any) -> LossTerms:
        proximal = logprobs.detach() - spread * torch.sin(batch.input_ids.float())
        usual = None if objective.entropy.band is None else torch.full_like(entropies, 4.0)
        seen = Entropies(entropies, usual, num_turns(pool))
        return objective_terms(batch, Policies(logprobs, proximal), seen, objective=objective, total=total)

    def look(_: Any) -> None:
        for name, parameter in engine._policy.module.named_parameters():
            found[name] = safe_get_full_grad(parameter).cpu().clone()
        raise Seen

    with contextlib.suppress(Seen):
        engine.update(mine, loss_fn, temperature=TEMPERATURE, approve=look, entropy_gradient=True)
    return found


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
    except ZeroError as error:
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
