"""The model of lm-evaluation-harness gives the texts and verdicts of our own evaluation, item by item, offline."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.registry import Registry, get_model

from components.commands import lm_eval_model
from components.commands.demo import DLLM, FOLDER, POLICY
from components.commands.lm_eval_model import Unmask
from components.core.errors import DataError, SettingsError
from components.core.rng import generator
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.decode.prompts import Prompts
from components.denoisers import embedded, load
from components.evaluation.evaluate import Candidate, Sweep, evaluate
from components.evaluation.results import EvalResult
from components.policies import store
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.rules import heuristic
from components.tasks import build
from components.tasks.example import Example
from tests.messages import has_remedy
from tests.unit.test_lock import PROJECT

pytestmark = pytest.mark.e2e

torch.set_num_threads(1)

TASK = build("sudoku_unique")
SMALL: dict[str, Any] = dict(width=8, heads=1, mlp_width=8)


@pytest.fixture(scope="module")
def dllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dllm")
    write_dllm(folder)
    return folder


def write_dllm(folder: Path) -> None:
    """A dLLM whose texts differ from prompt to prompt and within a text."""
    denoiser, encoder = embedded.build("llada", TASK.alphabet + "abc :\n", embedded.Shape(16, 2, 2, 24, 96), seed=0)
    source = generator("weights")
    for weight in denoiser.model.parameters():
        weight.data += 0.4 * torch.randn(weight.shape, generator=source)
    embedded.save(denoiser, encoder, folder)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def ours(dllm: Path, name: str, examples: list[Example], block: int | None = None) -> tuple[list[str], EvalResult]:
    """Texts and figures as stage evaluate makes them."""
    denoiser, encoder = load(dllm)
    policy = lm_eval_model.loaded(name, dllm) or lm_eval_model.rule(name)
    prompts = Prompts.of(TASK, examples, encoder)
    job = prompts.job(block)
    texts, _, _ = prompts.scores(job, rollout(denoiser, policy, job, DecodeOptions(choose="mode")))
    return texts, evaluate(denoiser, Candidate("policy", name, policy, block), prompts, [0])


def task_file(folder: Path, examples: list[Example], **more: Any) -> Any:
    """A local task of the harness over these examples, and what loads it."""
    from lm_eval.tasks import TaskManager

    rows = [{"question": e.prompt, "answer": e.answer} for e in examples]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    described: dict[str, Any] = {
        "task": "local_sudoku",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": ["</s>"], "max_gen_toks": 16, "do_sample": False},
        "metadata": {"version": 1.0},
    }
    (folder / "local_sudoku.yaml").write_text(yaml.safe_dump(described | more), encoding="utf-8")
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["entropy_bound:0.8", "confidence:4", "folder", "onnx"])
def test_the_harness_and_our_evaluation_agree_item_by_item(name: str, tmp_path: Path) -> None:
    """The released dLLM on sudokus with one solution: some of its answers are right, some are not."""
    from lm_eval.evaluator import simple_evaluate

    store.save(ConfidencePolicy(Shape(("log_odds", "entropy"), **SMALL)).eval(), tmp_path / "policy")
    policy = {"folder": str(tmp_path / "policy"), "onnx": str(FOLDER / POLICY)}.get(name, name)
    drawn = [TASK.sample(index, 5) for index in range(24)]
    texts, result = ours(FOLDER / DLLM, policy, drawn, block=8)
    found = simple_evaluate(
        model="unmask",
        model_args=f"denoiser={FOLDER / DLLM},policy={policy},block_length=8",
        tasks=["local_sudoku"],
        task_manager=task_file(tmp_path / "tasks", drawn),
        apply_chat_template=True,
        batch_size="7",
        bootstrap_iters=0,
    )
    assert found is not None
    found = cast(dict[str, Any], found)
    samples = sorted(found["samples"]["local_sudoku"], key=lambda sample: sample["doc_id"])
    assert [sample["resps"][0][0] for sample in samples] == texts and len(set(texts)) > 12
    assert [sample["exact_match"] for sample in samples] == result.correct_P.tolist()
    assert found["results"]["local_sudoku"]["exact_match,none"] == pytest.approx(result.accuracy)
    config: dict[str, Any] = found["config"]
    assert config["forward_passes"] == pytest.approx(result.nfe)
    assert 0.0 < result.accuracy < (1.0 if ":" in name else 1.1)


AS_PROFILES: dict[str, dict[str, Any]] = {
    "ends": dict(end_of_text=True, block_length=8),
    "ends whole": dict(end_of_text=True),
    "frontier": dict(frontier=3),
    "frontier in blocks": dict(frontier=3, block_length=8),
    "late": dict(suppress_eos=True),
    "late of what is left": dict(suppress_eos="renormalize", frontier=7),
    "all": dict(suppress_eos="renormalize", frontier=7, end_of_text=True),
}


def decoded(dllm: Path, name: str, drawn: list[Example], given: dict[str, Any]) -> tuple[list[str], list[float]]:
    """Texts and forward passes of the stages rules and evaluate, with the settings of a profile."""
    denoiser, encoder = load(dllm)
    encoder = encoder.stopping() if given.get("end_of_text") else encoder
    suppress, block = given.get("suppress_eos", False), given.get("block_length")
    policy = lm_eval_model.loaded(name, dllm)
    if policy is None:
        kind, _, number = name.partition(":")
        late = encoder.end_ids if suppress else ()
        policy = Sweep((), {}, late, renormalize=suppress == "renormalize").rule(kind, float(number), block)
    candidate = Candidate(name.partition(":")[0], name, policy, block, frontier=given.get("frontier"))
    prompts = Prompts.of(TASK, drawn, encoder)
    job = prompts.job(candidate.block_length, candidate.frontier)
    texts, _, _ = prompts.scores(job, rollout(denoiser, candidate.policy, job, DecodeOptions(choose="mode")))
    return texts, evaluate(denoiser, candidate, prompts, [0]).nfe_P.tolist()


@pytest.mark.parametrize("name", ["confidence:1", "entropy_bound:0.3", "folder"])
@pytest.mark.parametrize("case", AS_PROFILES)
def test_a_profile_s_settings_decode_as_in_its_stages(case: str, name: str, dllm: Path, tmp_path: Path) -> None:
    """Texts and forward passes, item by item; and the settings are no others in disguise."""
    given = dict(AS_PROFILES[case])
    if name == "folder":
        store.save(ConfidencePolicy(Shape(("log_odds", "entropy"), **SMALL)).eval(), tmp_path)
        name = str(tmp_path)
        if "suppress_eos" in given:
            with pytest.raises(SettingsError, match=r"suppress_eos.* a rule over the whole canvas"):
                model(dllm, policy=name, **given)
            return
    drawn = [TASK.sample(index, 5) for index in range(12)]
    one = model(dllm, policy=name, **given)
    chats = [one.apply_chat_template([{"role": "user", "content": example.prompt}]) for example in drawn]
    texts = one.generate_until(asked(*chats, max_gen_toks=TASK.canvas_length))
    assert (texts, one._passes) == decoded(dllm, name, drawn, given)
    plain = {key: value for key, value in given.items() if key == "block_length"}
    assert (texts, one._passes) != decoded(dllm, name, drawn, plain)


def test_weights_have_the_type_of_the_checkpoint_unless_another_is_named(dllm: Path, tmp_path: Path) -> None:
    assert model(dllm).denoiser.model.dtype == torch.float32
    folder = tmp_path / "stored"
    shutil.copytree(dllm, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for named, wanted in (("bfloat16", torch.bfloat16), ("float16", torch.float32), (None, torch.float32)):
        (folder / "config.json").write_text(json.dumps(config | {"dtype": named}), encoding="utf-8")
        assert model(folder).denoiser.model.dtype == wanted
    assert model(folder, dtype="bfloat16").denoiser.model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("given", "named", "wanted"),
    [
        (None, None, "cpu"),
        ("cuda:0", None, "cpu"),  # the harness's own, and there is no GPU
        ("cuda:0", "auto", "auto"),
        (None, "meta", "meta"),
        ("cpu", "meta", "cpu"),
    ],
)
def test_the_device_is_the_one_asked_for_else_that_of_the_variable(
    given: str | None, named: str | None, wanted: str, dllm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if named is None:
        monkeypatch.delenv("UNMASK_DEVICE", raising=False)
    else:
        monkeypatch.setenv("UNMASK_DEVICE", named)
    opened: list[str] = []
    monkeypatch.setattr(
        lm_eval_model, "load", lambda path, device, *more: opened.append(device) or load(path, "cpu", *more)
    )
    one = model(dllm, device=given)
    assert opened == [wanted] and one.device == one.denoiser.device


def test_layers_may_be_spread_over_whatever_is_there(dllm: Path) -> None:
    one = model(dllm, device="auto")
    assert one.device == one.denoiser.device
    requests = asked("abc", max_gen_toks=8)
    assert one.generate_until(requests) == model(dllm).generate_until(requests)


def test_several_processes_are_refused(dllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would answer every request and write the results."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="as 2 processes") as refused:
        model(dllm)
    assert has_remedy(str(refused.value))


def asked(*texts: str, **how: Any) -> list[Instance]:
    return [
        Instance(request_type="generate_until", doc={}, arguments=(text, how), idx=i) for i, text in enumerate(texts)
    ]


def model(dllm: Path, **more: Any) -> Any:
    """An ``Unmask``: the harness's registry hides the class behind its own."""
    return Unmask(**{"denoiser": str(dllm), "policy": "entropy_bound:0.3"} | more)


def test_without_a_chat_template_the_plain_text_is_the_prompt(dllm: Path) -> None:
    denoiser, encoder = load(dllm)
    (text,) = model(dllm).generate_until(asked("abc 12", max_gen_toks=12))
    done = rollout(
        denoiser,
        heuristic("entropy_bound", 0.3),
        Job.of([encoder.plain("abc 12")], 12, 12),
        DecodeOptions(choose="mode"),
    )
    assert text == encoder.text(done.canvas_RL[0])
    chat = model(dllm)
    (other,) = chat.generate_until(
        asked(chat.apply_chat_template([{"role": "user", "content": "abc 12"}]), max_gen_toks=12)
    )
    assert other != text


def test_a_chat_is_written_by_the_dllm_s_own_template(dllm: Path) -> None:
    chat = model(dllm)
    history = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert chat.apply_chat_template(history) == "<|user|>a<|assistant|>b<|user|>c<|assistant|>"
    assert chat.apply_chat_template(history[:2], add_generation_prompt=False) == "<|user|>a<|assistant|>b"
    assert "message.role" in str(chat.chat_template(True)) and chat.chat_template(False) is None
    with pytest.raises(DataError, match=r"<\|mask\|>"):
        chat.apply_chat_template([{"role": "user", "content": "a<|mask|>"}])
    with pytest.raises(DataError, match=r"<\|user\|>"):
        model(dllm).generate_until(asked("<|user|>a"))


def test_canvases_follow_the_request_and_rows_change_nothing(dllm: Path) -> None:
    """Requests of several lengths and prompts in one call, alone and side by side."""
    texts = ["a", "abc abc", "12", "c: 4\n1", "U1", "b"]
    requests = [r for i, text in enumerate(texts) for r in asked(text, max_gen_toks=8 + 8 * (i % 3))]
    together = model(dllm).generate_until(requests)
    assert model(dllm, batch_size="auto", max_batch_size=2).generate_until(requests) == together
    assert [model(dllm, batch_size=1).generate_until([r])[0] for r in requests] == together
    lone = model(dllm, length=24).generate_until(asked("12"))
    assert lone == [together[2]]
    assert model(dllm).generate_until(asked("12", max_new_tokens=24)) == lone


def test_a_text_ends_before_the_first_stop_string(dllm: Path) -> None:
    one = model(dllm)
    (whole,) = one.generate_until(asked("abc", max_gen_toks=16))
    assert len(whole) > 4
    for until in (whole[2:4], [whole[3], "", whole[2:4]], ["absent"]):
        (text,) = one.generate_until(asked("abc", max_gen_toks=16, until=until))
        stops = [until] if isinstance(until, str) else [u for u in until if u]
        expected = min((whole.index(u) for u in stops if u in whole), default=len(whole))
        assert text == whole[:expected]


def test_a_repeated_request_is_another_draw_of_a_random_rule(dllm: Path) -> None:
    drawn = model(dllm, policy="random:1").generate_until(asked(*["abc"] * 6, max_gen_toks=16))
    assert len(set(drawn)) > 1
    assert model(dllm, policy="random:1", batch_size=2).generate_until(asked(*["abc"] * 6, max_gen_toks=16)) == drawn
    assert model(dllm, policy="random:1", seed=1).generate_until(asked(*["abc"] * 6, max_gen_toks=16)) != drawn


def test_alpha_reaches_a_policy_that_was_trained_for_several(dllm: Path, tmp_path: Path) -> None:
    store.save(ConfidencePolicy(Shape(("log_odds",), alphas=(0.3, 9.0), **SMALL)).eval(), tmp_path)
    for alpha in (0.3, 9.0):
        one = model(dllm, policy=str(tmp_path), alpha=alpha)
        seen, draw = list[float](), one.policy.distribution
        one.policy.distribution = lambda obs, seen=seen, draw=draw: seen.extend(obs.alpha_B.tolist()) or draw(obs)
        one.generate_until(asked("abc", "U12", max_gen_toks=16))
        assert seen == pytest.approx([alpha] * len(seen)) and seen
    with pytest.raises(SettingsError, match=r"alpha=2\.0"):
        model(dllm, alpha=2.0)


def test_a_policy_lies_where_the_dllm_lies(dllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's device meta stands for a GPU."""
    store.save(ConfidencePolicy(Shape(("log_odds",), **SMALL)).eval(), tmp_path)
    assert model(dllm, policy=str(tmp_path), device="auto").device == torch.device("cpu")
    denoiser, encoder = load(dllm)
    monkeypatch.setattr(denoiser, "device", torch.device("meta"))
    monkeypatch.setattr(lm_eval_model, "load", lambda *_: (denoiser, encoder))
    far = model(dllm, policy=str(tmp_path))
    assert far.device.type == "meta" and all(weight.is_meta for weight in far.policy.parameters())


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"polcy": "confidence"}, "did you mean policy"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"policy": None}, "no policy"),
        ({"policy": "entropy_bund:1"}, "did you mean entropy_bound"),
        ({"policy": "entropy_bound:-1"}, "entropy_bound"),
        ({"policy": "absent.onnx"}, "absent.onnx is not there"),
        ({"denoiser": "absent/folder"}, "no model at 'absent/folder'"),
        ({"block_length": "eight"}, "block_length='eight'"),
        ({"length": 0}, "length=0"),
        ({"batch_size": 0}, "batch_size=0"),  # no row was in flight, for ever
        ({"batch_size": "-1"}, "batch_size='-1'"),
        ({"batch_size": "auto", "max_batch_size": 0}, "max_batch_size=0"),
        ({"alpha": "fast"}, "alpha='fast'"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"choose": "best"}, "choose='best'"),
        ({"frontier": 0}, "frontier=0"),
        ({"end_of_text": "yes"}, "end_of_text='yes'"),
        ({"suppress_eos": "often"}, "suppress_eos='often'"),
        ({"suppress_eos": True, "block_length": 8}, "suppress_eos=True"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_arguments_that_cannot_work_are_refused_by_name(given: dict[str, Any], word: str, dllm: Path) -> None:
    with pytest.raises((SettingsError, RuntimeError), match=word) as refused:
        model(dllm, **given)
    assert has_remedy(str(refused.value))


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"do_sample": True, "temperature": 0.7}, "do_sample=false"),
        ({"temperature": 0.7}, "do_sample=false"),
        ({"num_beams": 4}, "num_beams"),
        ({"max_gen_toks": 0}, "max_gen_toks=0"),
        ({"max_gen_toks": "many"}, "max_gen_toks='many'"),
        ({"max_gen_toks": 200}, "96 positions"),
        ({"max_gen_toks": 12}, "block_length=8 does not divide the canvas of 12"),
    ],
)
def test_a_way_of_generating_that_a_dllm_has_not_is_refused(how: dict[str, Any], word: str, dllm: Path) -> None:
    with pytest.raises((SettingsError, DataError), match=word):
        model(dllm, block_length=8).generate_until(asked("abc", **how))


def test_loglikelihoods_are_refused_with_a_way_out(dllm: Path) -> None:
    for ask in (model(dllm).loglikelihood, model(dllm).loglikelihood_rolling):
        with pytest.raises(SettingsError, match=r"log-likelihoods.* Use a task that generates text"):
            ask([])


def test_answers_go_into_the_harness_s_cache(dllm: Path, tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    one = model(dllm)
    cached: Any = CachingLM(one, str(tmp_path / "cache.db"))
    first = cached.generate_until(asked("abc", "a", max_gen_toks=8))
    passes = one.get_model_info()["forward_passes"]
    assert cached.generate_until(asked("abc", "a", max_gen_toks=8)) == first
    assert one.get_model_info()["forward_passes"] == passes and len(one._passes) == 2


def test_a_harness_with_plugins_finds_the_model_by_its_entry_point() -> None:
    """As harnesses after 0.4.13 register what they find under this group."""
    ((name, value),) = PROJECT["entry-points"]["lm_eval.models"].items()
    registry: Registry[Any] = Registry("model")
    registry.register(name, target=EntryPoint(name, value, "lm_eval.models"))
    assert registry.get("unmask") is Unmask is get_model("unmask")
