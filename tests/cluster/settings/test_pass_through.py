"""`[engine.vllm]` and `[learner.deepspeed]`: what is passed on, what is refused, and that the names are theirs."""

import ast
from pathlib import Path
from typing import Any

import pytest

from milepost.actors.installed_vllm import argument_names
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.settings.config import config_hash, dump, load, refuse_change
from milepost.cluster.settings.pass_through import KEYS_OF_DEEPSPEED, RULES_OF_DEEPSPEED, RULES_OF_VLLM

ROOT = Path(__file__).parents[3]
WITHOUT_A_PLACE = {
    *("autotuning", "compile", "data_efficiency", "dataloader_drop_last", "datastates_ckpt", "hybrid_engine"),
    *("vocabulary_size", "weight_quantization"),
}
"""What DeepSpeed reads for programs that it drives in another way than Milepost."""


def written(path: Path, text: str) -> Path:
    path = path / "run.toml"
    path.write_text(text)
    return path


def test_keys_that_have_no_name_here_reach_the_config_by_file_and_by_override(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "[engine]\nnum_engines = 2\n[engine.vllm]\nblock_size = 32\n[engine.vllm.compilation_config]\nmode = 0\n"
        "[learner.deepspeed.zero_optimization]\noverlap_comm = false\n",
    )
    more = ["engine.vllm.block_size=16", "learner.deepspeed.optimizer.params.betas=[0.9, 0.95]"]
    config = load(path, more)
    assert config.engine.vllm == {"block_size": 16, "compilation_config": {"mode": 0}}
    deepspeed = {"zero_optimization": {"overlap_comm": False}, "optimizer": {"params": {"betas": [0.9, 0.95]}}}
    assert config.learner.deepspeed == deepspeed
    dump(config, tmp_path / "resolved.toml")
    assert load(tmp_path / "resolved.toml") == config
    assert config_hash(config) != config_hash(load(path))
    with pytest.raises(ConfigError, match=r"engine\.vllm\.block_size was 16 and is now 32"):
        refuse_change(config, load(path, more[1:]))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("engine.vllm.dtype=half", "engine.vllm.dtype is not passed on to vLLM: it is ruled by engine.dtype"),
        ("engine.vllm.trust_remote_code=true", "ruled by nothing (code that comes with a model is never run)"),
        ("engine.vllm.blok_size=16", "no setting of vLLM that is passed on; did you mean engine.vllm.block_size?"),
        ("engine.vllm.max_model_length=9", "did you mean engine.vllm.max_model_len?"),
        (
            "learner.deepspeed.gradient_clipping=2.0",
            "learner.deepspeed.gradient_clipping is not passed on to DeepSpeed: it is ruled by learner.grad_clip",
        ),
        ("learner.deepspeed.zero_optimization.stage=1", "it is ruled by learner.zero_stage"),
        ("learner.deepspeed.optimizer.params.lr=1.0", "it is ruled by learner.lr"),
        (
            "learner.deepspeed.zero_optimization.offload_optimizer.ratio=0.5",
            "no setting of DeepSpeed that is passed on; did you mean "
            "learner.deepspeed.zero_optimization.offload_optimizer.device?",
        ),
        (
            "learner.deepspeed.zero_optimization.offload_parm.device=cpu",
            "did you mean learner.deepspeed.zero_optimization.offload_param?",
        ),
        (
            "learner.deepspeed.zero_optimization.offload_param.devise=cpu",
            "did you mean learner.deepspeed.zero_optimization.offload_param.device?",
        ),
        ("learner.deepspeed.zero_optimisation.overlap_comm=true", "did you mean learner.deepspeed.zero_optimization?"),
        ("learner.deepspeed.optimizer=Adam", "learner.deepspeed.optimizer = 'Adam' is not a table"),
    ],
)
def test_what_is_ruled_here_or_known_to_nobody_is_refused_by_name_in_one_line(
    override: str, line: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(written(tmp_path, ""), [override])
    assert str(refused.value).endswith(line)
    assert "\n" not in str(refused.value)


def test_every_argument_that_the_engine_sets_is_ruled_by_name() -> None:
    """But for the block size, which is only another default on CPU."""
    tree = ast.parse((ROOT / "actors" / "vllm.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    (arguments,) = [call for call in calls if call.func.id == "AsyncEngineArgs"]  # type: ignore[attr-defined]
    (placement,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "_placement"]
    keys = [key for node in ast.walk(placement) if isinstance(node, ast.Dict) for key in node.keys]
    placed = {key.value for key in keys if isinstance(key, ast.Constant)} - {"block_size"}
    assert "gpu_memory_utilization" in placed
    assert {keyword.arg for keyword in arguments.keywords if keyword.arg} | placed <= RULES_OF_VLLM.keys()


def test_names_read_from_the_source_of_vllm_are_those_of_its_class() -> None:
    assert {"block_size", "enable_log_requests"} | RULES_OF_VLLM.keys() <= argument_names()
    assert not [name for name in argument_names() if name.startswith("_") and not name.startswith("_api")]


def test_names_of_deepspeed_are_those_that_it_asks_its_configuration_for() -> None:
    from deepspeed.runtime import config as theirs
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    asked = asked_by(theirs.DeepSpeedConfig) - theirs._REMOVED_TOP_LEVEL_CONFIG_KEYS.keys()
    ours = {key for key in RULES_OF_DEEPSPEED if "." not in key} | set(KEYS_OF_DEEPSPEED[""])
    assert ours | WITHOUT_A_PLACE == asked
    for table, model in {
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
    }.items():
        assert set(KEYS_OF_DEEPSPEED[table]) <= {field.alias or name for name, field in model.model_fields.items()}


def asked_by(config_class: Any) -> set[str]:
    """The names at the top level that it looks for in the dictionary it is made of."""
    asked: set[str] = set()

    class Asked(dict[str, Any]):
        def __contains__(self, key: object) -> bool:
            asked.add(str(key))
            return super().__contains__(key)

        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return super().get(key, default)

        def keys(self) -> Any:
            return self

    config_class(Asked(train_micro_batch_size_per_gpu=1))
    return asked
