"""What one learner rank does that looks at how its models are made and held; see `zero_rank`."""

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch.distributed import FileStore
from zero_rank import TEMPERATURE, digest, make, share, step, trajectory

from milepost.learner.batch.sample import samples
from milepost.learner.config import LearnerConfig
from milepost.learner.lora import LoraConfig
from milepost.learner.training import ProcessGroupMember
from milepost.learner.zero.actor_critic import ActorCritic, Models
from milepost.learner.zero.construction import policy_model
from milepost.learner.zero.policy import load_policy
from milepost.learner.zero.token_policy import TokenPolicy, token_scores
from milepost.learner.zero.zero_model import join

CPU = torch.device("cpu")


def member(job: dict[str, Any]) -> ProcessGroupMember:
    ranks = job["config"]["ranks"]
    return ProcessGroupMember(rank=job["rank"], world_size=ranks, store=FileStore(job["store"], ranks))


def sha(named: Iterator[tuple[str, torch.Tensor]]) -> str:
    """Of the bytes of all tensors in float32, which holds what bfloat16 does."""
    found = hashlib.sha256()
    for name, tensor in named:
        found.update(name.encode() + tensor.detach().float().numpy().tobytes())
    return found.hexdigest()


def run_made(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Each folder in each data type as the ranks make it, and as it is read whole."""
    base = LearnerConfig(**job["config"])
    join(member(job), CPU, timedelta(seconds=60))
    saw = []
    for folder, dtype in product(map(Path, job["folders"]), job["dtypes"]):
        made = policy_model(
            folder, base.model_copy(update={"dtype": dtype}), "padded", valued=True, adapters=LoraConfig()
        )
        whole = load_policy(folder, dtype=getattr(torch, dtype))
        policy = made.module.policy
        saw.append(
            {
                "made": sha((n.removeprefix("policy."), t) for n, t in made.full_tensors() if n.startswith("policy.")),
                "whole": sha(whole.named_parameters()),
                "made_buffers": sha(policy.named_buffers()),
                "whole_buffers": sha(whole.named_buffers()),
                "held": sum(p.ds_tensor.numel() for p in policy.parameters()),
                "parameters": sum(p.numel() for p in whole.parameters()),
                "dtypes": [str(dtype) for dtype in {p.dtype for p in made.module.parameters()}],
            }
        )
    torch.distributed.barrier()
    return saw


def run_reference(job: dict[str, Any]) -> dict[str, Any]:
    """How far the reference is from the model of its folder, before and after the policy learns; what is held of it."""
    folder = Path(job["model"])
    engine = ActorCritic(
        Models(folder, reference=folder), LearnerConfig(**job["config"]), member=member(job), seed=0, device=CPU
    )
    pool = [
        sample for k in range(8) for sample in samples(trajectory(500 + k, "g", k, success=True), [1.0 - 0.5 * k, 0.3])
    ]
    mine, whole = share(engine, pool, 60), TokenPolicy(load_policy(folder, engine.packing))

    def gap() -> float:
        found = engine.reference_logprobs(mine, temperature=TEMPERATURE)
        with torch.no_grad():
            true = [token_scores(whole, batch, TEMPERATURE)[0] for batch in mine]
        assert min(float(each.min()) for each in true) < -1
        return max(float((one - two).abs().max()) for one, two in zip(found, true, strict=True))

    before, start = gap(), digest(engine)
    step(engine, 0, 60)
    saw = {"before": before, "after": gap(), "moved": digest(engine) != start}
    assert engine._reference is not None
    parameters = list(engine._reference._module.parameters())
    saw["held"] = sum(getattr(p, "ds_tensor", p).numel() for p in parameters)
    saw["parameters"] = sum(p.numel() for p in whole.parameters())
    torch.distributed.barrier()
    return saw


def run_masters(job: dict[str, Any]) -> dict[str, Any]:
    """The last norm's weights and their masters after one small step, after many, and after a checkpoint."""
    engine = make(job)

    def norm() -> dict[str, list[float]]:
        named = dict(engine._policy.module.named_parameters())
        parameter = named["policy.model.norm.weight"]
        master = safe_get_full_fp32_param(parameter)
        weights = {name: tensor.clone() for name, tensor in engine.full_tensors()}
        return {"weights": weights["model.norm.weight"].tolist(), "masters": master.tolist()}

    saw: dict[str, Any] = {"start": norm()}
    step(engine, 0, 1000)
    saw["first"] = norm()
    for _ in range(job["steps"] - 1):
        step(engine, 0, 1000)
    saw["last"] = norm()
    engine.save(Path(job["save"]))
    step(engine, 0, 1000)
    engine.load(Path(job["save"]))
    saw["loaded"] = norm()
    torch.distributed.barrier()
    return saw
