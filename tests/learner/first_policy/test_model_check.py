"""A model folder that cannot be trained is refused from its files, with one line that names the way out."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from transformers import AutoTokenizer

from milepost.learner.first_policy.model_check import ModelError, check_model, load_tokenizer
from tests.conftest import CHATML

Breaks = Callable[[Path], None]
CONTEXT = 512
USERS_ACT = CHATML.replace("m['role']", "('<|act|>' if m['role'] == 'user' else m['role'])")


@pytest.fixture
def folder(tiny_policy: Path, tmp_path: Path) -> Path:
    """A copy of the small policy that a test may break: 384 rows, 1024 positions."""
    return Path(shutil.copytree(tiny_policy, tmp_path / "model"))


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def config(**changed: Any) -> Breaks:
    return lambda folder: edit(folder / "config.json", **changed)


def write(name: str, text: str) -> Breaks:
    return lambda folder: (folder / name).write_text(text) and None


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def without_a_tensor(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def another_head(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def a_shard_away(folder: Path) -> None:
    weight_map = {"model.norm.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def tokens_without_rows(folder: Path, *, special: bool, template: str = CHATML) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = [f"<|extra_{k}|>" for k in range(384 - len(tokenizer))] + ["<|obs|>", "<|act|>"]
    tokenizer.add_tokens(names, special_tokens=special)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        (write("config.json", "{"), r"config\.json is not JSON \(.*\); copy it again"),
        (write("config.json", "[]"), r"config\.json holds no JSON object"),
        (config(model_type="no_such"), r"the model type 'no_such', which the installed transformers does not know"),
        (config(model_type="t5"), r"the model type 't5', which is no causal language model"),
        (config(quantization_config={"quant_method": "gptq", "bits": 4}), r"quantised \(gptq\), which cannot be train"),
        (config(num_hidden_layers="two"), r"config\.json cannot be used \(.*\); copy it again"),
        (config(num_hidden_layers=3), r"lack model\.layers\.2\.\S+, .*, \S+ and 6 more, which config\.json asks for"),
        (config(vocab_size=400), r"model\.embed_tokens\.weight is \[384, 128\], not \[400, 128\]"),
        (config(max_position_embeddings=256), r"max_model_len = 512 is more than the model's 256 positions.*256 or"),
        (write("tokenizer.json", "{"), r"tokenizer files in \S+ cannot be read \(.*\); copy them again"),
        (cut_short, r"model\.safetensors is not a whole safetensors file \(.*\); copy it again"),
        (write("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"), r"not a whole safetensors file"),
        (without_a_tensor, r"lack model\.norm\.weight, which config\.json asks for; copy all files"),
        (
            another_head,
            r"ties lm_head\.weight to model\.embed_tokens\.weight, but .* differ; set tie_word_embeddings to",
        ),
        (a_shard_away, r"lacks model-00002-of-00002\.safetensors, which model\.safetensors\.index\.json names"),
        (
            lambda folder: tokens_without_rows(folder, special=False),
            r"knows '<\|obs\|>', '<\|act\|>', for which the model's embedding of 384 rows has none; call resize_token",
        ),
        (
            lambda folder: tokens_without_rows(folder, special=True, template=USERS_ACT),
            r"knows '<\|act\|>', for which the model's embedding of 384 rows has none",
        ),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(folder: Path, broken: Breaks, line: str, capfd: Any) -> None:
    check_model(folder, context_tokens=CONTEXT)
    broken(folder)
    with pytest.raises(ModelError, match=line) as refused:
        check_model(folder, context_tokens=CONTEXT)
    assert "\n" not in str(refused.value)
    assert "http" not in str(refused.value).replace("https://git-lfs", "")
    assert capfd.readouterr() == ("", "")


def test_a_name_of_a_hub_is_answered_with_the_command_that_fetches_it() -> None:
    with pytest.raises(
        ModelError, match=r"nothing is downloaded .*: .* `hf download Qwen/Qwen3-0\.6B --local-dir DIR`"
    ):
        check_model(Path("Qwen/Qwen3-0.6B"), context_tokens=CONTEXT)
    with pytest.raises(ModelError, match=r"no folder /no/where; set model\.path to a Hugging Face folder$"):
        check_model(Path("/no/where"), context_tokens=CONTEXT)


def test_a_tokenizer_without_a_chat_template_is_told_so_in_our_words(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(
        ModelError, match=r"has no chat template, as those of base models: .* write chat_template\.jinja"
    ):
        check_model(folder, context_tokens=CONTEXT)


def test_a_whole_folder_tells_its_family_and_its_size_without_reading_the_weights(folder: Path) -> None:
    assert check_model(folder, context_tokens=1024).family == "llama"
    # embedding 384 x 128, two layers of (128 x 128) x 2 + (64 x 128) x 2 + (256 x 128) x 3 and two norms, one norm
    assert check_model(folder, context_tokens=1024).parameters == 384 * 128 + 2 * (49152 + 98304 + 256) + 128


def test_a_special_token_without_a_row_that_nobody_writes_is_no_fault(folder: Path) -> None:
    tokens_without_rows(folder, special=True)  # as Gemma 3's token for images, in its models without images
    check_model(folder, context_tokens=CONTEXT)


def test_scaled_rotary_positions_count_as_the_engine_counts_them(folder: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    edit(folder / "config.json", max_position_embeddings=128, rope_parameters=scaling)
    check_model(folder, context_tokens=512)
    with pytest.raises(ModelError, match="more than the model's 512 positions"):
        check_model(folder, context_tokens=513)


def test_the_tokenizers_own_length_limit_counts_too(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", model_max_length=300)
    with pytest.raises(ModelError, match=r"model's 300 positions \(tokenizer_config"):
        check_model(folder, context_tokens=CONTEXT)


RUNS = "from pathlib import Path\nPath(__file__).with_name('it_ran').touch()\n"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_folder_does_not_run_even_for_a_yes_on_stdin(
    folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, capfd: Any
) -> None:
    (folder / "custom.py").write_text(RUNS + "class Config: ...\nclass Tok: ...\n")
    edit(folder / "config.json", model_type="no_such", auto_map={"AutoConfig": "custom.Config"})
    edit(folder / "tokenizer_config.json", tokenizer_class="Tok", auto_map={"AutoTokenizer": ["custom.Tok", None]})
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 8))
    with pytest.raises(ModelError, match=rf"{file} asks to run code from the folder, which is refused"):
        load_tokenizer(folder) if file == "tokenizer_config.json" else check_model(folder, context_tokens=CONTEXT)
    assert not (folder / "it_ran").exists()
    assert not list(Path(folder).parent.rglob("it_ran"))
    assert "[y/N]" not in "".join(capfd.readouterr())


def test_classes_that_transformers_has_itself_are_taken_where_a_folder_offers_its_own(folder: Path) -> None:
    (folder / "custom.py").write_text(RUNS)  # as in Phi 3, which transformers knows by now
    edit(folder / "config.json", auto_map={"AutoConfig": "custom.Config"})
    check_model(folder, context_tokens=CONTEXT)
    assert not (folder / "it_ran").exists()
