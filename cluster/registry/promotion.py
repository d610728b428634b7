"""From a run or a file of results to a decision: what is compared, with which champion, and what the trail is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from milepost.cluster.base.exits import ConfigError, GateRefused
from milepost.cluster.base.files import file_sha256
from milepost.cluster.evaluation import store
from milepost.cluster.evaluation.results import ALL, Results
from milepost.cluster.registry import gate as gates
from milepost.cluster.registry.gate import Gate
from milepost.cluster.registry.judgement import measured, require_fit, unmet
from milepost.cluster.registry.registry import RESULTS, Evidence, Registry, State
from milepost.cluster.registry.trail import Lineage, Refused
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.saved_policy import digest, pinned_policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A policy, and what it did on a suite."""

    name: str
    policy: Path
    config: Path | None
    results_file: Path
    results: Results


@contextlib.contextmanager
def candidate(name: str, runs_dir: Path) -> Iterator[Candidate]:
    """What `name` means: a run with its newest results, or a file of results (or its folder) of a run or model folder.

    A run's policy is held while it is looked at. Raises ConfigError.
    """
    path = store.locate(name, runs_dir)
    results = store.read(path)
    source = Path(results.policy.source)
    if (source / "config.json").is_file():
        yield Candidate(name=name, policy=source, config=None, results_file=path, results=results)
        return
    run = runs.find(runs_dir, results.policy.source)
    with pinned_policy(run) as (policy, _):
        yield Candidate(name=name, policy=policy, config=run.resolved, results_file=path, results=results)


def promote(registry: Registry, found: Candidate, gate_file: Path, champion_results: Path | None) -> int:
    """The version that the candidate becomes.

    Raises GateRefused with a line for each limit that it does not meet, ConfigError where it cannot be judged.
    `champion_results` are the champion's, where those that it was promoted with are of another suite.
    """
    gate, gate_sha256 = gates.load(gate_file)
    sha256 = digest(found.policy)
    require_fit(found.results, found.name, gate, sha256)
    registry.make()
    with registry.lock():
        state = registry.state()
        reasons = unmet(gate, found.results, _champion(registry, state, gate, champion_results, sha256))
        if reasons:
            registry.record(_refused(found, gate_sha256, reasons))
            where = f"{found.name}, policy version {found.results.policy.version}"
            raise GateRefused("\n".join(f"{where}, does not pass {gate_file}: {reason}" for reason in reasons))
        evidence = Evidence(results=found.results_file, gate=gate_file, config=found.config)
        return registry.promote(found.policy, evidence, _lineage(found, gate_sha256))


def _champion(
    registry: Registry, state: State, gate: Gate, given: Path | None, candidate_sha256: str
) -> Results | None:
    """The champion's results of the gate's suite; None where there is no champion. Raises ConfigError."""
    if (version := state.champion) is None:
        if given is not None:
            raise ConfigError(f"--champion {given}: {registry.path} has no champion; leave it out")
        return None
    lineage = state.promotions[version].lineage
    if lineage.policy_sha256 == candidate_sha256:
        raise ConfigError(f"{registry.path}: version {version}, the champion, is this very policy already")
    path = given or registry.folder(version) / RESULTS
    if given is None and file_sha256(path) != lineage.results_sha256:
        raise ConfigError(
            f"{path} was changed since version {version} was promoted; give the champion's with --champion"
        )
    results = store.read(path)
    if given is None and gate.relative and results.suite.sha256 != gate.suite:
        raise ConfigError(
            f"version {version}, the champion, was judged by suite {results.suite.name} with hash "
            f"{results.suite.sha256[:12]}, the gate asks for {gate.suite[:12]}; play that suite with "
            f"{registry.folder(version)}/policy (milepost eval --suite), and give its results with --champion"
        )
    if gate.relative:
        require_fit(results, f"version {version}, the champion", gate, lineage.policy_sha256)
    return results


def _lineage(found: Candidate, gate_sha256: str) -> Lineage:
    policy, suite = found.results.policy, found.results.suite
    return Lineage(
        source=policy.source,
        policy_version=policy.version,
        policy_sha256=policy.sha256,
        config_sha256=None if found.config is None else file_sha256(found.config),
        suite=suite.name,
        suite_sha256=suite.sha256,
        results_sha256=file_sha256(found.results_file),
        gate_sha256=gate_sha256,
        measured=measured(found.results.buckets[ALL]),
    )


def _refused(found: Candidate, gate_sha256: str, reasons: list[str]) -> Refused:
    policy = found.results.policy
    return Refused(
        source=policy.source,
        policy_version=policy.version,
        policy_sha256=policy.sha256,
        gate_sha256=gate_sha256,
        reasons=reasons,
    )
