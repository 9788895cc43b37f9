"""Teachers: whom they teach, what becomes of what they say, and that a policy comes to be like them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from miles_lite.errors import UserError
from miles_lite.sample import NOT_SAMPLED, Sample
from miles_lite.train.learner import Learner
from miles_lite.train.loading import load_model
from miles_lite.train.policy import Policy
from miles_lite.train.resting import restore, snapshot
from miles_lite.train.served_teacher import ServedTeacher
from tests.train.helpers import gradient, learner, make_batch, make_samples

pytestmark = pytest.mark.usefixtures("process_group")
PROMPTS, NEW_TOKENS = 48, 6
LOSS = ("--opd-kl-coef", "0", "--opd-loss-coef", "1")
TEACHERS_P = ("--opd-reward-weight-mode", "teacher_p")


@pytest.fixture(scope="module")
def teacher_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt to say a few tokens only."""
    taught = learner(model_dir, "--loss-type", "sft_loss", "--n-samples-per-prompt", "1", "--lr", "0.02")
    random = np.random.default_rng(1)
    for _ in range(12):
        samples = make_samples(int(random.integers(1000)), 8)
        for sample in samples:
            sample.tokens[:] = random.integers(20, 40, len(sample))
        taught.train(make_batch(samples, [0.0] * 8))
    folder = tmp_path_factory.mktemp("teacher")
    taught.policy.model.save_pretrained(folder)
    return folder


def sampled(policy: Policy, random: np.random.Generator) -> list[Sample]:
    """What the policy says to prompts drawn anew, token by token, at temperature 1."""
    prompts = random.integers(0, 280, (PROMPTS, 3))
    ids, said = torch.tensor(prompts), []
    draw = torch.Generator().manual_seed(int(random.integers(2**31)))
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            logprobs = torch.log_softmax(policy.model(input_ids=ids).logits[:, -1].float(), -1)
            chosen = torch.multinomial(logprobs.exp(), 1, generator=draw)
            said.append(logprobs.gather(1, chosen)[:, 0])
            ids = torch.cat([ids, chosen], 1)
    told = torch.cat([torch.zeros(PROMPTS, 3), torch.stack(said, 1)], 1).numpy().astype(np.float32)
    mask = np.r_[np.zeros(3), np.ones(NEW_TOKENS)].astype(np.uint8)
    versions = np.where(mask == 1, 0, NOT_SAMPLED).astype(np.int32)
    ones = np.ones(len(mask), np.float32)
    return [
        Sample(row.numpy().astype(np.int32), mask, logprobs, ones, versions).validate()
        for row, logprobs in zip(ids, told, strict=True)
    ]


@pytest.mark.parametrize(
    "flags",
    [
        ("--advantage-estimator", "on_policy_distillation"),
        LOSS,
        (*LOSS, "--opd-log-prob-top-k", "16", "--opd-top-k-strategy", "only-teacher", *TEACHERS_P),
    ],
    ids=["advantages", "loss", "top-k"],
)
def test_a_policy_comes_to_be_like_its_teacher(model_dir: Path, teacher_dir: Path, flags: tuple[str, ...]) -> None:
    """Over steps on what it samples itself, with no reward at all."""
    student = learner(model_dir, "--opd-teacher", str(teacher_dir), "--lr", "0.01", *flags)
    random = np.random.default_rng(0)
    gaps = []
    for _ in range(25):
        gaps.append(student.train(make_batch(sampled(student.policy, random), [0.0] * PROMPTS))["train/opd_reverse_kl"])
    assert np.mean(gaps[-5:]) < 0.6 * np.mean(gaps[:5]), gaps


def test_advantages_are_less_what_the_teacher_finds_unlikely(model_dir: Path, teacher_dir: Path) -> None:
    batch = make_batch(make_samples(4, 3), [0, 0, 0])
    flags = ("--opd-teacher", str(teacher_dir), "--opd-kl-coef", "0.5", "--calculate-per-token-loss")
    metrics = learner(model_dir, *flags).train(batch)
    assert metrics["train/opd_reverse_kl"] != pytest.approx(0, abs=0.01)
    assert metrics["train/pg_loss"] == pytest.approx(0.5 * metrics["train/opd_reverse_kl"], rel=1e-4)
    assert metrics["train/opd_loss"] > 0
    assert metrics["train/loss"] == metrics["train/pg_loss"]


def test_each_sample_has_the_teacher_of_its_prompt(model_dir: Path, teacher_dir: Path) -> None:
    """Its own model teaches nothing; only what the other one is to teach counts."""
    flags = ("--opd-teacher", f"self={model_dir}", f"other={teacher_dir}", "--opd-teacher-key", "teacher")
    batch = make_batch(make_samples(4, 2), [0, 0])
    gaps = {}
    for names in (["self", "self"], ["self", "other"], ["other", "other"]):
        batch.teachers = names
        gaps[tuple(names)] = learner(model_dir, *flags).train(batch)["train/opd_reverse_kl"]
    first, second = (learner(model_dir, *flags) for _ in range(2))
    batch.teachers = ["", ""]
    alone = learner(model_dir, "--opd-teacher", f"other={teacher_dir}").train(batch)
    assert alone["train/opd_reverse_kl"] == pytest.approx(gaps["other", "other"])
    assert gaps["self", "self"] == pytest.approx(0, abs=1e-5)
    assert 0 < abs(gaps["self", "other"]) < abs(gaps["other", "other"])
    batch.teachers = ["self", "nobody"]
    with pytest.raises(UserError, match="a prompt has 'nobody' there, and --opd-teacher knows self, other"):
        first.train(batch)
    assert second.updates == 0


@pytest.mark.parametrize("weights", ["student_p", "teacher_p"])
@pytest.mark.parametrize("judge", ["only-student", "only-teacher"])
def test_the_divergence_on_the_likeliest_tokens_is_that_of_whole_distributions(
    model_dir: Path, teacher_dir: Path, judge: str, weights: str
) -> None:
    """Value and gradient, against the logits of one sample at a time."""
    samples, count = make_samples(4, 3), 5
    flags = f"--opd-kl-coef 0 --opd-loss-coef 2 --clip-grad 0 --opd-log-prob-top-k {count}".split()
    flags += ["--opd-teacher", str(teacher_dir), "--opd-top-k-strategy", judge, "--opd-reward-weight-mode", weights]
    trainer = learner(model_dir, *flags, "--calculate-per-token-loss")
    losses = []
    for sample in samples:
        trained = torch.tensor(np.flatnonzero(sample.loss_mask))
        policy, teacher = (
            torch.log_softmax(
                model(input_ids=torch.tensor(sample.tokens[None].astype(np.int64))).logits[0, trained - 1]
                / torch.tensor(sample.temperatures)[trained, None],
                -1,
            )
            for model in (trainer.policy.model, load_model(teacher_dir))
        )
        ids = (policy if judge == "only-student" else teacher).topk(count).indices
        mine, theirs = policy.gather(1, ids), teacher.detach().gather(1, ids)
        student = (mine.exp() * (mine - theirs)).sum(-1)
        losses.append(student if weights == "student_p" else (theirs.exp() * (theirs - mine)).sum(-1))
    loss = torch.cat(losses).mean()
    parameters = list(trainer.policy.parameters())
    expected = torch.cat([each.flatten() for each in torch.autograd.grad(2 * loss, parameters)])
    metrics = trainer.train(make_batch(samples, [0, 0, 0]))
    assert metrics["train/opd_loss"] == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(gradient(trainer), expected, atol=1e-5, rtol=1e-4)


class Scorer(BaseHTTPRequestHandler):
    """Answers /generate as SGLang does, with what a model says."""

    model: Policy

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["sampling_params"] == {"max_new_tokens": 0, "temperature": 1.0}
        ids = torch.tensor([body["input_ids"]])
        with torch.no_grad():
            logprobs = torch.log_softmax(self.model.model(input_ids=ids).logits[0].float(), -1)
        told = [None, *logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()]
        rows = [[logprob, token, None] for logprob, token in zip(told, body["input_ids"], strict=True)]
        top = logprobs[:-1].topk(body["top_logprobs_num"])
        pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        tops = [None, *([[*each, None] for each in zip(*pair, strict=True)] for pair in pairs)]
        answer = json.dumps({"meta_info": {"input_token_logprobs": rows, "input_top_logprobs": tops}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(teacher_dir: Path) -> Iterator[str]:
    handler = type("Handler", (Scorer,), {"model": Policy(load_model(teacher_dir))})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("top_k", [False, True])
def test_a_server_teaches_as_a_folder_does(model_dir: Path, teacher_dir: Path, served: str, top_k: bool) -> None:
    samples = make_samples(4, 3)
    for sample in samples:
        sample.temperatures[:] = 1
    batch = make_batch(samples, [1, 0, -1])
    wanted = [*LOSS, "--opd-log-prob-top-k", "4", "--opd-top-k-strategy", "only-teacher"] if top_k else []
    asked, run = (
        learner(model_dir, "--opd-teacher", where, *wanted).train(batch) for where in (served, str(teacher_dir))
    )
    assert run["train/loss"] != 0
    for name in (name for name in run if name.startswith("train/")):
        assert asked[name] == pytest.approx(run[name], rel=1e-4, abs=1e-5), name


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"--opd-teacher http://127\.0\.0\.1:9: no logprobs"):
        ServedTeacher("http://127.0.0.1:9").logprobs(make_samples(1, 1))


def shaken(trainer: Learner) -> None:
    """As an update would leave it."""
    with torch.no_grad():
        for parameter in trainer.policy.parameters():
            parameter.add_(0.02)


@pytest.mark.parametrize("sharding", ["no_shard", "optim_grads_params"])
def test_tokens_that_the_weights_before_sampled_have_old_logprobs_of_those(model_dir: Path, sharding: str) -> None:
    trainer = learner(model_dir, "--keep-old-actor", "--data-parallel-sharding-strategy", sharding)
    batch = make_batch(make_samples(4, 2), [1, -1])
    before = trainer._prepare(batch)
    trainer._asked.fill(before, trainer.strategy.mesh)
    assert before[0][0].old is None, "the weights before are not known yet, and these are the first step's"
    with torch.no_grad():
        expected = trainer.policy(before[0][0].packed)[0]
    start = snapshot(trainer.policy)
    shaken(trainer)
    now = snapshot(trainer.policy)
    batch.rollout_id = 1
    batch.samples[0].weight_versions[batch.samples[0].loss_mask == 1] = 1
    ((each,),) = trainer._prepare(batch)
    trainer._asked.fill([[each]], trainer.strategy.mesh)
    assert all(torch.equal(mine, same) for mine, same in zip(snapshot(trainer.policy), now, strict=True))
    with torch.no_grad():
        current = trainer.policy(each.packed)[0]
    stale = each.packed.staleness > 0
    assert stale.any()
    assert not stale.all()
    assert each.old is not None
    torch.testing.assert_close(each.old, torch.where(stale, expected, current))
    assert not torch.allclose(expected, current, atol=1e-3)
    restore(trainer.policy, start)
    assert all(torch.equal(mine, same) for mine, same in zip(snapshot(trainer.policy), start, strict=True))
