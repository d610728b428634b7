"""What `milepost doctor` finds about an environment is what a run would be refused for."""

from milepost.cluster.doctor import examine
from milepost.cluster.settings.config import RunConfig


def test_an_environment_that_would_end_the_program_is_a_finding() -> None:
    for where in ("constructor", "close"):
        env = {"path": "tests.actors.checked_envs:Leaves", "options": {"where": where, "error": "SystemExit"}}
        findings = examine(RunConfig.model_validate({"env": env}))
        [found] = [finding for finding in findings if "Leaves" in finding.what]
        assert (found.level, "SystemExit: out" in found.what) == ("fail", True)


def test_a_reward_that_cannot_be_loaded_is_a_finding() -> None:
    findings = examine(RunConfig.model_validate({"reward": {"path": "no.such:reward"}}))
    [found] = [finding for finding in findings if "reward.path" in finding.what]
    assert found.level == "fail"
    assert "no module named 'no'" in found.what
