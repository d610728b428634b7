"""Memory of three models on four kinds of hardware, against numbers computed by hand (docs/placement.md, "By hand")."""

import json

import pytest

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.placement import dry_run, memory
from milepost.cluster.placement.hosts import Build, Host
from milepost.cluster.placement.memory import CONTEXT_GIB, total
from milepost.cluster.placement.size import ModelSize, size_of_folder, size_of_warmup
from milepost.cluster.settings.config import RunConfig
from milepost.learner.first_policy.config import WarmupConfig
from milepost.learner.lora import LoraConfig

SHAPES = {
    "Qwen2.5-1.5B": ("qwen2", 1536, 28, 12, 2, 8960, 151936, True),
    "Llama-3-8B": ("llama", 4096, 32, 32, 8, 14336, 128256, False),
    "Qwen2.5-32B": ("qwen2", 5120, 64, 40, 8, 27648, 152064, False),
}
PARAMETERS = {
    # embedding 151936 x 1536, head tied; 28 layers of q 1536 x 1537, k and v 2 x 256 x 1537, o 1536^2,
    # mlp 3 x 1536 x 8960, norms 2 x 1536; norm 1536
    "Qwen2.5-1.5B": 233_373_696 + 28 * (2_360_832 + 786_944 + 2_359_296 + 41_287_680 + 3_072) + 1_536,
    # embedding and head 2 x 128256 x 4096; 32 layers of q and o 2 x 4096^2, k and v 2 x 1024 x 4096,
    # mlp 3 x 4096 x 14336, norms 2 x 4096; norm 4096
    "Llama-3-8B": 1_050_673_152 + 32 * (33_554_432 + 8_388_608 + 176_160_768 + 8_192) + 4_096,
    # embedding and head 2 x 152064 x 5120; 64 layers of q 5120 x 5121, k and v 2 x 1024 x 5121, o 5120^2,
    # mlp 3 x 5120 x 27648, norms 2 x 5120; norm 5120
    "Qwen2.5-32B": 1_557_135_360 + 64 * (26_219_520 + 10_487_808 + 26_214_400 + 424_673_280 + 10_240) + 5_120,
}
ONE, TWO, EIGHT, FOUR_BY_EIGHT = [Host(64, 1)], [Host(64, 2)], [Host(64, 8)], [Host(64, 8)] * 4
CUDA = Build(engine=True, learner=True)
GPU_GIB, HOST_GIB = 80.0, 1000.0


def told_of(name: str) -> dict[str, object]:
    """The model's config.json."""
    kind, hidden, layers, heads, kv_heads, intermediate, vocabulary, tied = SHAPES[name]
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSize]:
    found = {}
    for name in SHAPES:
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps(told_of(name)))
        found[name] = size_of_folder(folder, LoraConfig())
    return found


def run_on(hosts: list[Host], **learner: object) -> RunConfig:
    """bfloat16 throughout, 8,192 tokens in a pass with recomputed activations, a context of 4,096."""
    engines, tensor_parallel, ranks, stage, utilization = {
        1: (1, 1, 1, 2, 0.25),
        2: (1, 1, 1, 2, 0.85),
        8: (2, 2, 4, 3, 0.85),
        32: (8, 2, 16, 3, 0.85),
    }[sum(host.gpus for host in hosts)]
    return RunConfig.model_validate(
        {
            "engine": {
                "num_engines": engines,
                "tensor_parallel_size": tensor_parallel,
                "gpu_memory_utilization": utilization,
                "dtype": "bfloat16",
                "max_model_len": 4096,
                "transfer": "nccl" if len(hosts) > 1 else "file",
            },
            "learner": {
                "ranks": ranks,
                "zero_stage": stage,
                "dtype": "bfloat16",
                "gradient_checkpointing": True,
                "max_tokens_per_micro_batch": 8192,
                **learner,
            },
            "buffer": {"url_env": "REDIS"},
        }
    )


def hardware(hosts: list[Host], host_gib: float = HOST_GIB) -> dry_run.Hardware:
    return dry_run.Hardware(hosts, CUDA, GPU_GIB, host_gib)


def test_parameters_are_counted_off_the_configuration_alone(sizes: dict[str, ModelSize]) -> None:
    assert {name: size.parameters for name, size in sizes.items()} == PARAMETERS
    assert PARAMETERS == {
        "Qwen2.5-1.5B": 1_543_714_304,
        "Llama-3-8B": 8_030_261_248,
        "Qwen2.5-32B": 32_763_876_352,
    }


def test_a_rank_holds_what_its_zero_stage_leaves_it(sizes: dict[str, ModelSize]) -> None:
    """P = 7.47876 Gi parameters of the 8B. Stage 3 over 4 ranks splits everything, stage 2 all but the weights."""
    size = sizes["Llama-3-8B"]
    third = memory.rank_items(run_on(EIGHT), size, on_gpu=True)
    assert {item.what: round(item.gib, 3) for item in third} == {
        "weights, bfloat16": 3.739,  # 2 P / 4
        "gradients, float32": 7.479,  # 4 P / 4
        "master weights, float32": 7.479,  # 4 P / 4
        "Adam's moments, float32": 14.958,  # 8 P / 4
        "buckets of ZeRO": 2.794,  # 2 x (5e8 + 1e9)
        "activations (estimate)": 3.406,  # 2 x 8192 x (32 x 4096 + 8 x 4096 + 2 x 1024 + 4 x 14336)
        "log-probs (estimate)": 2.202,  # (2 x 1024 + 4 x 4096) x 128256
    }
    second = memory.rank_items(run_on(EIGHT, zero_stage=2), size, on_gpu=True)
    assert total(second) - total(third) == pytest.approx(14.9575 * 3 / 4 - 2e9 / 2**30, abs=1e-3)
    plain = memory.rank_items(run_on(EIGHT, zero_stage=0, dtype="float32"), size, on_gpu=True)
    assert [(item.what, round(item.gib, 3)) for item in plain][:3] == [
        ("weights, float32", 29.915),  # 4 P
        ("gradients, float32", 29.915),
        ("Adam's moments, float32", 59.83),  # 8 P, and the weights are their own masters
    ]


def with_kl(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"loss": config.loss.model_copy(update={"kl_coef": 0.1})})


def test_a_critic_is_a_whole_model_more_and_a_reference_its_weights(sizes: dict[str, ModelSize]) -> None:
    """P = 1.437696 Gi parameters of the 1.5B; activations of 8192 tokens 1.398438 GiB."""
    size, config = sizes["Qwen2.5-1.5B"], run_on(TWO)
    base = total(memory.rank_items(config, size, on_gpu=True))
    valued = RunConfig.model_validate(config.model_dump() | {"credit": {"strategy": "bilevel_gae"}})
    assert total(memory.rank_items(valued, size, on_gpu=True)) - base == pytest.approx(18 * 1.437696, abs=1e-5)
    # on a GPU only while it is asked: what 2 P exceed the activations by; without one all the time
    asked = total(memory.rank_items(with_kl(config), size, on_gpu=True)) - base
    assert asked == pytest.approx(2 * 1.437696 - 1.398438, abs=1e-5)
    kept = total(memory.rank_items(with_kl(config), size, on_gpu=False)) - base
    assert kept == pytest.approx(2 * 1.437696, abs=1e-5)
    # with ZeRO 3 over 4 ranks its share, 2 P / 4
    third = run_on(EIGHT)
    items = {item.what: item.gib for item in memory.rank_items(with_kl(third), size, on_gpu=True)}
    assert items["reference's share, bfloat16"] == pytest.approx(0.718848, abs=1e-5)


def test_what_deepspeed_offloads_lies_on_the_host(sizes: dict[str, ModelSize]) -> None:
    size, config = sizes["Llama-3-8B"], run_on(EIGHT)
    table = {"offload_param": {"device": "cpu"}, "stage3_max_live_parameters": 100_000_000}
    cheaper = run_on(EIGHT, deepspeed={"zero_optimization": table})
    on_gpu = [total(memory.rank_items(each, size, on_gpu=True)) for each in (config, cheaper)]
    assert on_gpu[0] - on_gpu[1] == pytest.approx(3.73938 + 2 * 0.9e9 / 2**30, abs=1e-4)  # 2 P / 4
    _, accounts = dry_run.plan(cheaper, size, hardware(EIGHT))
    items = {item.what: item.gib for item in accounts[-1].items}
    assert items["offload_param of 4 ranks"] == pytest.approx(4 * 3.73938, abs=1e-3)
    smaller = run_on(EIGHT, deepspeed={"zero_optimization": {"offload_optimizer": {"device": "cpu"}}})
    assert on_gpu[0] - total(memory.rank_items(smaller, size, on_gpu=True)) == pytest.approx(29.91504, abs=1e-4)
    _, accounts = dry_run.plan(smaller, size, hardware(EIGHT))
    items = {item.what: item.gib for item in accounts[-1].items}
    assert items["offload_optimizer of 4 ranks"] == pytest.approx(4 * 29.91504, abs=1e-3)  # 16 P / 4 each


def test_a_row_longer_than_a_micro_batch_is_told_where_its_pass_does_not_fit(sizes: dict[str, ModelSize]) -> None:
    config = run_on(TWO)
    long = config.model_copy(update={"engine": config.engine.model_copy(update={"max_model_len": 131072})})
    _, accounts = dry_run.plan(long, sizes["Llama-3-8B"], hardware(TWO))
    items = {item.what: item.gib for item in accounts[-2].items}
    # 2 x 131072 x (32 x 4096 + 8 x 4096 + 2 x 1024 + 4 x 14336)
    assert items["activations (estimate)"] == pytest.approx(54.5, abs=1e-6)
    told = dry_run.too_small(long, sizes["Llama-3-8B"], accounts)[-1]
    assert told.endswith(
        "lower engine.max_model_len = 131072, for a row of so many tokens passes whole, though "
        "learner.max_tokens_per_micro_batch = 8192"
    )


def test_without_recomputation_the_activations_of_every_layer_stay(sizes: dict[str, ModelSize]) -> None:
    kept = memory.rank_items(run_on(TWO, gradient_checkpointing=False), sizes["Qwen2.5-1.5B"], on_gpu=True)
    # 2 x 8192 x 28 x (8 x 1536 + 2 x 256 + 4 x 8960)
    assert {item.what: item.gib for item in kept}["activations (estimate)"] == pytest.approx(20.7812, abs=1e-4)


RANK = {
    # 18 P + 2 x 5e8 + activations + log-probs + context: over 1 rank
    ("Qwen2.5-1.5B", 1): 30.867,
    ("Llama-3-8B", 1): 142.657,
    ("Qwen2.5-32B", 1): 562.213,
    # 18 P / 4 + 2 x (5e8 + 1e9) + ...
    ("Qwen2.5-1.5B", 4): 13.321,
    ("Llama-3-8B", 4): 43.556,
    ("Qwen2.5-32B", 4): 152.140,
    # 18 P / 16 + ...
    ("Qwen2.5-1.5B", 16): 8.469,
    ("Llama-3-8B", 16): 18.315,
    ("Qwen2.5-32B", 16): 49.156,
}
KV_CACHE = {
    # 0.25 x 80 - 3 - 2 P
    ("Qwen2.5-1.5B", 1): 14.125,
    ("Llama-3-8B", 1): 2.042,
    ("Qwen2.5-32B", 1): -44.027,
    # 0.85 x 80 - 3 - 2 P
    ("Qwen2.5-1.5B", 2): 62.125,
    ("Llama-3-8B", 2): 50.042,
    ("Qwen2.5-32B", 2): 3.973,
    # 0.85 x 80 - 3 - 2 P / 2, on 8 and on 32 GPUs
    ("Qwen2.5-1.5B", 8): 63.562,
    ("Llama-3-8B", 8): 57.521,
    ("Qwen2.5-32B", 8): 34.486,
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("hosts", [ONE, TWO, EIGHT, FOUR_BY_EIGHT], ids=["1", "2", "8", "4x8"])
def test_gpus_hold_what_was_computed_by_hand(sizes: dict[str, ModelSize], name: str, hosts: list[Host]) -> None:
    config, gpus = run_on(hosts), sum(host.gpus for host in hosts)
    _, accounts = dry_run.plan(config, sizes[name], hardware(hosts))
    rank, cache = RANK[name, config.learner.ranks], KV_CACHE[name, min(gpus, 8)]
    engine = config.engine.gpu_memory_utilization * GPU_GIB
    on_gpus = {account.title: total(account.items) for account in accounts if "GPU" in account.title}
    of_one = {"each of 1 GPUs with an engine and a rank": engine + rank}
    of_several = {
        f"each of {config.engine.num_engines * config.engine.tensor_parallel_size} GPUs of engines": engine,
        f"each of {config.learner.ranks} GPUs of learner ranks": rank,
    }
    assert on_gpus == pytest.approx(of_one if gpus == 1 else of_several, abs=2e-3)
    assert accounts[0].items[2].what == "engine's KV cache"
    assert accounts[0].items[2].gib == pytest.approx(cache, abs=2e-3)
    refused = dry_run.too_small(config, sizes[name], accounts)
    sequence = {"Qwen2.5-1.5B": 0.109375, "Llama-3-8B": 0.5, "Qwen2.5-32B": 1.0}[name]  # 4 x layers x kv width x 4096
    fits = max(on_gpus.values()) <= GPU_GIB and cache >= sequence
    assert (refused == []) == fits
    assert fits == (name == "Qwen2.5-1.5B" or gpus == 32 or (name == "Llama-3-8B" and gpus == 8))


def test_hosts_of_a_cluster_hold_what_was_computed_by_hand(sizes: dict[str, ModelSize]) -> None:
    where, accounts = dry_run.plan(run_on(FOUR_BY_EIGHT), sizes["Qwen2.5-32B"], hardware(FOUR_BY_EIGHT))
    assert where == [
        "8 engines x tensor parallel 2, 16 learner ranks (ZeRO 3), 1 workers: 32 GPUs and 25 CPUs in 25 bundles",
        "host 0, with the driver: engines 0 to 3, worker 0",
        "host 1: engines 4 to 7",
        "host 2: learner ranks 0 to 7",
        "host 3: learner ranks 8 to 15",
    ]
    on_hosts = [total(account.items) for account in accounts if "host" in account.title]
    # driver 2 + 5 processes; 4 processes; 8 processes, twice, whose models are split as they are made
    assert on_hosts == pytest.approx([7, 4, 8, 8], abs=1e-2)


def test_a_single_host_holds_the_buffer_and_the_weights_on_their_way_too(sizes: dict[str, ModelSize]) -> None:
    config = run_on(EIGHT, zero_stage=2).model_copy(update={"buffer": RunConfig().buffer})
    _, accounts = dry_run.plan(config, sizes["Llama-3-8B"], hardware(EIGHT))
    assert {item.what: round(item.gib, 2) for item in accounts[-1].items} == {
        "driver and Ray (estimate)": 2.0,
        "embedded Redis at its limit": 1.31,
        "weights on their way: two files, rank 0's copy": 44.87,  # 3 x 2 P
        "7 processes (estimate)": 7.0,  # 2 engines, 4 ranks, 1 worker
        "models while 4 ranks load them, bfloat16": 59.83,  # 4 x 2 P
    }


def test_what_does_not_fit_is_refused_by_number_after_the_account(sizes: dict[str, ModelSize]) -> None:
    lines: list[str] = []
    with pytest.raises(ConfigError) as refused:
        lines.extend(dry_run.report(run_on(ONE), sizes["Qwen2.5-32B"], hardware(ONE)))
    cache, gpu = str(refused.value).splitlines()
    assert "engine.gpu_memory_utilization = 0.25 leaves -44.0 GiB for the KV cache, and one sequence" in cache
    assert gpu.startswith(
        "each of 1 GPUs with an engine and a rank: needs 582.2 of 80.0 GiB: engine.gpu_memory_utilization may be 0.00"
    )
    second = run_on(FOUR_BY_EIGHT, zero_stage=2)
    with pytest.raises(ConfigError) as refused:
        list(dry_run.report(second, sizes["Qwen2.5-32B"], hardware(FOUR_BY_EIGHT, 256)))
    # 8 ranks read 2 P each: P = 30.51374 Gi parameters
    assert "\nmemory of host 2: needs 496.2 of 256.0 GiB: spread the parts" in str(refused.value)


def test_an_engine_that_no_host_has_room_for_is_refused(sizes: dict[str, ModelSize]) -> None:
    with pytest.raises(ConfigError, match=r"no host has room for engine 0, which takes 2 GPUs of one host"):
        dry_run.plan(run_on(FOUR_BY_EIGHT), sizes["Llama-3-8B"], hardware([Host(64, 1)] * 32))


def test_gpus_whose_memory_nobody_knows_are_asked_for(sizes: dict[str, ModelSize]) -> None:
    unknown = dry_run.Hardware(TWO, CUDA, 0.0, HOST_GIB)
    with pytest.raises(ConfigError, match=r"how much memory do the 2 GPUs have.*--gpu-memory"):
        next(dry_run.report(run_on(TWO), sizes["Llama-3-8B"], unknown))


def test_without_gpus_everything_lies_in_the_memory_of_the_host() -> None:
    config = RunConfig()
    size = size_of_warmup(WarmupConfig(), LoraConfig())
    cpu = dry_run.Hardware([Host(64, 0)], Build(engine=False, learner=False), 0.0, 24.0)
    _, (host,) = dry_run.plan(config, size, cpu)
    items = {item.what: item.gib for item in host.items}
    assert items["models of 1 ranks"] == pytest.approx(total(memory.rank_items(config, size, on_gpu=False)))
    assert items["KV cache of engines"] == config.engine.kv_cache_gib
    assert CONTEXT_GIB not in items.values()
