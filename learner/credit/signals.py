"""Step signals of other methods, for a user's own strategy: HiPER's two levels, IGPO's gains, 3SPO's state scores.

Pure functions on numbers that the caller has: a critic with two heads, log-probs of the gold answer, or counts of past
visits. No strategy of the house reads those, so nothing calls this. What is not published in full is marked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from milepost.learner.credit.assignment import Floats
from milepost.learner.credit.gae import discounted_sums

MAX_ROLLOUTS = 8
"""3SPO's largest number of rollouts from one state."""
_FEW_FAILURES, _SOME_SUCCESS = 10, 0.1
"""3SPO gives a state up that failed this often and succeeded in no more than this share of its visits."""
_NOVELTY_DECAY = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class HierarchicalDeltas:
    """TD errors of one trajectory of T turns in K segments, each segment following one sub-goal."""

    low: Floats
    """`[T]`, of turns towards the sub-goal of their segment."""
    high: Floats
    """`[K]`, of the choice of a sub-goal."""


def hierarchical_deltas(
    rewards: Floats, low_values: Floats, high_values: Floats, *, starts: Sequence[int], gamma: float
) -> HierarchicalDeltas:
    """TD errors of HiPER (arXiv 2602.16165), from a secondary source; GAE over each level is `discounted_sums`.

        low[t]  = r_t + gamma V_low(t+1) - V_low(t)          the last turn of a segment bootstraps V_high(next start)
        high[k] = sum_{t=b}^{e-1} gamma^(t-b) r_t + gamma^(e-b) V_high(e) - V_high(b)         segment k is turns b..e-1

    Nothing follows the last turn: its next value is 0 on both levels, also at a time limit.

    Args:
        rewards: `[T]`.
        low_values: `[T]`, before each turn, given the sub-goal in force.
        high_values: `[K]`, before the first turn of each segment, given no sub-goal.
        starts: K turns at which a segment starts; the first is 0.

    Raises:
        ValueError: lengths differ, or `starts` does not rise from 0 to below T.
    """
    bounds = [*starts, len(rewards)]
    rises = all(a < b for a, b in itertools.pairwise(bounds))
    if not starts or starts[0] != 0 or not rises or (len(low_values), len(high_values)) != (len(rewards), len(starts)):
        raise ValueError(
            f"{len(rewards)} rewards, {len(low_values)} low and {len(high_values)} high values for segments that start "
            f"at {list(starts)}: starts must rise from 0, with a low value per turn and a high value per segment"
        )
    lengths = np.diff(bounds)
    next_high = np.append(high_values[1:], 0.0)
    next_low = np.append(low_values[1:], 0.0)
    next_low[np.array(bounds[1:]) - 1] = next_high
    earned = [discounted_sums(part, rate=gamma)[0] for part in np.split(rewards, starts[1:])]
    return HierarchicalDeltas(
        low=rewards + gamma * next_low - low_values, high=np.array(earned) + gamma**lengths * next_high - high_values
    )


def switch_advantages(has_switched: Floats, switch_probability: Floats, high: Floats, low: Floats) -> Floats:
    """`[T]`: `(q - beta)(V_high(s) - V_low(s, o_prev))`, HiPER's signal for keeping or leaving a sub-goal.

    Args:
        has_switched: `[T]`, q: 1 where the turn chose a new sub-goal, 0 where it kept the previous one.
        switch_probability: `[T]`, beta: the policy's probability of switching there.
        high: `[T]`, value of the state with the sub-goal still open.
        low: `[T]`, value of the state under the previous sub-goal.
    """
    return (has_switched - switch_probability) * (high - low)


def information_gains(answer_logprobs: Sequence[Floats]) -> Floats:
    """`[T]`: `p_t - p_{t-1}` with `p = exp(mean log-prob of the gold answer's tokens | history)`; the reward of IGPO.

    Source: arXiv 2510.14967. It needs a gold answer, and a pass that scores it after every turn. Without a discount the
    gains telescope to `p_T - p_0`. The last turn's own reward, the F1 of its answer, is the caller's to add.

    Args:
        answer_logprobs: T + 1 arrays `[n]` in nats: before the first turn, then after each turn.

    Raises:
        ValueError: no array, or an empty one.
    """
    if not answer_logprobs or any(len(logprobs) == 0 for logprobs in answer_logprobs):
        raise ValueError("a gold answer needs at least one token, scored before the first turn and after each turn")
    return np.diff(np.exp([np.mean(logprobs) for logprobs in answer_logprobs]))


@dataclass(frozen=True, slots=True)
class StateCounts:
    """Trajectories that passed through a state so far, each once. Raises ValueError unless 0 <= successes <= visits."""

    visits: int
    successes: int

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.visits:
            raise ValueError(f"{self.successes} successes in {self.visits} visits of a state")


def learning_potential(state: StateCounts, *, clock: int, alpha: float = 1.0) -> float:
    """3SPO's score `S(s) = exp(-alpha ln(t) N_succ / N)` in [0, 1] (arXiv 2606.09961): what is left to learn there.

    0 for a state given up: at least 10 failures, and success in no more than a tenth of the visits; 1 for one never
    seen. The public code is shipped with alpha = 50, so that one success in four visits leaves 3e-13 and a single
    rollout; ours is 1, the default of its class. It also adds 1e-6 to N, which is not needed here.

    Args:
        state: counts before the trajectory that is scored; its own outcome is added afterwards.
        clock: t >= 1, one more than the trajectories counted so far.
        alpha: how fast a state is learned, at least 0.

    Raises:
        ValueError: `clock` is below 1.
    """
    if clock < 1:
        raise ValueError(f"clock is {clock}; it starts at 1, before any trajectory")
    if state.visits == 0:
        return 1.0
    share = state.successes / state.visits
    if state.visits - state.successes >= _FEW_FAILURES and share <= _SOME_SUCCESS:
        return 0.0
    return math.exp(-alpha * math.log(clock) * share)


def rollouts_from(potential: float) -> int:
    """`ceil(8 S)`: rollouts that 3SPO branches off a state; 0 ends the trajectory there, 1 goes on untrained."""
    return math.ceil(MAX_ROLLOUTS * potential)


def novelty_weight(visits: int) -> float:
    """`w = exp(-N / 10) / 2` of a state visited N times: the share of 3SPO's reward that is paid for moving on."""
    return 0.5 * math.exp(-_NOVELTY_DECAY * visits)


def state_reward(
    potential: float, next_potential: float, *, visits: int, has_moved: bool, success_reward: float
) -> float:
    """`w 1[s' != s] + (1/2 - w)(S(s) - S(s')) + R / 2`: 3SPO's reward of a turn from s to s'.

    Args:
        potential: S(s) of the state the turn started in, by `learning_potential`.
        next_potential: S(s').
        visits: of s, from which w follows by `novelty_weight`.
        has_moved: whether s' is another state than s.
        success_reward: R, paid where the turn ended in success, else 0.
    """
    weight = novelty_weight(visits)
    return weight * has_moved + (0.5 - weight) * (potential - next_potential) + 0.5 * success_reward
