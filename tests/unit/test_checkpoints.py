"""Checkpoints as they come: configs with keys left out, pickles, broken files, odd ids, other architectures. Each loads
to what its authors' code computes or is refused in a sentence that names the file or the key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.commands import bench, resolve
from components.core.errors import CheckpointError, DataError, SettingsError
from components.core.rng import generator
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.denoisers import check_denoiser, embedded, load, with_cache
from components.denoisers.fingerprint import fingerprint
from components.policies.heuristics import Threshold
from components.settings import read
from components.settings.data import Model, Pretrain
from components.stages.common.workspace import Workspace
from components.stages.pretrain import pretrain
from tests.messages import has_remedy
from tests.unit.test_denoisers import (
    DREAM_CONFIG,
    HEADS,
    INNER,
    LAYERS,
    LLADA_CONFIG,
    VOCABULARY,
    WIDTH,
    WRITERS,
    bidirectional,
    fill,
    llada_tokenizer,
    logits_of,
    refused,
    write_llada,
)
from tests.unit.test_masked_models import MASKED, write_masked

torch.set_num_threads(1)


def edit(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> None:
    path = folder / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in drop}
    path.write_text(json.dumps(config | changes))


def ids(rows: int = 2, length: int = 9) -> Tensor:
    return torch.randint(0, 20, (rows, length), generator=generator("ids"))


# --- keys that config.json leaves out ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["layer_norm_type", "block_type", "rope", "activation_type"])
def test_a_llada_key_left_out_is_the_authors_default_which_is_another_architecture(key: str, tmp_path: Path):
    write_llada(tmp_path / "model")
    edit(tmp_path / "model", drop=(key,))
    refused(tmp_path / "model", key)


@pytest.mark.parametrize(
    "key", ["include_bias", "alibi", "scale_logits", "n_kv_heads", "multi_query_attention", "rms_norm_eps", "mlp_ratio"]
)
def test_a_llada_key_left_out_that_has_the_released_value_changes_nothing(key: str, tmp_path: Path):
    native = write_llada(tmp_path / "model")
    edit(tmp_path / "model", drop=(key,))
    assert torch.equal(logits_of(load(tmp_path / "model")[0], ids()), bidirectional(native, ids()))


def test_rope_theta_left_out_is_ten_thousand(tmp_path: Path):
    native = write_llada(tmp_path / "model")
    edit(tmp_path / "model", drop=("rope_theta",))
    native.model.rotary_emb.inv_freq = 1e4 ** (-torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))
    torch.testing.assert_close(logits_of(load(tmp_path / "model")[0], ids()), bidirectional(native, ids()))


def test_weight_tying_left_out_is_tied(tmp_path: Path):
    """An untied head beside it is a contradiction, not to be dropped in silence."""
    native = write_llada(tmp_path / "model")
    edit(tmp_path / "model", drop=("weight_tying",))
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    with pytest.raises(CheckpointError):
        load(tmp_path / "model")
    del weights["model.transformer.ff_out.weight"]
    save_file(weights, path, {"format": "pt"})
    native.lm_head.weight = native.model.embed_tokens.weight
    assert torch.equal(logits_of(load(tmp_path / "model")[0], ids()), bidirectional(native, ids()))


def narrow(folder: Path, heads: int) -> None:
    """Keys and values of the first ``heads`` heads only."""
    path, size = folder / "model.safetensors", WIDTH // HEADS * heads
    weights = {n: t[:size] if ".k_proj." in n or ".v_proj." in n else t for n, t in load_file(path).items()}
    save_file({n: t.contiguous() for n, t in weights.items()}, path, {"format": "pt"})


def test_multi_query_attention_without_n_kv_heads_is_one_head_of_keys(tmp_path: Path):
    write_llada(tmp_path / "model")
    narrow(tmp_path / "model", 1)
    edit(tmp_path / "model", drop=("n_kv_heads",), multi_query_attention=True)
    assert load(tmp_path / "model")[0].model.config.num_key_value_heads == 1
    edit(tmp_path / "model", n_kv_heads=2)
    refused(tmp_path / "model", "n_kv_heads=2", "multi_query_attention=True")


def test_mlp_hidden_size_null_is_the_ratio_times_the_width(tmp_path: Path):
    native = write_llada(tmp_path / "model")
    edit(tmp_path / "model", mlp_hidden_size=None, mlp_ratio=INNER / WIDTH)
    refused(tmp_path / "model", "config.json", "intermediate_size")  # a ratio is a whole number there
    path = tmp_path / "model" / "model.safetensors"
    weights = {n: t[:WIDTH] if ".ff_proj." in n or ".up_proj." in n else t for n, t in load_file(path).items()}
    weights = {n: t[:, :WIDTH] if ".blocks." in n and ".ff_out." in n else t for n, t in weights.items()}
    save_file({n: t.contiguous() for n, t in weights.items()}, path, {"format": "pt"})
    edit(tmp_path / "model", mlp_hidden_size=None, mlp_ratio=1)
    for layer in native.model.layers:
        layer.mlp.gate_proj.weight.data = layer.mlp.gate_proj.weight[:WIDTH]
        layer.mlp.up_proj.weight.data = layer.mlp.up_proj.weight[:WIDTH]
        layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight[:, :WIDTH]
    torch.testing.assert_close(logits_of(load(tmp_path / "model")[0], ids()), bidirectional(native, ids()))


def test_a_dream_without_rope_theta_has_the_authors_ten_thousand(tmp_path: Path):
    WRITERS["dream"](tmp_path / "model")
    edit(tmp_path / "model", drop=("rope_theta",))
    inverse = load(tmp_path / "model")[0].model.model.rotary_emb.inv_freq
    assert inverse[1] == pytest.approx(1e4 ** (-2 / (WIDTH // HEADS)))
    assert DREAM_CONFIG["rope_theta"] != 1e4


# --- the rotation in float32 ---------------------------------------------------------------------------------------


def by_hand(weights: dict[str, Tensor], ids_BT: Tensor, precise: bool) -> Tensor:
    """LLaDA's forward written down, in the weights' type; the rotation in float32 or in that type."""
    size, (rows, length) = WIDTH // HEADS, ids_BT.shape
    prefix = "model.transformer."

    def norm(x: Tensor, name: str) -> Tensor:
        wide = x.float()
        return weights[name] * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)

    angle = torch.arange(length).unsqueeze(-1) * 5e5 ** (-torch.arange(0, size, 2) / size)
    angle = torch.cat([angle, angle], -1)

    def rotate(x: Tensor) -> Tensor:
        cos, sin = (t if precise else t.to(x.dtype) for t in (angle.cos(), angle.sin()))
        y = x.float() if precise else x
        low, high = y.chunk(2, -1)
        return (y * cos + torch.cat([-high, low], -1) * sin).to(x.dtype)

    x = weights[f"{prefix}wte.weight"][ids_BT]
    for i in range(LAYERS):
        block = f"{prefix}blocks.{i}."
        h = norm(x, f"{block}attn_norm.weight")
        q, k, v = (
            F.linear(h, weights[f"{block}{name}.weight"]).view(rows, length, HEADS, size).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = F.scaled_dot_product_attention(
            rotate(q), rotate(k), v, attn_mask=torch.ones(rows, 1, length, length, dtype=torch.bool)
        )
        x = x + F.linear(mixed.transpose(1, 2).reshape(rows, length, WIDTH), weights[f"{block}attn_out.weight"])
        h = norm(x, f"{block}ff_norm.weight")
        gate, up = (F.linear(h, weights[f"{block}{name}.weight"]) for name in ("ff_proj", "up_proj"))
        x = x + F.linear(F.silu(gate) * up, weights[f"{block}ff_out.weight"])
    return F.linear(norm(x, f"{prefix}ln_f.weight"), weights[f"{prefix}ff_out.weight"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("precise", [True, False])
def test_llada_computes_what_is_written_down(dtype: str, precise: bool, tmp_path: Path):
    write_llada(tmp_path / "model", rope_full_precision=precise)
    weights = {n: t.to(getattr(torch, dtype)) for n, t in load_file(tmp_path / "model" / "model.safetensors").items()}
    found = logits_of(load(tmp_path / "model", dtype=dtype)[0], ids(2, 40))
    torch.testing.assert_close(found, by_hand(weights, ids(2, 40), precise), rtol=1e-5, atol=1e-5)
    if dtype == "bfloat16":
        assert not torch.equal(found, by_hand(weights, ids(2, 40), not precise))


@pytest.mark.parametrize("kind", ["prefix", "dual"])
def test_the_precise_rotation_is_kept_behind_a_cache(kind: str, tmp_path: Path):
    write_llada(tmp_path / "model")
    denoiser, encoder = load(tmp_path / "model", dtype="bfloat16")
    job = Job.of([encoder.prompt(text) for text in ("ab", "abc 1", "b")], 8, 4)
    done = rollout(with_cache(denoiser, kind), Threshold(0.9), job, DecodeOptions(rows=2, workers=1))
    assert bool(done.finished_R.all())
    assert check_denoiser(with_cache(denoiser, kind)) == []


# --- families that no native class carries -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"model_type": "llada", "hidden_size": 16, "num_experts": 8, "architectures": ["LLaDAMoEModelLM"]}, "experts"),
        ({"model_type": "llada", "hidden_size": 16, "expert_intermediate_size": 16}, "experts"),
        ({"model_type": "llada2_moe", "hidden_size": 16, "num_experts": 8}, "block by block"),
        ({"model_type": "sdar", "hidden_size": 16}, "block by block"),
        ({"model_type": "sdar_moe", "hidden_size": 16}, "block by block"),
        ({"model_type": "Fast_dLLM_Qwen", "hidden_size": 16}, "block by block"),
        ({"model_type": "diffusion_gemma"}, "no mask token"),
        ({}, "None"),
    ],
)
def test_other_families_are_refused_with_the_reason(config: dict[str, Any], word: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, str(tmp_path), word)


# --- A2D -----------------------------------------------------------------------------------------------------------


def write_a2d(folder: Path, native: str, **changes: Any) -> Any:
    kind = getattr(transformers, f"{native}ForCausalLM")
    config = getattr(transformers, f"{native}Config")(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=WIDTH // HEADS,
        max_position_embeddings=64,
        tie_word_embeddings=native == "Qwen3",
    )
    model = fill(kind(config))
    model.save_pretrained(folder)
    llada_tokenizer().save_pretrained(folder)
    edit(folder, model_type=f"a2d-{native.lower()}", architectures=[f"A2D{native}LMHeadModel"], mask_token_id=30)
    edit(folder, **changes)
    return model


@pytest.mark.parametrize("native", ["Llama", "Qwen2", "Qwen3"])
def test_an_a2d_checkpoint_is_its_native_model_made_bidirectional(native: str, tmp_path: Path):
    model = write_a2d(tmp_path, native)
    denoiser, encoder = load(tmp_path)
    assert torch.equal(logits_of(denoiser, ids()), bidirectional(model, ids()))
    done = rollout(denoiser, Threshold(0.9), Job.of([encoder.prompt("ab 1")], 8, 4))
    assert bool(done.finished_R.all())


@pytest.mark.parametrize(
    "change",
    [
        {"use_sliding_window": True},
        {"block_size": 32},
        {"layer_types": ["sliding_attention"] * 2},
        {"loophole_enabled": True},
    ],
)
def test_an_a2d_checkpoint_of_another_attention_is_refused(change: dict[str, Any], tmp_path: Path):
    write_a2d(tmp_path, "Qwen3", **change)
    refused(tmp_path, next(iter(change)))


# --- files ---------------------------------------------------------------------------------------------------------


def test_weights_that_are_cut_off_are_refused_by_file(tmp_path: Path):
    write_llada(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(tmp_path, "model.safetensors", "cut off")
    path.write_bytes(b"")
    refused(tmp_path, "model.safetensors", "cut off")


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path):
    write_llada(tmp_path)
    edit(tmp_path, d_model=WIDTH * 2)
    refused(tmp_path, "embed_tokens", "mismatched")


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused_by_name(kind: torch.dtype, tmp_path: Path):
    """They load as the numbers that they are without their scale."""
    write_llada(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "up_proj" in name)
    save_file(weights | {name: weights[name].to(kind)}, tmp_path / "model.safetensors", {"format": "pt"})
    refused(tmp_path, name, "quantized")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path):
    write_llada(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.transformer.blocks.1.up_proj.weight"][3, 2] = value
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    refused(tmp_path, "layers.1.mlp.up_proj", "not finite")


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", None])
def test_a_folder_without_safetensors_is_refused(pickled: str | None, tmp_path: Path):
    write_llada(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    if pickled:
        torch.save(weights, tmp_path / pickled)
    refused(tmp_path, pickled or "model.safetensors")


def shard(folder: Path, place: str) -> None:
    """The weights in two files, the second at ``place`` relative to the folder."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    target = folder / place
    target.parent.mkdir(exist_ok=True)
    save_file({n: weights[n] for n in names[::2]}, folder / "model-00001-of-00002.safetensors", {"format": "pt"})
    save_file({n: weights[n] for n in names[1::2]}, target, {"format": "pt"})
    index = {n: place if i % 2 else "model-00001-of-00002.safetensors" for i, n in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_shards_inside_the_folder_load(tmp_path: Path):
    native = write_llada(tmp_path / "model")
    shard(tmp_path / "model", "model-00002-of-00002.safetensors")
    assert torch.equal(logits_of(load(tmp_path / "model")[0], ids()), bidirectional(native, ids()))
    (tmp_path / "model" / "model-00002-of-00002.safetensors").unlink()
    refused(tmp_path / "model", "model-00002-of-00002.safetensors", "missing")


@pytest.mark.parametrize("place", ["../elsewhere/model-00002-of-00002.safetensors", "inner/other.safetensors"])
def test_shards_outside_the_folder_are_refused(place: str, tmp_path: Path):
    write_llada(tmp_path / "model")
    shard(tmp_path / "model", place)
    refused(tmp_path / "model", place)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"model"'])
def test_a_config_that_is_no_object_is_refused(text: str, tmp_path: Path):
    write_llada(tmp_path)
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, "config.json")


def test_weights_that_a_loader_replaced_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """transformers 5.0 to 5.12 could leave loaded weights random without saying so."""
    write_llada(tmp_path)
    real = transformers.LlamaForCausalLM.from_pretrained.__func__

    def careless(cls: Any, *arguments: Any, **more: Any) -> Any:
        model, info = real(cls, *arguments, **more)
        model.model.layers[1].mlp.up_proj.weight.data.normal_()
        return model, info

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", classmethod(careless))
    refused(tmp_path, "blocks.1.up_proj")


@pytest.mark.parametrize("layout", ["llada", "dream", "ModernBert"])
def test_rotary_frequencies_that_a_loader_left_unset_are_noticed(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No file holds them; transformers 5 left those of other classes as raw memory: finite, and no positions."""
    names = {"llada": "LlamaForCausalLM", "dream": "Qwen2ForCausalLM", "ModernBert": "ModernBertForMaskedLM"}
    if layout in MASKED:
        write_masked(tmp_path, layout)
    else:
        WRITERS[layout](tmp_path)
    kind = getattr(transformers, names[layout])
    real = kind.from_pretrained.__func__

    def careless(cls: Any, *arguments: Any, **more: Any) -> Any:
        model, info = real(cls, *arguments, **more)
        for name, value in model.named_buffers():
            if name.endswith("inv_freq"):
                value.fill_(1e-38)
        return model, info

    load(tmp_path)
    monkeypatch.setattr(kind, "from_pretrained", classmethod(careless))
    refused(tmp_path, str(tmp_path), "rotary frequencies")


# --- the hub's cache -------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two commits of own/tiny as the hub's client keeps them, the second one's branch main; no network. The native
    models by commit: they differ in their weights, their config and their tokenizer."""
    from huggingface_hub import constants

    place, models = tmp_path / "models--own--tiny", {}
    for number, commit in enumerate(("a" * 40, "b" * 40)):
        folder = place / "snapshots" / commit
        folder.mkdir(parents=True)
        models[commit] = write_llada(folder, rms_norm_eps=1e-5 * (1 + 99 * number))
        models[commit].config.rms_norm_eps = 1e-5 * (1 + 99 * number)
        weights = load_file(folder / "model.safetensors")
        weights["model.transformer.ff_out.weight"] += number
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        words = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(words | {"model_max_length": 10 + number}))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("b" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return models


@pytest.mark.parametrize("revision", ["a" * 40, "b" * 40, None, "main"])
def test_a_pinned_revision_is_what_is_loaded_whatever_the_branch_has(
    revision: str | None, cached: dict[str, Any], tmp_path: Path
):
    commit = revision if revision in cached else "b" * 40
    denoiser, encoder = load("own/tiny", revision=revision)
    folder = tmp_path / "models--own--tiny" / "snapshots" / commit
    assert torch.equal(logits_of(denoiser, ids()), logits_of(load(folder)[0], ids()))
    assert denoiser.model.config.rms_norm_eps == cached[commit].config.rms_norm_eps
    assert encoder.tokenizer.model_max_length == (10 if commit == "a" * 40 else 11)


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize(("revision", "commit"), [(None, "b" * 40), ("main", "b" * 40), ("a" * 40, "a" * 40)])
def test_a_stage_writes_the_commit_down_also_without_a_network(revision: str | None, commit: str, tmp_path: Path):
    model = Model(source="own/tiny", layout="llada", revision=revision, dtype="float32", rows={})
    shape = Pretrain(seed=0, width=8, layers=1, heads=1, inner=8, steps=1, learning_rate=0.1, warmup=0)
    workspace = Workspace(tmp_path / "work", "p")
    pretrain(workspace, {"m": model}, shape, "m")
    written = json.loads((workspace.outputs / "pretrain" / "m" / "source.json").read_text(encoding="utf-8"))
    assert written == {"source": "own/tiny", "revision": commit, "dtype": "float32"}


SETTINGS = read(Path(__file__).parents[2] / "params.yaml")


@pytest.mark.parametrize(
    ("name", "commit"),
    [("own/tiny", "b" * 40), ("own/tiny@main", "b" * 40), (f"own/tiny@{'a' * 40}", "a" * 40)],
)
def test_a_command_opens_the_revision_behind_the_name(
    name: str, commit: str, cached: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`decode --model` and `bench --model`, which stops here once its dLLM is open."""
    workspace = Workspace(tmp_path / "work", "p")
    denoiser, _ = resolve.open_dllm(workspace, SETTINGS, name)
    assert denoiser.model.config.rms_norm_eps == cached[commit].config.rms_norm_eps
    weights = load(tmp_path / "models--own--tiny" / "snapshots" / commit)[0]
    assert torch.equal(logits_of(denoiser, ids()), logits_of(weights, ids()))
    opened: list[Any] = []
    monkeypatch.setattr(
        bench, "open_named", lambda *given, **more: opened.append(resolve.open_named(*given, **more)) or opened[0]
    )
    with pytest.raises(DataError):  # no prompts here
        bench._subject(bench.Request(model=name), workspace, SETTINGS)
    assert opened[0][0].model.config.rms_norm_eps == cached[commit].config.rms_norm_eps


@pytest.mark.usefixtures("cached")
def test_a_revision_that_is_not_there_is_refused(tmp_path: Path):
    for name, error in (("own/tiny@", SettingsError), (f"own/tiny@{'c' * 40}", CheckpointError)):
        with pytest.raises(error, match="own/tiny") as found:
            resolve.open_named(name, "auto")
        assert has_remedy(str(found.value))


def test_a_folder_may_have_an_at_in_its_name(tmp_path: Path):
    folder = tmp_path / "tiny@a"
    folder.mkdir()
    write_llada(folder)
    denoiser, _ = resolve.open_named(str(folder), "auto")
    assert torch.equal(logits_of(denoiser, ids()), logits_of(load(folder)[0], ids()))


# --- ids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_id", [VOCABULARY, -1, 10**9, "30", True, 3.5])
def test_a_mask_id_out_of_range_is_refused(mask_id: Any, tmp_path: Path):
    write_llada(tmp_path, mask_token_id=mask_id)
    refused(tmp_path, f"mask_token_id={mask_id!r}", "30")


def test_a_mask_id_that_ends_a_text_is_refused(tmp_path: Path):
    write_llada(tmp_path, mask_token_id=1)
    refused(tmp_path, "mask_token_id=1", "end token", "30")


def test_a_mask_id_that_is_not_the_tokenizer_s_is_refused(tmp_path: Path):
    WRITERS["dream"](tmp_path, mask_token_id=5)
    refused(tmp_path, "mask_token_id=5", "30")


def test_a_vocabulary_with_a_hole_commits_real_tokens_only(tmp_path: Path):
    write_llada(tmp_path)
    path = tmp_path / "tokenizer.json"
    words = json.loads(path.read_text())
    vocabulary = words["model"]["vocab"]
    hole = vocabulary.pop("h")
    vocabulary["0"], moved = VOCABULARY - 1, vocabulary["0"]
    path.write_text(json.dumps(words))
    denoiser, encoder = load(tmp_path)
    assert denoiser.forbidden_ids.tolist() == sorted({moved, hole, 30, *range(31, VOCABULARY - 1)})
    assert encoder.answer("0", 1).tolist() == [VOCABULARY - 1]


def test_a_tokenizer_of_more_ids_than_the_model_embeds_is_refused(tmp_path: Path):
    write_llada(tmp_path)
    path = tmp_path / "tokenizer.json"
    words = json.loads(path.read_text())
    words["model"]["vocab"]["0"] = VOCABULARY
    path.write_text(json.dumps(words))
    refused(tmp_path, str(VOCABULARY), "tokenizer")


# --- fingerprints --------------------------------------------------------------------------------------------------


def test_a_fingerprint_names_the_weights_and_not_their_type(tmp_path: Path):
    made, encoder = embedded.build("llada", "abc", embedded.Shape(16, 2, 2, 24, 64), seed=3)
    embedded.save(made, encoder, tmp_path)
    known = made.fingerprint
    assert all(load(tmp_path, dtype=dtype)[0].fingerprint == known for dtype in ("float32", "bfloat16", "float64"))
    assert with_cache(made, "dual").fingerprint == known  # type: ignore[attr-defined]
    assert embedded.build("llada", "abc", embedded.Shape(16, 2, 2, 24, 64), seed=4)[0].fingerprint != known
    with torch.no_grad():
        made.model.model.layers[1].mlp.up_proj.weight += 0.01
    assert fingerprint(made.model) != known
    assert math.isfinite(int(known, 16)) and LLADA_CONFIG["n_kv_heads"] == HEADS


@pytest.mark.parametrize(
    ("file", "change", "word"),
    [
        ("tokenizer.json", {"decoder": {"type": "none"}}, "no tokenizer"),
        ("tokenizer.json", {"model": 7}, "no tokenizer"),
        ("tokenizer_config.json", {"mask_token": 7}, "no tokenizer"),
        ("config.json", {"num_attention_heads": 0}, "config.json|weights"),
        ("config.json", {"hidden_size": "wide"}, "config.json|weights"),
        ("config.json", {"rope_parameters": 7}, "config.json|weights"),
    ],
)
def test_whatever_a_library_says_of_a_damaged_file_is_a_refusal(
    file: str, change: dict[str, Any], word: str, tmp_path: Path
):
    denoiser, encoder = embedded.build("llada", "abc", embedded.Shape(16, 1, 2, 16, 32), seed=0)
    embedded.save(denoiser, encoder, tmp_path)
    load(tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(CheckpointError, match=word) as caught:
        load(tmp_path)
    assert has_remedy(str(caught.value)) and "\n" not in str(caught.value)
