"""Names of other training programs, and of what is not there, are answered with the key that does it here."""

import pytest

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.settings import peers
from milepost.cluster.settings.config import RunConfig, load
from milepost.cluster.settings.overrides import leaves


@pytest.fixture
def complaint(tmp_path):
    """The lines that refuse a file of this text with these overrides, the folder left out."""

    def told(text, *overrides):
        path = tmp_path / "run.toml"
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(path, overrides)
        return str(caught.value).replace(str(path), "run.toml")

    return told


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("learner.learning_rate=1e-4", "unknown key learner.learning_rate; it is learner.lr here"),
        ("actor_rollout_ref.rollout.n=5", "unknown key actor_rollout_ref.rollout.n; it is run.group_size here"),
        ("num_generations=5", "unknown key num_generations; it is run.group_size here"),
        ("run.n_samples_per_prompt=5", "unknown key run.n_samples_per_prompt; it is run.group_size here"),
        (
            "data.train_batch_size=64",
            "unknown key data.train_batch_size; it is run.groups_per_iteration here (in groups of run.group_size "
            "episodes)",
        ),
        ("lora.r=8", "unknown key lora.r; it is lora.rank here"),
        ("learner.lora_rank=8", "unknown key learner.lora_rank; it is lora.rank here"),
        ("xyzzy.of=1", "unknown key xyzzy; known here: actors, "),
    ],
)
def test_what_other_programs_call_a_setting_is_understood_and_the_override_is_blamed(complaint, override, line):
    message = complaint("", override)
    assert message.startswith(f"--set: {line}")
    assert "\n" not in message


def test_a_section_of_another_program_is_told_key_by_key(complaint):
    assert complaint("[trainer]\ntotal_epochs = 3\nsave_freq = 5\nnnodes = 1\n").splitlines() == [
        "run.toml: unknown key trainer.total_epochs; it is run.iterations here (one iteration is one update)",
        "run.toml: unknown key trainer.save_freq; it is run.checkpoint_every here",
    ]


def test_every_setting_that_another_program_is_told_of_is_there():
    assert {*peers.KEYS.values()} <= {key for key, _ in leaves(RunConfig().model_dump())}
    assert peers.NOTES.keys() <= {*peers.KEYS.values()}


def test_a_key_of_another_strategy_is_not_taken_for_what_other_programs_call_so(complaint):
    assert "loss.kl_coef" not in complaint('[credit]\nstrategy = "starpo"\nbeta = 0.9\n')
    assert "it is loss.kl_coef here" in complaint("", "beta=0.9")
