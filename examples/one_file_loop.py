"""Reinforcement learning of an LLM agent in one file, read from top to bottom: play, credit, loss, step, and again.

A two-armed bandit with three pulls, a language model of 0.1 M parameters, one process, two cores, under a minute:

    python examples/one_file_loop.py --iterations 30 --seed 0

`milepost train` does the same with the same functions; every step names the file that does it there. What a run adds
is left out: processes for engines, workers and learner ranks, the buffer between them, staleness, checkpoints and
deadlines. Not promised: that these settings suit anything but this bandit.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from milepost.actors.context import Context
from milepost.actors.engine import Completion, SamplingConfig
from milepost.envs import chance
from milepost.envs.bandit import WILD_NAMES
from milepost.envs.contract import build_env, observe_reset, observe_step
from milepost.envs.dialogue import Dialogue
from milepost.envs.scenarios import ScenarioConfig, ScenarioSet
from milepost.envs.types import Group, Outcome, Task, Trajectory, Turn, VersionSpan
from milepost.learner.batch import pack
from milepost.learner.batch.sample import Sample, samples
from milepost.learner.config import LearnerConfig
from milepost.learner.credit.assignment import Credit, from_group
from milepost.learner.credit.filter import FilterConfig, Verdict, keep_groups, weighted
from milepost.learner.credit.scaling import scaled
from milepost.learner.credit.strategies.registry import build, settings
from milepost.learner.first_policy.config import ModelConfig, ResponseLimits, WarmupConfig
from milepost.learner.first_policy.model import resolve
from milepost.learner.loss.loss import Policies, denominator, token_logprobs, turn_weights
from milepost.learner.loss.objective import Entropies, Objective, objective_terms
from milepost.learner.steps import ParityError
from milepost.learner.update_metrics import add, mean, parity_sums
from milepost.learner.zero.policy import batch_logprobs, load_policy

# The settings, in a run's own types (cluster/settings/config.py holds them all); what is not named has its default.
SCENARIOS = ScenarioConfig(path="milepost.envs.bandit:TwoArmedBandit", options={"max_steps": 3}, train_size=256)
MODEL = ModelConfig(  # it imitates an expert that is nothing but noise: it begins by pulling either arm
    warmup=WarmupConfig(hidden_size=64, num_layers=2, intermediate_size=128, episodes=1500, noise=1)
)
SAMPLING = SamplingConfig(max_tokens=12)
STRATEGY = build(settings(strategy="crbc"))
FILTER, OBJECTIVE, LEARNER = FilterConfig(), Objective(), LearnerConfig(lr=3e-4, threads=1)
NUM_GROUPS, GROUP_SIZE = 8, 8


# 1. The policy: a small Llama that speaks the answer format. In a run: learner/first_policy/model.py makes it, vLLM
#    samples from it (actors/vllm.py) and DeepSpeed trains a second copy (learner/zero/actor_critic.py).
class Policy:
    """A language model with its token layout; `version` counts the updates that made its weights."""

    def __init__(self) -> None:
        limits = ResponseLimits(max_tokens=SAMPLING.max_tokens, max_turns=3, temperature=SAMPLING.temperature)
        folder = resolve(MODEL, SCENARIOS, Path("runs/models"), limits, print)  # kept there for the next time
        self.model: Any = load_policy(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.dialogue = Dialogue(self.tokenizer)
        self.version = 0

    @torch.no_grad()
    def generate(self, prompts: Sequence[list[int]]) -> list[Completion]:
        """Sample a response to every prompt. Token ids go in; ids, their log-probs and versions come out."""
        rows, logprobs = [list(prompt) for prompt in prompts], [list[float]() for _ in prompts]
        unfinished, stop = list(range(len(rows))), set(self.dialogue.stop_token_ids)
        for _ in range(SAMPLING.max_tokens):
            # Padding stands to the right and attention is causal: no mask is needed.
            ids = pad_sequence([torch.tensor(rows[k]) for k in unfinished], batch_first=True)
            last = torch.tensor([len(rows[k]) - 1 for k in unfinished])
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden[torch.arange(len(last)), last])
            tokens = torch.multinomial((logits / SAMPLING.temperature).softmax(-1), num_samples=1)
            found, _ = token_logprobs(logits.unsqueeze(1), tokens, SAMPLING.temperature)
            for k, token, logprob in zip(unfinished, tokens.flatten().tolist(), found.flatten().tolist(), strict=True):
                rows[k].append(token)
                logprobs[k].append(logprob)
            unfinished = [k for k in unfinished if rows[k][-1] not in stop]
            if not unfinished:
                break
        return [
            Completion(
                response_ids=row[len(prompt) :],
                logprobs=found,
                versions=[VersionSpan(version=self.version, start=0, end=len(found))],
                stopped=row[-1] in stop,
            )
            for prompt, row, found in zip(prompts, rows, logprobs, strict=True)
        ]


# 2. Play: policy and environment take turns. In a run: actors/episode.py, with user code on threads with deadlines.
class Episode:
    """One episode under way."""

    def __init__(self, task: Task, group_id: str, index: int, dialogue: Dialogue) -> None:
        self.env = build_env(task.env, task.options)
        # The start comes from the task's seed, so a group shares it; the luck afterwards is the episode's own.
        later = chance.episode_seed(task.seed, group_id, index)
        reset = observe_reset(chance.reset(self.env, seed=task.seed, later=later))  # checked and typed where it enters
        self.context = Context(dialogue)  # appends ids; what was sampled is never decoded and encoded again
        self.prompt, self.anchor = self.context.open(reset.observation), reset.anchor
        self.turns: list[Turn] = []
        self.outcome: Outcome | None = None
        self.success_reported = False

    def step(self, completion: Completion, text: str) -> None:
        """Let the environment answer a response."""
        step = observe_step(self.env.step(text), text)
        self.turns.append(
            Turn(
                prompt_ids=self.prompt,
                response_ids=completion.response_ids,
                logprobs=completion.logprobs,
                versions=completion.versions,
                anchor=self.anchor,  # the state's name, in which the episodes of a group meet
                next_anchor=step.anchor,
                action=step.action,
                reward=step.reward,
                stopped=completion.stopped,
            )
        )
        if step.terminated:
            self.outcome = "success" if step.success else "failure"  # whether it pulled the better arm, for people
            self.success_reported = step.success_trains  # it is not: credit goes by what the pulls paid
        self.anchor = step.anchor
        self.prompt = self.context.extend(completion.response_ids, completion.stopped, step.observation)


def arm(turn: Turn) -> str:
    """What a turn did, in words."""
    if turn.action is None:
        return "no valid answer"
    return "better arm" if turn.action.capitalize() in WILD_NAMES else "other arm"


def play(policy: Policy, tasks: dict[str, Task]) -> list[Group]:
    """Every task several times, all side by side. In a run: actors/worker.py, groups meet in cluster/replay."""
    episodes = [
        (name, i, Episode(task, name, i, policy.dialogue)) for name, task in tasks.items() for i in range(GROUP_SIZE)
    ]
    while unfinished := [episode for _, _, episode in episodes if episode.outcome is None]:
        for episode, completion in zip(unfinished, policy.generate([e.prompt for e in unfinished]), strict=True):
            episode.step(completion, policy.tokenizer.decode(completion.response_ids, skip_special_tokens=True))
    played: dict[str, list[Trajectory]] = {name: [] for name in tasks}
    for name, i, episode in episodes:
        assert episode.outcome is not None
        played[name].append(
            Trajectory(
                task=tasks[name],
                group_id=name,
                index=i,
                turns=episode.turns,
                outcome=episode.outcome,
                success_reported=episode.success_reported,
            )
        )
    return [Group(group_id=name, task=tasks[name], trajectories=found) for name, found in played.items()]


# 3. Credit: what each turn earned. In a run: `LearnerRank.train` in learner/loop.py.
def credited(groups: Sequence[Group]) -> tuple[list[Verdict], list[Group], list[Credit]]:
    """A verdict on every group; those that are kept, and the advantages of their turns."""
    # Only states, actions and rewards go in (learner/credit/assignment.py). One advantage per turn comes out: what its
    # action was worth more than its state, judged by the whole group (learner/credit/strategies/crbc.py).
    credit_groups = [from_group(group) for group in groups]
    credits = [STRATEGY.assign(credit_group) for credit_group in credit_groups]
    # A group in which nothing differs teaches nothing (learner/credit/filter.py).
    verdicts = keep_groups(credit_groups, credits, FILTER)
    kept = [k for k, verdict in enumerate(verdicts) if verdict.keep]
    # One scale for the batch, each turn counted as often as the loss counts it (learner/credit/scaling.py).
    counts = [
        [turn_weights([turn.num_tokens for turn in t.turns], OBJECTIVE.loss.aggregation) for t in group.trajectories]
        for group in (credit_groups[k] for k in kept)
    ]
    on_one_scale = scaled([credits[k] for k in kept], counts, STRATEGY.scaling)
    return verdicts, [groups[k] for k in kept], weighted(on_one_scale, [verdicts[k] for k in kept])


# 4. Loss and step. In a run: `Stepper` in learner/steps.py, over the ranks of learner/zero/zero_model.py.
def update(
    policy: Policy, optimizer: torch.optim.Optimizer, groups: Sequence[Group], credits: Sequence[Credit]
) -> tuple[float, float]:
    """One optimizer step; returns its loss and the norm of its gradient."""
    # Turns whose prompts append become one row of tokens with a mask over the sampled ones (learner/batch/sample.py).
    pool: list[Sample] = []
    for group, credit in zip(groups, credits, strict=True):
        for trajectory, advantages in zip(group.trajectories, credit.total, strict=True):
            pool.extend(samples(trajectory, advantages))
    # Rows become micro-batches of bounded size, equally many for every rank: here one (learner/batch/pack.py).
    (rows,) = pack.plan(pool, num_ranks=1, max_tokens=LEARNER.max_tokens_per_micro_batch)
    # One denominator for the step, so that it does not matter how it is cut into micro-batches (learner/loss/loss.py).
    total = denominator(pool, OBJECTIVE.loss)
    loss, sums = 0.0, dict[str, float]()
    optimizer.zero_grad()
    for batch in map(pack.collate, rows):
        logprobs, entropies = batch_logprobs(policy.model, batch, SAMPLING.temperature)  # learner/zero/policy.py
        # Ratios are taken around the policy at the start of the update, which is the current one in its first step.
        policies = Policies(current=logprobs, proximal=logprobs.detach())
        seen = Entropies(entropies, usual=None, num_turns=1 + int(batch.turn_index.max()))
        terms = objective_terms(batch, policies, seen, objective=OBJECTIVE, total=total)  # learner/loss/objective.py
        terms.loss.backward()  # type: ignore[no-untyped-call]
        loss += float(terms.loss.detach())
        add(sums, parity_sums(batch, logprobs, policy.version))
    # Sampler and learner must agree on the log-probs of the tokens, or the step is refused.
    parity = mean(sums, "parity_current", "tokens_current")
    if parity is None or parity > LEARNER.parity_limit:
        raise ParityError(f"sampler and learner differ by {parity} nats per token")
    grad_norm = float(torch.nn.utils.clip_grad_norm_(policy.model.parameters(), LEARNER.grad_clip))
    optimizer.step()
    policy.version += 1  # in a run the engines get the new weights (cluster/pools/weights.py)
    return loss, grad_norm


# 5. The loop. In a run: cluster/run.py, where workers go on playing while the learner trains.
def train(iterations: int, seed: int) -> tuple[list[float], dict[str, list[float]]]:
    """Play, credit, step, as often as asked.

    Returns the share of successes in every iteration, and the advantages of the turns of successful episodes by what
    the turn did. One advantage for a whole episode could not tell these turns apart.
    """
    torch.set_num_threads(LEARNER.threads)
    torch.manual_seed(seed)
    policy, scenarios = Policy(), ScenarioSet(SCENARIOS)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=LEARNER.lr, weight_decay=LEARNER.weight_decay)
    successes, earned = list[float](), {"better arm": list[float](), "other arm": [], "no valid answer": []}
    for n in range(iterations):
        numbers = range(n * NUM_GROUPS, (n + 1) * NUM_GROUPS)
        groups = play(policy, {f"g{number:08d}": scenarios.schedule(number) for number in numbers})
        verdicts, kept, credits = credited(groups)
        loss, grad_norm = update(policy, optimizer, kept, credits) if kept else (0.0, 0.0)  # nothing kept: no step
        episodes = [trajectory for group in groups for trajectory in group.trajectories]
        successes.append(fmean(episode.outcome == "success" for episode in episodes))
        print(
            f"iteration {n + 1}/{iterations}  success {successes[-1]:.0%}  "
            f"reward {fmean(episode.reward for episode in episodes):.3f}  "
            f"within-group std {fmean(verdict.score for verdict in verdicts):.3f}  "
            f"loss {loss:+.3f}  gradient norm {grad_norm:.2f}",
            flush=True,
        )
        for group, credit in zip(kept, credits, strict=True):
            for trajectory, advantages in zip(group.trajectories, credit.total, strict=True):
                if trajectory.outcome == "success":
                    for turn, advantage in zip(trajectory.turns, advantages, strict=True):
                        earned[arm(turn)].append(float(advantage))
    return successes, earned


def main() -> None:
    """Train, and print what happens."""
    parser = argparse.ArgumentParser(description="Train a tiny language model on a two-armed bandit, in one process.")
    parser.add_argument("--iterations", type=int, default=30, help="updates of the policy (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling (default: %(default)s)")
    options = parser.parse_args()
    _, earned = train(options.iterations, options.seed)
    print("what a turn of a successful episode earned, mean over the run:")
    for did, advantages in earned.items():
        if advantages:
            print(f"  {did:15}  {fmean(advantages):+.2f}  ({len(advantages)} turns)")


if __name__ == "__main__":
    main()
