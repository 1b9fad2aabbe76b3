"""Adapters in one batch against PEFT one by one:
the same logits, the same tokens, whatever shares the step."""

import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.compute import lora  # noqa: E402
from llm_runtime.compute.cache import CacheShape, KvCache, LayerShape  # noqa: E402
from llm_runtime.compute.logits.sampler import Sampler  # noqa: E402
from llm_runtime.compute.lora import AdapterSet  # noqa: E402
from llm_runtime.compute.runner import TransformersRunner  # noqa: E402
from llm_runtime.engine.blocks import BlockPool  # noqa: E402
from llm_runtime.engine.scheduler import Batch, Scheduler, Span  # noqa: E402
from llm_runtime.engine.sequence import Sequence  # noqa: E402
from llm_runtime.loading.adapter import AdapterReader  # noqa: E402
from llm_runtime.loading.load import cached_shapes  # noqa: E402
from llm_runtime.request import GenerationRequest, Sampling  # noqa: E402
from unit.runtime import lora_models  # noqa: E402
from unit.runtime.engine.fakes import CharacterVocabulary  # noqa: E402

PLACES = 12
BLOCKS = 64


def folders(kind: str, root: Path) -> tuple[Path, dict[str, Path]]:
    """A base and adapters of different ranks, modules, layers and scalings."""
    if kind == "gpt2":
        base = lora_models.gpt2(root / "base")
        wanted: dict[str, dict[str, Any]] = {
            "all": {"target_modules": "all-linear"},
            "attention": {"target_modules": ["c_attn"], "r": 3, "fan_in_fan_out": True},
            "regex": {"target_modules": r".*\.mlp\.c_.*", "r": 16},
        }
    else:
        base = lora_models.llama(root / "base")
        wanted = {
            "all": {},
            "attention": {"target_modules": ["q_proj", "v_proj"], "r": 3, "use_rslora": True},
            "last": {
                "target_modules": ["k_proj", "down_proj"],
                "r": 16,
                "layers_to_transform": [1],
            },
            "patterns": {
                "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5},
                "alpha_pattern": {"o_proj": 3},
            },
            "regex": {"target_modules": r".*layers\.0\..*(up|gate)_proj", "r": 1},
        }
    saved = {
        n: lora_models.save_adapter(base, root / n, seed, **o)
        for seed, (n, o) in enumerate(wanted.items())
    }
    return base, saved


class World:
    """A base, its adapters, PEFT's model of them and a runner of ours."""

    def __init__(self, base: Path, adapters: dict[str, Path], dtype: Any = None) -> None:
        self.base = base
        self.folders = adapters
        self.dtype = dtype
        self.peft = lora_models.peft_model(base, adapters.items(), dtype)
        self.runner = self.new_runner()
        for name, folder in adapters.items():
            self.runner.adapters.load(name, folder)

    def new_runner(self) -> TransformersRunner:
        model = lora_models.load(self.base, self.dtype)
        layers = tuple(LayerShape(*shape) for shape in cached_shapes(model))
        shape = CacheShape(layers, model.dtype)
        adapters = AdapterSet(model, AdapterReader(max_rank=64))
        return TransformersRunner(model, KvCache(shape, BLOCKS, "cpu"), Sampler(), adapters)

    def logits_of_peft(self, name: str, prompt: tuple[int, ...]) -> Any:
        with torch.inference_mode():
            return self._as(
                name, lambda: self.peft(input_ids=torch.tensor([prompt])).logits[0, -1].float()
            )

    def tokens_of_peft(self, name: str, prompt: tuple[int, ...], count: int) -> list[int]:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        out = self._as(
            name,
            lambda: self.peft.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), **options
            ),
        )
        return list(out[0, len(prompt) :].tolist())

    def _as(self, name: str, compute: Any) -> Any:
        if not name:
            with self.peft.disable_adapter():
                return compute()
        self.peft.set_adapter(name)
        return compute()


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(*folders(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(*folders("llama", tmp_path_factory.mktemp("llama-only")))


def sequence(prompt: tuple[int, ...], adapter: str, count: int = 12) -> Sequence:
    sampling = Sampling(max_tokens=count, temperature=0.0, ignore_eos=True)
    return Sequence(
        GenerationRequest("r", prompt, sampling, adapter=adapter), CharacterVocabulary()
    )


def prompt(length: int, seed: int) -> tuple[int, ...]:
    chance = random.Random(seed)
    return tuple(chance.randrange(260) for _ in range(length))


def logits(runner: TransformersRunner, wanted: list[tuple[str, tuple[int, ...]]]) -> Any:
    """Of all prompts in one step, [prompts, vocabulary]."""
    pool = BlockPool(BLOCKS)
    spans = []
    for name, ids in wanted:
        one = sequence(ids, name)
        one.blocks = pool.take(len(ids), pool.new_root()) or one.blocks
        spans.append(Span(one, 0, len(ids), samples=True))
    with torch.inference_mode():
        return runner.logits(Batch(tuple(spans)))


def run(runner: TransformersRunner, scheduler: Scheduler, steps: int = 10_000) -> None:
    while steps and (batch := scheduler.next_batch()) is not None:
        scheduler.advance(batch, runner.forward(batch))
        steps -= 1


def generated(
    runner: TransformersRunner, sequences: list[Sequence], max_batch_tokens: int = 40
) -> list[list[int]]:
    scheduler = Scheduler(BlockPool(BLOCKS), PLACES, max_batch_tokens, 100)
    for one in sequences:
        scheduler.add(one)
    run(runner, scheduler)
    return [one.token_ids[one.prompt_length :] for one in sequences]


def close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    assert float((actual.float() - expected).norm() / expected.norm()) < tolerance


def test_logits_of_a_mixed_step_are_those_of_peft_one_by_one(world: World) -> None:
    names = ["", *world.folders, "", *world.folders]
    wanted = [(name, prompt(1 + 7 * i % 20, i)) for i, name in enumerate(names)]
    for (name, ids), row in zip(wanted, logits(world.runner, wanted), strict=True):
        close(row, world.logits_of_peft(name, ids))


def test_adapters_differ_plainly_from_their_base(world: World) -> None:
    ids = prompt(9, 1)
    base = world.logits_of_peft("", ids)
    for name in world.folders:
        assert float((world.logits_of_peft(name, ids) - base).norm() / base.norm()) > 1e-3


def test_a_step_of_one_adapter_alone(world: World) -> None:
    for name in ("", *world.folders):
        wanted = [(name, prompt(5, seed)) for seed in range(3)]
        for (_, ids), row in zip(wanted, logits(world.runner, wanted), strict=True):
            close(row, world.logits_of_peft(name, ids))


def test_greedy_tokens_of_a_crowd_are_those_of_peft_one_by_one(world: World) -> None:
    names = ["", *world.folders] * 4
    wanted = [(name, prompt(1 + 11 * i % 50, 50 + i)) for i, name in enumerate(names)]
    answers = generated(world.runner, [sequence(ids, name) for name, ids in wanted])
    assert answers == [world.tokens_of_peft(name, ids, 12) for name, ids in wanted]


def test_long_chunks_beside_single_tokens(llama: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few own rows, every way to divide a step into blocks comes up."""
    names = ["", *llama.folders] * 3
    wanted = [(name, prompt(1 + 13 * i % 70, 90 + i)) for i, name in enumerate(names)]
    expected = [llama.tokens_of_peft(name, ids, 12) for name, ids in wanted]
    for own_rows in (1, 6, 64):
        monkeypatch.setattr(lora, "OWN_ROWS", own_rows)
        assert (
            generated(llama.runner, [sequence(ids, name) for name, ids in wanted], 96) == expected
        )


def test_adapters_of_too_many_ranks_together_are_computed_on_several_shelves(
    llama: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "SHELF_RANK", 17)
    runner = llama.new_runner()
    for name, folder in llama.folders.items():
        runner.adapters.load(name, folder)
    assert runner.adapters is not None
    assert len(runner.adapters._shelves) > 1
    wanted = [(name, prompt(3 + i, i)) for i, name in enumerate(["", *llama.folders] * 2)]
    for (name, ids), row in zip(wanted, logits(runner, wanted), strict=True):
        close(row, llama.logits_of_peft(name, ids))


@pytest.mark.parametrize("onednn", [True, False])
def test_both_kinds_of_product_give_the_same_answer(
    llama: World, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "_prefers_onednn", lambda weight: onednn and lora._has_onednn())
    runner = llama.new_runner()
    for name, folder in llama.folders.items():
        runner.adapters.load(name, folder)
    wanted = [(name, prompt(3 + i, i)) for i, name in enumerate(["", *llama.folders])]
    for (name, ids), row in zip(wanted, logits(runner, wanted), strict=True):
        close(row, llama.logits_of_peft(name, ids))


def test_bfloat16_agrees_within_its_rounding(llama: World) -> None:
    half = World(llama.base, llama.folders, torch.bfloat16)
    wanted = [(name, prompt(3 + i, i)) for i, name in enumerate(["", *llama.folders])]
    for (name, ids), row in zip(wanted, logits(half.runner, wanted), strict=True):
        close(row, half.logits_of_peft(name, ids), 0.05)


def test_load_replace_and_drop_between_steps_change_no_other_answer(llama: World) -> None:
    runner = llama.new_runner()
    staying = ["", "all", "attention", "last"]
    for name in staying[1:]:
        runner.adapters.load(name, llama.folders[name])
    runner.adapters.load("leaving", llama.folders["patterns"])
    sequences = [sequence(prompt(5 + i, i), name, 20) for i, name in enumerate(staying * 2)]
    expected = [llama.tokens_of_peft(s.adapter, s.request.prompt_token_ids, 20) for s in sequences]
    scheduler = Scheduler(BlockPool(BLOCKS), PLACES, 64, 100)
    for one in sequences:
        scheduler.add(one)
    run(runner, scheduler, 5)
    runner.adapters.load("regex", llama.folders["regex"])
    newcomer = sequence(prompt(4, 77), "regex", 5)
    scheduler.add(newcomer)
    run(runner, scheduler, 3)
    runner.adapters.load("leaving", llama.folders["regex"])
    run(runner, scheduler, 3)
    runner.drop_adapter("leaving")
    run(runner, scheduler)
    assert [s.token_ids[s.prompt_length :] for s in sequences] == expected
    assert newcomer.token_ids[4:] == llama.tokens_of_peft("regex", prompt(4, 77), 5)


def test_a_replaced_adapter_answers_as_the_new_one(llama: World) -> None:
    runner = llama.new_runner()
    wanted = [("it", prompt(6, 5)), ("", prompt(6, 5))]
    for folder in ("all", "attention", "regex"):
        runner.adapters.load("it", llama.folders[folder])
        close(logits(runner, wanted)[0], llama.logits_of_peft(folder, prompt(6, 5)))


def test_what_nobody_targets_is_left_alone(llama: World) -> None:
    runner = llama.new_runner()
    attention = runner.model.model.layers[0].self_attn
    runner.adapters.load("attention", llama.folders["attention"])
    assert "forward" in vars(attention.q_proj)
    assert "forward" not in vars(attention.k_proj)
    runner.adapters.load("all", llama.folders["all"])
    runner.drop_adapter("attention")
    assert "forward" in vars(attention.q_proj)
    runner.drop_adapter("all")
    assert not any("forward" in vars(module) for module in runner.model.modules())
    assert runner.adapters is not None
    assert not runner.adapters._stacks
    assert not runner.adapters._step.blocks


def test_a_forward_that_somebody_else_put_there_is_adapted_and_given_back(llama: World) -> None:
    runner = llama.new_runner()
    module = runner.model.model.layers[0].self_attn.q_proj
    own = module.forward = lambda x, usual=module.forward: usual(x)
    runner.adapters.load("all", llama.folders["all"])
    close(logits(runner, [("all", (1, 2))])[0], llama.logits_of_peft("all", (1, 2)))
    runner.drop_adapter("all")
    assert module.forward is own


def test_linears_that_read_one_tensor_share_a_product(llama: World) -> None:
    adapters = llama.new_runner().adapters
    assert adapters is not None
    groups = {
        tuple(name.rsplit(".", 1)[1] for name in linear.read.modules)
        for linear in adapters._linears.values()
    }
    assert groups == {
        ("q_proj", "k_proj", "v_proj"),
        ("o_proj",),
        ("gate_proj", "up_proj"),
        ("down_proj",),
    }
    assert not any("lm_head" in name for name in adapters.shapes)


def test_rows_of_an_adapter_that_is_not_loaded_are_refused(llama: World) -> None:
    with pytest.raises(KeyError, match="unheard-of"):
        logits(llama.runner, [("unheard-of", (1, 2))])
    close(logits(llama.runner, [("all", (1, 2))])[0], llama.logits_of_peft("all", (1, 2)))


def test_experts_are_no_targets(tmp_path: Path) -> None:
    """No row of an expert's input says whose it is, and all of them would be missed silently."""
    from transformers import MixtralConfig, MixtralForCausalLM

    settings = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=1, sliding_window=None,
    )  # fmt: skip
    shapes = AdapterSet(MixtralForCausalLM(settings).eval(), AdapterReader(8)).shapes
    assert any(name.endswith("q_proj") for name in shapes)
    assert not any("expert" in name for name in shapes)
