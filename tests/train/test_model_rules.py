"""What ranks would find wrong with the models they load is said from the folders alone, and nothing else is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from miles_lite.errors import UserError
from miles_lite.train import tensor_parallel
from miles_lite.train.building import build_learner
from miles_lite.train.learner import Learner
from miles_lite.train.model_rules import check_models
from miles_lite.weights.compat import import_transformers
from tests.models import make_tiny_moe
from tests.train.helpers import make_batch, make_config, make_samples, save_checkpoint

pytestmark = pytest.mark.usefixtures("process_group")
RANK = ("--lora-rank", "4")
TOP_K = ("--opd-loss-coef", "1", "--opd-log-prob-top-k")


@pytest.fixture(scope="module")
def folders(model_dir: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models by name: `small` with 288 ids, `large` and its mixture of experts with 512 of another tokenizer; `wide` is
    `small` with more rows than tokens, `renamed` with two tokens swapped."""
    root = tmp_path_factory.mktemp("models")
    found = {"small": model_dir, "large": tiny_model, "experts": make_tiny_moe(root / "experts")}
    for name in ("wide", "renamed", "capped", "strange", "tied"):
        found[name] = Path(shutil.copytree(model_dir, root / name))
    change(found["wide"] / "config.json", vocab_size=320)
    change(found["capped"] / "config.json", final_logit_softcapping=30.0)
    change(found["strange"] / "config.json", model_type="no_such_type")
    change(found["tied"] / "config.json", tie_word_embeddings=True)
    tokenizer = json.loads((model_dir / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (found["renamed"] / "tokenizer.json").write_text(json.dumps(tokenizer))
    return found


def change(file: Path, **told: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | told))


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("large", ("--opd-teacher", "small"), "--opd-teacher .*: knows 288 ids, and the policy's model 512"),
        ("large", ("--use-kl-loss", "--ref-load", "small"), "--ref-load .*: knows 288 ids"),
        ("small", ("--opd-teacher", "large"), "--opd-teacher .*: its tokenizer is another one: id"),
        ("small", ("--opd-teacher", "x=small", "y=renamed", "--opd-teacher-key", "k"), "is another one: id 280 is"),
        ("small", ("--opd-teacher", "small", *TOP_K, "289"), "top-k 289: --hf-checkpoint .* has 288 tokens"),
        (
            "small",
            ("--opd-teacher", "wide", *TOP_K, "4", "--opd-top-k-strategy", "only-teacher"),
            "wide knows 320 ids, and the policy 288: take only-student",
        ),
        (
            "small",
            (*RANK, "--target-modules", "q_proj", "q_prj"),
            "q_prj: .* no such layer: did you mean q_proj.*v_proj",
        ),
        ("small", (*RANK, "--target-modules", "lm_head"), "lm_head: the model's head gets no adapters"),
        ("tied", (*RANK, "--target-modules", "lm_head"), "lm_head: the model's head gets no adapters"),
        ("tied", (*RANK, "--target-modules", "embed_tokens"), r"embed_tokens is no linear layer"),
        ("experts", (*RANK, "--target-modules", "mlp.experts"), r"(?s)Qwen3MoeExperts.* is not supported"),
        ("small", ("--use-rollout-routing-replay",), "Qwen3ForCausalLM has no router"),
        ("capped", (), "config.json sets final_logit_softcapping"),
        ("small", ("--opd-teacher", "capped"), "--opd-teacher .*config.json sets final_logit_softcapping"),
        ("strange", (), "--hf-checkpoint .*strange: .*no_such_type"),
        ("small", ("--attn-implementation", "flash_attention_2", "--device", "cpu"), "needs GPUs, and this run trains"),
        ("small", ("--data-parallel-sharding-strategy", "no_shard", "--device", "cuda"), "no_shard: only on CPU"),
        ("small", ("--record-memory-history", "--device", "cpu"), "the memory of CUDA devices"),
    ],
)
def test_a_model_that_options_do_not_fit_is_refused(
    model: str, flags: tuple[str, ...], message: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(UserError, match=message):
        check_models(make_config(folders[model], *located(flags, folders)))


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("small", ("--opd-teacher", "small")),
        ("small", ("--opd-teacher", "wide")),
        ("small", ("--opd-teacher", "small", *TOP_K, "288")),
        ("small", ("--use-kl-loss", "--ref-load", "small")),
        ("large", ("--ref-load", "small")),
        ("small", (*RANK, "--target-modules", "q_proj", "mlp.down_proj")),
        ("experts", (*RANK,)),
        ("experts", ("--use-rollout-routing-replay",)),
        ("small", ("--attn-implementation", "eager")),
    ],
)
def test_what_is_let_through_trains(model: str, flags: tuple[str, ...], folders: dict[str, Path]) -> None:
    if "wide" in flags:
        widen(folders["wide"])
    config = make_config(folders[model], *located(flags, folders))
    check_models(config)
    learner: Learner = build_learner(config, device=torch.device("cpu"))
    metrics = learner.train(make_batch(make_samples(0, 3), [1.0, -1.0, 0.5]))
    assert metrics["train/grad_norm"] > 0


def test_what_ranks_share_has_a_plan(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--actor-num-gpus-per-node", "2", "--tensor-model-parallel-size", "2", *RANK)
    check_models(make_config(folders["experts"], *flags, "--expert-model-parallel-size", "2"))
    monkeypatch.setattr(tensor_parallel, "ADAPTED", {})
    with pytest.raises(
        UserError, match=r"--lora-rank: model.layers.\*.self_attn.q_proj is cut over tensor ranks as col"
    ):
        check_models(make_config(folders["experts"], *flags))


def test_a_checkpoint_that_lacks_what_is_to_be_loaded_is_refused(model_dir: Path, tmp_path: Path) -> None:
    saved = build_learner(make_config(model_dir, *RANK), device=torch.device("cpu"))
    saved.train(make_batch(make_samples(0, 2), [1.0, -1.0]))
    load = ("--load", str(tmp_path))
    check_models(make_config(model_dir, *load))
    save_checkpoint(saved, tmp_path, iteration=3)
    check_models(make_config(model_dir, *load, *RANK))
    with pytest.raises(UserError, match="iter_0000003 was saved with --lora-rank: go on as it began"):
        check_models(make_config(model_dir, *load))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    with pytest.raises(UserError, match="names iteration 7, but"):
        check_models(make_config(model_dir, *load, *RANK))


def test_attention_that_no_package_computes_here_is_said(model_dir: Path) -> None:
    """The device is the ranks' affair, who may have other machines."""
    check_models(make_config(model_dir, "--attn-implementation", "flash_attention_2"))
    with pytest.raises(UserError, match="computes sequence by sequence, and --context-parallel-size 2 shares rows"):
        make_config(
            model_dir,
            "--context-parallel-size",
            "2",
            "--attn-implementation",
            "eager",
            "--actor-num-gpus-per-node",
            "2",
        )


def located(flags: tuple[str, ...], folders: dict[str, Path]) -> list[str]:
    """With folders in the place of their names."""
    parts = (flag.rpartition("=") for flag in flags)
    return [f"{before}{equals}{folders.get(name, name)}" for before, equals, name in parts]


def widen(folder: Path) -> None:
    """Give it as many rows as its config says."""
    transformers = import_transformers()
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
