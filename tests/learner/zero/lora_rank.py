"""What one learner rank does that trains adapters; see `zero_rank`."""

import json
from pathlib import Path
from typing import Any

import torch
from loop_rank import TEMPERATURE
from zero_rank import digest, make, share, step, trajectory

from milepost.learner.batch.sample import samples
from milepost.learner.lora import LoraError
from milepost.learner.zero.actor_critic import ActorCritic
from milepost.learner.zero.policy import batch_logprobs, load_policy
from milepost.learner.zero.zero_model import ZeroError


def run_adapters(job: dict[str, Any]) -> dict[str, Any]:
    """Two steps, the reference before and after each, what is saved, and a third step."""
    engine = make(job)
    gaps = [reference_gaps(engine, job)]
    steps = []
    for number in range(2):
        steps.append(step(engine, number, job["max_tokens"]))
        gaps.append(reference_gaps(engine, job))
    engine.save(Path(job["save"]))
    engine.save_policy(Path(job["save"]) / "policy")
    saw: dict[str, Any] = {
        "shapes": [[name, list(shape)] for name, _, shape in engine.tensor_shapes()],
        "names": [name for name, _ in engine.full_tensors()],
        "gaps": gaps,
        "steps": [[s.loss, s.grad_norm, s.sums["entropy"]] for s in steps],
        "next_loss": step(engine, 2, job["max_tokens"]).loss,
    }
    torch.distributed.barrier()  # a peer that leaves first breaks the other's exchange
    return saw


def reference_gaps(engine: ActorCritic, job: dict[str, Any]) -> list[float]:
    """Largest differences of log-probs: of the engine's reference, and of its policy, from the model in the folder."""
    pool = [s for index in range(4) for s in samples(trajectory(index, "g", index, success=True), [1.0, 0.3])]
    batches = share(engine, pool, job["max_tokens"])
    alone = load_policy(Path(job["model"]), engine.packing)
    expected = [batch_logprobs(alone, batch, TEMPERATURE)[0] for batch in batches]
    found = [ask(batches, temperature=TEMPERATURE) for ask in (engine.reference_logprobs, engine.token_logprobs)]
    return [max(float((a - b).abs().max()) for a, b in zip(one, expected, strict=True)) for one in found]


def run_return(job: dict[str, Any]) -> dict[str, Any]:
    """A step after loading, and why adapters of another rank or of another base are refused."""
    engine = make(job)
    saw: dict[str, Any] = {"fresh": digest(engine)}
    engine.load(Path(job["save"]))
    saw |= {"loaded": digest(engine), "next_loss": step(engine, 2, job["max_tokens"]).loss, "refused": []}
    layout = Path(job["save"]) / "layout.json"
    told = json.loads(layout.read_text())
    for other in ({"lora": {**told["lora"], "rank": 2}}, {"base": "b2"}):
        engine.all_equal(0)  # nobody edits the layout while another rank still reads it
        if engine.rank == 0:
            layout.write_text(json.dumps(told | other))
        engine.all_equal(0)
        try:
            engine.load(Path(job["save"]))
        except (LoraError, ZeroError) as error:
            saw["refused"].append(f"{type(error).__name__}: {error}")
    torch.distributed.barrier()  # a peer that leaves first breaks the other's exchange
    return saw
