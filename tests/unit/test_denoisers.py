"""Checkpoints in the hub's layouts load natively and compute what the native classes compute; what would be silently
wrong is refused. Every checkpoint and tokenizer is made here; nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from components.core.errors import CheckpointError, DataError
from components.core.rng import generator
from components.core.types import Canvas
from components.denoisers import LoadedDenoiser, TransformerDenoiser, embedded, load
from components.denoisers.encoder import Encoder
from components.denoisers.loading import probe
from tests.messages import has_remedy

torch.set_num_threads(1)

LETTERS = "abcdefgh .0123456789"
WIDTH, LAYERS, HEADS, INNER, VOCABULARY = 16, 2, 4, 24, 40
LLADA_NAMES = {
    "model.embed_tokens.": "model.transformer.wte.",
    "model.norm.": "model.transformer.ln_f.",
    "lm_head.": "model.transformer.ff_out.",
    "input_layernorm.": "attn_norm.",
    "post_attention_layernorm.": "ff_norm.",
    "self_attn.q_proj.": "q_proj.",
    "self_attn.k_proj.": "k_proj.",
    "self_attn.v_proj.": "v_proj.",
    "self_attn.o_proj.": "attn_out.",
    "mlp.gate_proj.": "ff_proj.",
    "mlp.up_proj.": "up_proj.",
    "mlp.down_proj.": "ff_out.",
    "model.layers.": "model.transformer.blocks.",
}
LLADA_CONFIG = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": WIDTH,
    "embedding_size": VOCABULARY,
    "eos_token_id": 1,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 30,
    "max_sequence_length": 64,
    "mlp_hidden_size": INNER,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "n_heads": HEADS,
    "n_kv_heads": HEADS,
    "n_layers": LAYERS,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "use_cache": False,
    "vocab_size": VOCABULARY,
    "weight_tying": False,
}
DREAM_CONFIG = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "mask_token_id": 30,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "max_position_embeddings": 64,
    "max_window_layers": 28,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "vocab_size": VOCABULARY,
}


# --- checkpoints made by hand --------------------------------------------------------------------------------------


def fill(model: Any) -> Any:
    """Random weights with an address, large enough that every layer matters."""
    source = generator("weights")
    for weight in model.parameters():
        weight.data = weight.data + 0.3 * torch.randn(weight.shape, generator=source)
    return model.eval()


def native_llama() -> Any:
    return fill(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=WIDTH,
                intermediate_size=INNER,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                num_key_value_heads=HEADS,
                rms_norm_eps=1e-5,
                max_position_embeddings=64,
                rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
                tie_word_embeddings=False,
                pad_token_id=1,
            )
        )
    )


def native_qwen() -> Any:
    return fill(
        Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=VOCABULARY,
                hidden_size=WIDTH,
                intermediate_size=INNER,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                num_key_value_heads=2,
                rms_norm_eps=1e-6,
                max_position_embeddings=64,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
                tie_word_embeddings=False,
                pad_token_id=1,
            )
        )
    )


def llada_tokenizer() -> PreTrainedTokenizerFast:
    """As LLaDA's: no mask token is named, the template writes bos and always the assistant's header."""
    special = ["<|startoftext|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "\n"]
    pieces = list(dict.fromkeys([*special, *LETTERS[:14], *"userasitnt"]))
    pieces += [f"<|{i}|>" for i in range(30 - len(pieces))]
    vocabulary = {token: i for i, token in enumerate([*pieces, "<|mdm_mask|>"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=None))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([*special[:5], "<|mdm_mask|>"])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=special[0], eos_token=special[1], pad_token=special[1]
    )
    made.chat_template = (
        "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content']"
        " | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    )
    return made


def write_llada(folder: Path, **changes: Any) -> Any:
    """A folder as the hub has it; returns the native model that it must equal."""
    model = native_llama()
    weights = {}
    for name, value in model.state_dict().items():
        for ours, theirs in LLADA_NAMES.items():
            name = name.replace(ours, theirs)
        weights[name] = value.contiguous()
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(LLADA_CONFIG | changes))
    llada_tokenizer().save_pretrained(folder)
    return model


def write_dream(folder: Path, **changes: Any) -> Any:
    """A folder as the hub has it, with the slow tokenizer's files and a class that is remote code."""
    model = native_qwen()
    folder.mkdir(exist_ok=True)
    save_file(
        {n: t.contiguous() for n, t in model.state_dict().items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(DREAM_CONFIG | changes))
    pieces = ["!", "<|unused|>", *"abcdefgh.0123456789", "Ġ", "ab", "Ġa", "user", "Ċ"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\nĠ a\n")
    special = {26: "<|endoftext|>", 27: "<|im_start|>", 28: "<|im_end|>", 29: "<|beginoftext|>", 30: "<|mask|>"}
    added = {
        str(i): dict(content=token, lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
        for i, token in special.items()
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "added_tokens_decoder": added,
                "tokenizer_class": "DreamTokenizer",
                "bos_token": "<|beginoftext|>",
                "eos_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
                "mask_token": "<|mask|>",
                "unk_token": None,
                "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
                "errors": "replace",
                "chat_template": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
                "{{ '<|im_end|>\n' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
            }
        )
    )
    return model


WRITERS: dict[str, Callable[..., Any]] = {"llada": write_llada, "dream": write_dream}


def bidirectional(model: Any, ids_BT: Tensor) -> Tensor:
    """(B, T, V) of the native class with every position open to every other."""
    mask = torch.ones(len(ids_BT), 1, ids_BT.shape[1], ids_BT.shape[1], dtype=torch.bool)
    with torch.no_grad():
        return model(input_ids=ids_BT, attention_mask=mask, use_cache=False).logits


def logits_of(denoiser: LoadedDenoiser, ids_BT: Tensor, attend_BT: Tensor | None = None) -> Tensor:
    attend_BT = torch.ones_like(ids_BT, dtype=torch.bool) if attend_BT is None else attend_BT
    return denoiser.logits(denoiser.hidden(Canvas(ids_BT, attend_BT, 0))[0])


# --- loading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", WRITERS)
def test_a_hub_layout_loads_natively_and_equals_the_native_model_bit_for_bit(layout: str, tmp_path: Path):
    native = WRITERS[layout](tmp_path / "model")
    denoiser, _ = load(tmp_path / "model")
    ids_BT = torch.randint(0, VOCABULARY, (3, 9), generator=generator("ids"))
    wanted, found = bidirectional(native, ids_BT), logits_of(denoiser, ids_BT)
    if layout == "dream":  # what the native class says at i is about i + 1
        assert isinstance(denoiser, TransformerDenoiser) and denoiser.shifted
        assert torch.equal(found[:, 1:], wanted[:, :-1])
    else:
        assert torch.equal(found, wanted)
    assert denoiser.mask_id == 30
    assert not any(p.requires_grad for p in denoiser.model.parameters())


@pytest.mark.parametrize("layout", WRITERS)
def test_a_row_says_the_same_behind_padding_of_any_content(layout: str, tmp_path: Path):
    WRITERS[layout](tmp_path / "model")
    denoiser, _ = load(tmp_path / "model", dtype="float64")
    ids_BT = torch.randint(0, 20, (2, 7), generator=generator("ids"))
    wide_BT = torch.nn.functional.pad(ids_BT, (3, 2), value=5)
    attend_BT = torch.nn.functional.pad(torch.ones_like(ids_BT, dtype=torch.bool), (3, 2), value=False)
    wide = logits_of(denoiser, wide_BT, attend_BT)[:, 3:-2]
    torch.testing.assert_close(wide, logits_of(denoiser, ids_BT), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_what_this_project_saves_it_loads_back_bit_for_bit(layout: str, tmp_path: Path):
    made, encoder = embedded.build(layout, LETTERS, embedded.Shape(16, 2, 2, 24, 64), seed=3)
    embedded.save(made, encoder, tmp_path)
    denoiser, again = load(tmp_path)
    ids_BT = torch.randint(0, made.vocabulary, (2, 8), generator=generator("ids"))
    assert torch.equal(logits_of(denoiser, ids_BT), logits_of(made, ids_BT))
    assert isinstance(denoiser, TransformerDenoiser)
    assert (denoiser.shifted, denoiser.mask_id) == (made.shifted, made.mask_id)
    assert torch.equal(denoiser.forbidden_ids, made.forbidden_ids)
    assert torch.equal(again.prompt("abc 12"), encoder.prompt("abc 12"))


def test_the_same_seed_builds_the_same_model_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    one, other, third = (
        embedded.build("llada", LETTERS, embedded.Shape(16, 1, 2, 24, 64), seed)[0].model for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, third.lm_head.weight)


def test_the_mask_and_what_the_tokenizer_cannot_decode_are_never_committed(tmp_path: Path):
    write_llada(tmp_path / "model")
    denoiser, encoder = load(tmp_path / "model")
    assert denoiser.forbidden_ids.tolist() == [30, *range(len(encoder.tokenizer), VOCABULARY)]
    assert len(encoder.tokenizer) == 31


def test_the_mask_id_is_found_by_its_token_where_the_config_does_not_name_it(tmp_path: Path):
    write_llada(tmp_path / "model", mask_token_id=None)
    denoiser, encoder = load(tmp_path / "model")
    assert encoder.tokenizer.mask_token_id is None
    assert denoiser.mask_id == 30


def test_bfloat16_weights_are_loaded_as_asked(tmp_path: Path):
    write_dream(tmp_path / "model")
    denoiser, _ = load(tmp_path / "model", dtype="bfloat16")
    assert {p.dtype for p in denoiser.model.parameters()} == {torch.bfloat16}
    assert load(tmp_path / "model")[0].model.lm_head.weight.dtype == torch.float32  # whatever the config says


# --- refusals ------------------------------------------------------------------------------------------------------


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert has_remedy(message), message
    for word in words:
        assert word in message


@pytest.mark.parametrize("layout", WRITERS)
def test_missing_weights_are_refused(layout: str, tmp_path: Path):
    WRITERS[layout](tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    gone = next(name for name in weights if "v_proj.weight" in name)
    save_file(
        {n: t for n, t in weights.items() if n != gone}, tmp_path / "model" / "model.safetensors", {"format": "pt"}
    )
    refused(tmp_path / "model", "missing_keys", "v_proj")


def test_unknown_weights_are_refused(tmp_path: Path):
    write_llada(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file(
        weights | {"model.transformer.blocks.0.q_proj.bias": torch.zeros(WIDTH)},
        tmp_path / "model" / "model.safetensors",
        {"format": "pt"},
    )
    refused(tmp_path / "model", "unexpected_keys", "bias")


@pytest.mark.parametrize(
    "change",
    [
        {"alibi": True},
        {"rope": False},
        {"activation_type": "swiglu"},
        {"block_type": "sequential"},
        {"include_qkv_bias": True},
        {"layer_norm_type": "default"},
        {"layer_norm_with_affine": False},
        {"include_bias": True},
        {"bias_for_layer_norm": True},
        {"input_emb_norm": True},
        {"attention_layer_norm": True},
        {"block_group_size": 2},
        {"scale_logits": True},
    ],
)
def test_a_llada_of_another_architecture_is_refused(change: dict[str, Any], tmp_path: Path):
    write_llada(tmp_path / "model", **change)
    refused(tmp_path / "model", next(iter(change)))


@pytest.mark.parametrize(
    "change", [{"use_sliding_window": True}, {"hidden_act": "gelu"}, {"block_size": 32}, {"use_mrope": True}]
)
def test_a_dream_of_another_architecture_is_refused(change: dict[str, Any], tmp_path: Path):
    write_dream(tmp_path / "model", **change)
    refused(tmp_path / "model", next(iter(change)))


def test_an_unknown_model_type_is_refused(tmp_path: Path):
    write_dream(tmp_path / "model", model_type="gpt_neo")
    refused(tmp_path / "model", "gpt_neo", "llada", "modernbert")


def test_a_folder_without_a_mask_is_refused(tmp_path: Path):
    """An ordinary language model's folder is a known class, but no dLLM."""
    native_qwen().save_pretrained(tmp_path)
    text = llada_tokenizer().backend_tokenizer.to_str().replace("<|mdm_mask|>", "<|other|>")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), eos_token="<|endoftext|>").save_pretrained(
        tmp_path
    )
    refused(tmp_path, "mask_token_id")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    native_qwen().save_pretrained(tmp_path)
    refused(tmp_path, "tokenizer")


def test_a_model_that_is_not_there_is_refused_at_once_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[Any] = []

    def nobody(*where: Any, **_: Any) -> None:
        asked.append(where)
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # its variable is read at the import
    monkeypatch.setattr("socket.getaddrinfo", nobody)
    for place in (tmp_path / "nothing", "GSAI-ML/LLaDA-8B-Instruct"):
        refused(place, str(place))  # type: ignore[arg-type]
    assert not asked


class Causal(TransformerDenoiser):
    def features(self, ids_BT: Tensor, attend_BT: Tensor) -> Tensor:
        return self.model.model(input_ids=ids_BT, use_cache=False).last_hidden_state


class Leaking(TransformerDenoiser):
    def features(self, ids_BT: Tensor, attend_BT: Tensor) -> Tensor:
        return super().features(ids_BT, torch.ones_like(attend_BT))


@pytest.mark.parametrize(("kind", "word"), [(Causal, "causally"), (Leaking, "padding")])
def test_the_probe_refuses_what_would_decode_wrongly_without_an_error(kind: type[TransformerDenoiser], word: str):
    denoiser = kind(native_llama(), mask_id=30, tokens=range(31), shifted=False)
    with pytest.raises(CheckpointError, match=word):
        probe(denoiser)


def test_the_probe_refuses_weights_that_are_not_finite():
    model = native_llama()
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = torch.nan
    with pytest.raises(CheckpointError, match="up_proj"):
        probe(TransformerDenoiser(model, mask_id=30, tokens=range(31), shifted=False))


# --- prompts and answers -------------------------------------------------------------------------------------------


def test_a_llada_prompt_is_the_chat_once_with_its_header(tmp_path: Path):
    write_llada(tmp_path / "model")
    _, encoder = load(tmp_path / "model")
    words = encoder.tokenizer.convert_ids_to_tokens(encoder.prompt("ab 1").tolist())
    head = ["<|start_header_id|>", *"assistant", "<|end_header_id|>", "\n", "\n"]
    assert words == [
        "<|startoftext|>",
        "<|start_header_id|>",
        *"user",
        "<|end_header_id|>",
        "\n",
        "\n",
        *"ab 1",
        "<|eot_id|>",
        *head,
    ]


def test_a_dream_prompt_is_read_by_the_native_tokenizer_without_remote_code(tmp_path: Path):
    write_dream(tmp_path / "model")
    denoiser, encoder = load(tmp_path / "model")
    words = encoder.tokenizer.convert_ids_to_tokens(encoder.prompt("ab a").tolist())
    assert words[0] == "<|im_start|>"
    assert words[words.index("ab") : words.index("ab") + 3] == ["ab", "Ġa", "<|im_end|>"]
    assert encoder.tokenizer.convert_ids_to_tokens(denoiser.mask_id) == "<|mask|>"
    assert {26, 28} <= encoder.end_ids


@pytest.mark.parametrize("text", ["abc 12", "", "0 1 2 3.", " a  b "])
def test_an_answer_comes_back_as_it_was_written(text: str):
    _, encoder = embedded.build("llada", LETTERS, embedded.Shape(16, 1, 2, 24, 64), seed=0)
    canvas = encoder.answer(text, 12)
    assert len(canvas) == 12
    assert encoder.text(canvas) == text
    assert "".join(encoder.token(t) for t in canvas.tolist()) == text + "<|endoftext|>" * (12 - len(text))


def test_text_stops_at_the_first_end_token():
    _, encoder = embedded.build("llada", LETTERS, embedded.Shape(16, 1, 2, 24, 64), seed=0)
    canvas = encoder.answer("ab", 6)
    canvas[4] = encoder.answer("c", 1)[0]
    assert encoder.text(canvas) == "ab"


def test_an_answer_that_does_not_fit_is_refused():
    _, encoder = embedded.build("llada", LETTERS, embedded.Shape(16, 1, 2, 24, 64), seed=0)
    with pytest.raises(DataError, match="takes 6 tokens, the canvas has 5"):
        encoder.answer("abc 12", 5)


def test_two_prompts_of_the_embedded_chat_differ_only_in_what_the_user_says():
    _, encoder = embedded.build("dream", LETTERS, embedded.Shape(16, 1, 2, 24, 64), seed=0)
    assert isinstance(encoder, Encoder)
    words = encoder.tokenizer.convert_ids_to_tokens(encoder.prompt("ab").tolist())
    assert words == ["<|user|>", "a", "b", "<|assistant|>"]
