"""Training: the loss is TRL's, only the adapter learns, and an interruption changes nothing."""

import importlib.util
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sllm_tune import pipeline
from sllm_tune.check import check
from sllm_tune.errors import BadInput, DataError, JobFailed, RecipeError
from sllm_tune.model import load as model_module
from sllm_tune.model.find import Base
from sllm_tune.model.merge import merge
from sllm_tune.recipe.recipe import Recipe, load_recipe
from sllm_tune.run.files import read_jsonl
from sllm_tune.run.folder import Run
from sllm_tune.tasks.encode import IGNORED
from sllm_tune.train import assemble as assembling
from sllm_tune.train import checkpoints
from sllm_tune.train import stage as module

NF4 = "base_model.quantization={load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_compute_dtype: float32}"


@pytest.fixture(autouse=True)
def on_a_cpu_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that figures can be held against each other closely."""
    monkeypatch.setattr(model_module, "compute_dtype", lambda: torch.float32)
    monkeypatch.setattr(module, "compute_dtype", lambda: torch.float32)
    monkeypatch.setattr(assembling, "compute_dtype", lambda: torch.float32)
    monkeypatch.setattr("sllm_tune.model.merge.compute_dtype", lambda: torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def trainer_of(project: Path) -> Callable[..., Any]:
    """A trainer over the project's prepared examples; overrides as on the command line."""

    def make(*overrides: str) -> Any:
        recipe = load_recipe(project, overrides)
        folder = project.parents[2] / "run"
        pipeline.prepare(recipe, folder)
        work = project.parents[2] / f"work-{len(overrides)}"
        return module.make_trainer(given(recipe, folder), folder / "data", work)

    return make


def given(recipe: Recipe, folder: Path) -> module.TrainInputs:
    return module.inputs(recipe, Base(section=recipe.base_model, folder=recipe.folder), Run(folder))


def require_trainable(recipe: Recipe) -> None:
    assembling.require_trainable(recipe.train, recipe.resize, recipe.seed, recipe.data.max_length)


def train(project: Path, name: str, *overrides: str) -> Path:
    """The run folder `name` after `train`."""
    pipeline.train(load_recipe(project, overrides), project.parents[2] / name)
    return project.parents[2] / name


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(folder / "train" / "metrics.jsonl") if "loss" in row]


def adapter_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def first_batch(trainer: Any) -> dict[str, Any]:
    return next(iter(trainer.get_train_dataloader()))


# --- what is learnt


def test_the_loss_is_that_of_trls_own_trainer(trainer_of: Callable[..., Any]):
    from trl import SFTTrainer

    trainer = trainer_of("train.sft.per_device_train_batch_size=8")
    batch = first_batch(trainer)
    n_tokens = (batch["labels"] != IGNORED).sum()
    seen: list[Any] = []
    hook = lambda *arguments: seen.append(arguments[2].get("logits_to_keep"))  # noqa: E731
    handle = trainer.model.base_model.model.register_forward_pre_hook(hook, with_kwargs=True)
    ours = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=n) for n in (None, n_tokens, n_tokens * 4)]
    # The mechanism: only the positions before an answer's tokens go through the vocabulary.
    columns = int((batch["labels"][:, 1:] != IGNORED).any(0).sum())
    assert [len(keep) for keep in seen] == [columns] * 3
    assert columns < batch["labels"].shape[1] // 4
    handle.remove()
    theirs = [
        SFTTrainer.compute_loss(trainer, trainer.model, dict(batch), num_items_in_batch=n)
        for n in (None, n_tokens, n_tokens * 4)
    ]
    ours, theirs = ([float(loss.detach()) for loss in made] for made in (ours, theirs))
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours[2] == pytest.approx(ours[0] / 4, abs=1e-5)
    assert ours[0] > 1


def test_the_gradients_are_those_of_trls_own_trainer(trainer_of: Callable[..., Any]):
    from trl import SFTTrainer

    trainer = trainer_of("train.lora.init_lora_weights=false")
    batch = first_batch(trainer)
    gradients = []
    for compute_loss in (trainer.compute_loss, lambda *a: SFTTrainer.compute_loss(trainer, *a)):
        trainer.model.zero_grad()
        compute_loss(trainer.model, dict(batch)).backward()
        gradients.append({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
    assert max(float(g.abs().max()) for g in gradients[0].values()) > 1e-2
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4, msg=name)


def test_the_trainer_is_given_the_answer_and_the_stop_token_to_learn(
    trainer_of: Callable[..., Any], tiny_tokenizer: Any
):
    trainer = trainer_of("train.sft.per_device_train_batch_size=16")
    batch = first_batch(trainer)
    taught = [tiny_tokenizer.decode(labels[labels != IGNORED]) for labels in batch["labels"]]
    assert set(taught) == {"Yes<|im_end|>", "No<|im_end|>"}
    assert batch["labels"].shape[1] % assembling.PAD_TO_TOKENS == 0
    learnt = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][learnt], batch["input_ids"][learnt])
    read = [
        tiny_tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(*map(batch.get, ("input_ids", "attention_mask")), strict=True)
    ]
    assert all(text.startswith("<|im_start|>user\nClause: The ") for text in read)
    assert all(text.endswith(answer) for text, answer in zip(read, taught, strict=True))


def test_every_example_is_trained_on_whole(trainer_of: Callable[..., Any], project: Path):
    trainer = trainer_of()
    examples = read_jsonl(project.parents[2] / "run" / "data" / "train.jsonl")
    assert [len(ids) for ids in trainer.train_dataset["input_ids"]] == [example["tokens"] for example in examples]


def test_eight_small_batches_teach_what_one_large_one_does(trainer_of: Callable[..., Any]):
    made = []
    for size, steps in ((8, 1), (1, 8), (2, 4)):
        trainer = trainer_of(
            f"train.sft.per_device_train_batch_size={size}", f"train.sft.gradient_accumulation_steps={steps}"
        )
        trainer.train()
        history = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        made.append((history, adapter_of(trainer)))
        assert len(history) == 4
    for history, adapter in made[1:]:
        assert history == pytest.approx(made[0][0], abs=1e-4)
        for name, tensor in adapter.items():
            torch.testing.assert_close(tensor, made[0][1][name], atol=1e-3, rtol=0, msg=name)


def test_only_the_adapter_learns(trainer_of: Callable[..., Any]):
    trainer = trainer_of()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, t in trainer.model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert sum("lora_B" in name for name in changed) == 14  # seven matrices in each of two layers


def test_training_lowers_the_loss(project: Path):
    history = losses(train(project, "run", "train.sft.max_steps=12"))
    assert len(history) == 12
    assert history[-1] < history[0] - 1


# --- what is written


def test_an_adapter_names_its_base_and_no_folder_of_this_machine(project: Path, tiny_base: Path):
    folder = train(project, "run")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny_base.name
    files = [path for path in (folder / "adapter").rglob("*") if path.is_file()]
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= {path.name for path in files}
    assert "README.md" not in {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert str(project.parents[2]).encode() not in content, path.name
        assert str(tiny_base.parent).encode() not in content, path.name


def test_the_manifest_says_how_many_processes_trained(project: Path):
    folder = train(project, "run")
    manifest = json.loads((folder / "train" / "manifest.json").read_text())
    assert manifest["world_size"] == 1
    assert manifest["seconds"] > 0
    assert not list((folder / ".work").iterdir())


# --- interruptions


@pytest.fixture
def three_checkpoints(tmp_path: Path) -> Path:
    """A work folder with whole checkpoints of steps 2, 4 and 10."""
    for step in (2, 4, 10):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json"):
            (folder / name).write_bytes(f"{name} of {step}".encode())
        checkpoints.complete(folder)
    assert checkpoints.last_whole_checkpoint(tmp_path) == tmp_path / "checkpoints" / "checkpoint-10"
    return tmp_path


SPOILS: dict[str, Callable[[Path], Any]] = {
    "it was not written to its end": lambda folder: (folder / checkpoints.COMPLETE).unlink(),
    "complete is damaged": lambda folder: (folder / checkpoints.COMPLETE).write_text(""),
    "trainer_state.json is missing": lambda folder: (folder / "trainer_state.json").unlink(),
    "adapter_model.safetensors is not as": lambda folder: (folder / "adapter_model.safetensors").write_bytes(
        b"adapter"
    ),
    "optimizer.pt is not as it was written": lambda folder: (folder / "optimizer.pt").write_bytes(
        b"optimizer.pt of 1X"
    ),
}


@pytest.mark.parametrize("said", SPOILS)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_it(
    three_checkpoints: Path, said: str, capsys: pytest.CaptureFixture[str]
):
    folder = three_checkpoints / "checkpoints"
    SPOILS[said](folder / "checkpoint-10")
    assert checkpoints.last_whole_checkpoint(three_checkpoints) == folder / "checkpoint-4"
    assert f"train: checkpoint-10 is not taken up: {said}" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_without_a_whole_checkpoint_training_starts_over(three_checkpoints: Path):
    for spoil, folder in zip(SPOILS.values(), sorted((three_checkpoints / "checkpoints").iterdir()), strict=False):
        spoil(folder)
    assert checkpoints.last_whole_checkpoint(three_checkpoints) is None
    assert checkpoints.last_whole_checkpoint(three_checkpoints / "nowhere") is None


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next training stops there, as if it were killed."""
    real = assembling.whole_checkpoints

    def with_a_kill() -> Any:
        callback = real()

        def on_step_end(args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                monkeypatch.setattr(assembling, "whole_checkpoints", real)
                raise KeyboardInterrupt

        callback.on_step_end = on_step_end
        return callback

    monkeypatch.setattr(assembling, "whole_checkpoints", with_a_kill)


@pytest.mark.parametrize(
    ("batch", "options"),
    [
        (4, {}),
        (20, {}),
        (20, {"train_sampling_strategy": "random"}),
        (20, {"train_sampling_strategy": "sequential", "lr_scheduler_type": "cosine", "warmup_steps": 2}),
        (20, {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}),
        (20, {"gradient_accumulation_steps": 2}),
        (20, {"optim": "adafactor"}),
    ],
    ids=["first epoch", "second epoch", "random", "sequential", "best", "accumulated", "adafactor"],
)
def test_a_resumed_training_ends_as_an_uninterrupted_one(
    project: Path, monkeypatch: pytest.MonkeyPatch, batch: int, options: dict[str, Any]
):
    from safetensors.torch import load_file

    overrides = ["train.sft.max_steps=6", "train.lora.lora_dropout=0.1"]
    overrides += [f"train.sft.{key}={json.dumps(value)}" for key, value in options.items()]
    overrides.append(f"train.sft.per_device_train_batch_size={batch}")
    whole = train(project, "whole", *overrides)
    interrupt_after(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(project, "resumed", *overrides)
    (work,) = (project.parents[2] / "resumed" / ".work").glob("train-*")
    names = sorted(path.name for path in (work / "checkpoints").glob("checkpoint-*"))
    assert names == ["checkpoint-2", "checkpoint-4"]
    assert all((work / "checkpoints" / name / checkpoints.COMPLETE).exists() for name in names)
    shutil.copytree(work / "checkpoints" / "checkpoint-4", work / "checkpoints" / "checkpoint-5")
    (work / "checkpoints" / "checkpoint-5" / checkpoints.COMPLETE).unlink()  # one more, which was being written

    resumed_from: list[Any] = []
    real = module.trainer_class

    def watched() -> Any:
        class Watched(real()):  # type: ignore[misc]
            def train(self, resume_from_checkpoint: Any = None) -> Any:
                resumed_from.append(resume_from_checkpoint)
                return super().train(resume_from_checkpoint=resume_from_checkpoint)

        return Watched

    monkeypatch.setattr(module, "trainer_class", watched)
    resumed = train(project, "resumed", *overrides)
    assert resumed_from == [str(work / "checkpoints" / "checkpoint-4")]
    assert len(losses(resumed)) == 6
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-3)
    first, second = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, resumed))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=1e-3, rtol=0, msg=name)


def test_other_settings_do_not_take_up_an_interrupted_training(project: Path, monkeypatch: pytest.MonkeyPatch):
    interrupt_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(project, "run")
    folder = train(project, "run", "train.sft.learning_rate=0.005")
    assert losses(folder)[0] == losses(train(project, "fresh", "train.sft.learning_rate=0.005"))[0]
    assert not list((folder / ".work").iterdir())


@pytest.mark.parametrize(
    "lora",
    [
        "{r: 4, trainable_token_indices: [3, 5]}",
        "{r: 4, trainable_token_indices: {embed_tokens: [3]}, lora_dropout: 0.1}",
        "{r: 4, use_dora: true}",
        "{r: 4, modules_to_save: [norm]}",
    ],
)
def test_adapters_of_other_kinds_are_trained_and_merged_whole(project: Path, tmp_path: Path, lora: str):
    folder = train(project, "run", f"train.lora={lora}", "train.sft.max_steps=2")
    recipe = load_recipe(project)
    merge(str(recipe.base_model.path), recipe.base_model, folder / "adapter", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").exists()


# --- four bits


def test_a_quantised_base_trains(project: Path, trainer_of: Callable[..., Any]):
    trainer = trainer_of(NF4, "train.sft.max_steps=2")
    kinds = {name: type(part).__name__ for name, part in trainer.model.named_modules()}
    layers = [name for name in kinds if name.endswith("q_proj.base_layer")]
    assert [kinds[name] for name in layers] == ["Linear4bit"] * 2
    before = adapter_of(trainer)
    assert {tensor.dtype for tensor in before.values()} == {torch.float32}  # bfloat16 needs autocast
    module.fit(trainer, Path(trainer.args.output_dir).parent)
    history = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(history) == 2
    assert all(math.isfinite(loss) for loss in history)
    after = adapter_of(trainer)
    assert all(not torch.equal(before[name], after[name]) for name in before if "lora_B" in name)


def test_a_quantised_base_passes_gradients_on_after_a_validation(trainer_of: Callable[..., Any]):
    # On a CPU with bfloat16 bitsandbytes packs its weights at the first evaluation, for a product without a gradient.
    trainer = trainer_of(NF4, "train.lora.init_lora_weights=false")
    batch = first_batch(trainer)
    gradients = []
    for _ in range(2):
        trainer.model.train()
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, batch).backward()
        gradients.append({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
        trainer.evaluate()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-3, msg=name)


# --- numbers that are none, and trainings that are none


def failure(project: Path, *overrides: str) -> str:
    """What is said of a training that fails; nothing of it is kept."""
    with pytest.raises(JobFailed) as caught:
        train(project, "run", *overrides)
    assert not list((project.parents[2] / "run").glob("adapter*"))
    assert not list((project.parents[2] / "run" / "train").glob("m*.json*"))
    return str(caught.value)


def test_a_training_that_diverges_ends_with_the_step_and_its_rows(project: Path):
    said = failure(project, "train.sft.learning_rate=1e20")
    first, _, third = said.split("\n")
    step, _, rows = first.removesuffix(".").partition(". Rows: ")
    assert re.fullmatch(r"train: the (loss|gradient) of step [23] is (nan|inf)", step)
    known = {row["id"] for row in read_jsonl(project.parents[2] / "run" / "data" / "train.jsonl")}
    assert len(rows.split(", ")) == 4
    assert known.issuperset(rows.split(", "))
    assert third == "  Lower learning_rate (now 1e+20); if that does not help, look at these rows."


@pytest.mark.parametrize("where", ["loss", "gradient", "weight", "validation"])
def test_a_number_that_is_none_ends_the_training_wherever_it_is(
    trainer_of: Callable[..., Any], where: str, monkeypatch: pytest.MonkeyPatch
):
    trainer = trainer_of("train.sft={save_steps: 3, max_steps: 3, logging_steps: 1}", "train.sft.learning_rate=1e-3")
    compute_loss = type(trainer).compute_loss
    trained = [p for p in trainer.model.parameters() if p.requires_grad]

    def spoiled(self: Any, model: Any, inputs: Any, *others: Any, **options: Any) -> Any:
        loss = compute_loss(self, model, inputs, *others, **options)
        wanted = model.training != (where == "validation")
        if not wanted or (model.training and self.state.global_step != 1):
            return loss
        if where == "gradient":
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss * math.nan if where in ("loss", "validation") else loss

    monkeypatch.setattr(type(trainer), "compute_loss", spoiled)
    if where == "weight":
        real = type(trainer)._save_checkpoint
        spoil = lambda self, *others: (trained[0].data.view(-1)[3:4].fill_(math.inf), real(self, *others))  # noqa: E731
        monkeypatch.setattr(type(trainer), "_save_checkpoint", spoil)
    says = {
        "loss": r"^train: the loss of step 2 is nan\. Rows: ([0-9a-f]{16}(, )?){8}\.",
        "gradient": r"^train: the gradient of step 2 is (nan|inf)\. Rows: ([0-9a-f]{16}(, )?){8}\.",
        "weight": r"lora_A\.default\.weight has NaN or infinite numbers after step 3\.",
        "validation": r"^train: the loss on validation rows after step 3 is nan\. Rows: ([0-9a-f]{16}(, )?)+\.",
    }
    with pytest.raises(JobFailed, match=says[where]):
        module.fit(trainer, Path(trainer.args.output_dir).parent)
    # A validation comes after the checkpoint, whose weights are numbers.
    assert bool(list(Path(trainer.args.output_dir).glob("*"))) == (where == "validation")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("dataloader_drop_last: true, per_device_train_batch_size: 500", "sft.dataloader_drop_last: there are "),
        ("max_steps: 1, warmup_steps: 1", "sft: the learning rate is 0 at every one of the 1 steps "),
        ("max_steps: 2, lr_scheduler_type: linear, warmup_steps: 0, lr_scheduler_kwargs: {nope: 1}", "cannot be made"),
    ],
)
def test_a_training_that_would_learn_nothing_is_refused(trainer_of: Callable[..., Any], option: str, said: str):
    with pytest.raises(RecipeError, match=said):
        trainer_of(f"train.sft={{{option}}}")


def test_a_learning_rate_that_never_gets_to_its_height_is_said(
    trainer_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]
):
    trainer_of("train.sft={max_steps: 4, warmup_steps: 8, learning_rate: 0.01}")
    said = "train: warmup_steps are 8, and there are 4 steps: the learning rate only rises, to 0.00375 of 0.01\n"
    assert said in capsys.readouterr().err


def test_a_training_that_changed_nothing_fails(project: Path):
    said = failure(project, "train.sft.learning_rate=1e-300", "train.sft.max_steps=2")
    assert said.startswith("train: 2 steps changed no weight, so nothing was learned.\n")


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried 9"),
        MemoryError(),
    ],
)
def test_a_full_memory_is_explained(tmp_path: Path, error: Exception):
    with (
        pytest.raises(JobFailed, match=r"^train: out of memory \(.+\)\.\n  Halve per_device"),
        module.failure_explained(tmp_path),
    ):
        raise error


# --- options that act in the loss


@pytest.mark.parametrize("option", ["label_smoothing_factor: 0.5", "loss_type: dft"])
@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated:FutureWarning")
def test_an_option_of_the_loss_does_on_a_cpu_what_it_does_in_trl(trainer_of: Callable[..., Any], option: str):
    from trl import SFTTrainer

    trainer = trainer_of(f"train.sft={{max_steps: 1, per_device_train_batch_size: 8, {option}}}")
    batch = first_batch(trainer)
    ours = float(trainer.compute_loss(trainer.model, dict(batch)).detach())
    theirs = float(SFTTrainer.compute_loss(trainer, trainer.model, dict(batch)).detach())
    assert ours == pytest.approx(theirs, abs=1e-6)
    trainer.args.label_smoothing_factor, trainer.args.loss_type = 0.0, "nll"
    assert abs(float(trainer.compute_loss(trainer.model, dict(batch)).detach()) - ours) > 0.01


# --- what is refused


def test_a_full_disk_is_noticed_before_training(project: Path, monkeypatch: pytest.MonkeyPatch):
    folder = project.parents[2] / "run"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    with pytest.raises(BadInput) as caught:
        train(project, "run", "train.lora.r=64")
    first, second = str(caught.value).split("\n")
    assert first.startswith(f"{folder}/.work/train-")
    # 64 x (in + out) of seven matrices in two layers, in float32, with two moments, four times.
    n_parameters = 64 * 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert first.endswith(
        f": 2 MB free, but the checkpoints of this run need about {n_parameters * 4 * 3 * 4 / 1e6:.0f} MB."
    )
    assert second == "  Free some space, or name a run folder on another disk with --run-dir."


@pytest.mark.parametrize("kind", ["system", "safetensors"])
def test_a_disk_that_fills_while_training_is_explained(project: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    from peft import PeftModel

    real = PeftModel.save_pretrained

    def full(self: Any, folder: Any, **options: Any) -> None:
        if str(folder).endswith("checkpoint-4"):
            raise (
                OSError(28, "No space left on device")
                if kind == "system"
                else RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
            )
        real(self, folder, **options)

    monkeypatch.setattr(PeftModel, "save_pretrained", full)
    with pytest.raises(JobFailed) as caught:
        train(project, "run")
    assert caught.value.exit_status == 1
    folder = project.parents[2] / "run"
    first, second = str(caught.value).split("\n")
    assert first.startswith(f"{folder}/.work/train-")
    assert first.endswith(": the disk is full, so the checkpoint was not written; what was made before is untouched.")
    assert second == ("  Free some space and run the same command again: it goes on from the last whole checkpoint.")
    assert not (folder / "adapter").exists()
    monkeypatch.setattr(PeftModel, "save_pretrained", real)
    assert len(losses(train(project, "run"))) == 4


def test_options_that_trl_refuses_beside_our_defaults_are_a_fault_of_the_recipe(trainer_of: Callable[..., Any]):
    # Right by themselves, but not with checkpoints every 50 steps.
    with pytest.raises(RecipeError, match=r"^train\.sft: TRL refuses these options together \("):
        trainer_of("train.sft={load_best_model_at_end: true, eval_strategy: steps, eval_steps: 500}")


def test_an_empty_training_split_is_refused(trainer_of: Callable[..., Any], project: Path):
    trainer_of()
    data = project.parents[2] / "run" / "data"
    (data / "train.jsonl").write_text("")
    with pytest.raises(DataError, match=r"data/train\.jsonl: the training split is empty\.$"):
        module.make_trainer(given(load_recipe(project), data.parent), data, data.parent / "work")


@pytest.mark.parametrize(
    "sft",
    [
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 7},
        {"bf16": True, "fp16": True},
        {"optim": "adamw_torch", "optim_args": "x", "torch_empty_cache_steps": -1},
    ],
)
def test_options_that_trl_refuses_together_are_refused_without_a_training(project: Path, sft: dict[str, Any]):
    overrides = [f"train.sft.{name}={json.dumps(value)}" for name, value in sft.items()]
    require_trainable(load_recipe(project))
    with pytest.raises(RecipeError, match=r"^train\.sft: TRL refuses these options together"):
        require_trainable(load_recipe(project, overrides))
    with pytest.raises(RecipeError, match=r"^train\.sft: "):
        check(load_recipe(project, overrides))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim_args=x", r"train\.sft: this optimizer cannot be made \("),
        ("optim=lomo", r"train\.sft: this optimizer cannot be made \(.*lomo_optim"),
        ("lr_scheduler_kwargs={num_cycles: 3}", r"train\.sft: this schedule of the learning rate cannot be made"),
        ("lr_scheduler_type=cosine_with_min_lr", r"train\.sft: this schedule of the learning rate cannot be made"),
        (
            "{dataloader_drop_last: true, per_device_train_batch_size: 500}",
            r"train\.sft\.dataloader_drop_last: ",
        ),
        ("use_liger_kernel=true", r"train\.sft\.use_liger_kernel: liger-kernel is not installed"),
        ("activation_offloading=true", r"train\.sft\.activation_offloading: there is no accelerator"),
        ("metric_for_best_model=accuracy", r"train\.sft\.metric_for_best_model: a training measures its loss only"),
    ],
)
def test_options_that_training_would_trip_over_are_refused_by_check(
    project: Path, monkeypatch: pytest.MonkeyPatch, override: str, said: str
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "liger_kernel" else found(name))
    path = "train.sft=" if override.startswith("{") else "train.sft."
    with pytest.raises(RecipeError, match=f"^{said}"):
        check(load_recipe(project, [path + override]))


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor", "rmsprop", "adagrad", "adamw_8bit"])
def test_an_optimizer_that_can_be_made_is_taken(trainer_of: Callable[..., Any], optim: str):
    assert trainer_of(f"train.sft.optim={optim}").args.optim == optim
