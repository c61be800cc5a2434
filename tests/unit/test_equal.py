"""Loaded weights against their files: every value of every tensor is compared, under whatever name the file has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from components.denoisers import checkpoint, load
from tests.unit.test_denoisers import HEADS, INNER, LAYERS, VOCABULARY, WIDTH, fill, logits_of, refused, write_llada
from tests.unit.test_masked_models import masked_tokenizer, write_masked

torch.set_num_threads(1)
Careless = Callable[[type, Callable[[Any, Any], None]], None]


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> Careless:
    """Makes a class' loader do something to the model, or to what it reports, after loading."""

    def spoil(kind: Any, act: Callable[[Any, Any], None]) -> None:
        real = kind.from_pretrained.__func__

        def loader(cls: Any, *arguments: Any, **more: Any) -> Any:
            model, info = real(cls, *arguments, **more)
            act(model, info)
            return model, info

        monkeypatch.setattr(kind, "from_pretrained", classmethod(loader))

    return spoil


def rename(folder: Path, *pairs: tuple[str, str]) -> None:
    weights = load_file(folder / "model.safetensors")
    for old, new in pairs:
        weights = {name.replace(old, new): value for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("chunk", [1, 64, 1 << 24])
@pytest.mark.parametrize("row", [0, 17, VOCABULARY - 1])
def test_one_value_that_a_loader_changed_is_noticed_in_any_row(
    row: int, chunk: int, tmp_path: Path, careless: Careless, monkeypatch: pytest.MonkeyPatch
):
    write_llada(tmp_path)
    monkeypatch.setattr(checkpoint, "CHUNK", chunk)
    load(tmp_path)

    def change(model: Any, info: Any) -> None:
        model.model.embed_tokens.weight.data[row, WIDTH - 1] += 1

    careless(transformers.LlamaForCausalLM, change)
    refused(tmp_path, "model.transformer.wte.weight", "other values")


@pytest.mark.parametrize(
    "pairs",
    [
        (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")),
        (("1.output.LayerNorm.bias", "1.output.LayerNorm.beta"),),
        (("bert.", ""),),
    ],
    ids=["old-names", "one-old-name", "no-prefix"],
)
def test_weights_that_transformers_renames_are_compared(
    pairs: tuple[tuple[str, str], ...], tmp_path: Path, careless: Careless
):
    model = write_masked(tmp_path, "Bert")
    rename(tmp_path, *pairs)
    ids_BT = torch.randint(5, 25, (2, 9))
    with torch.no_grad():
        wanted = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits
    assert torch.equal(logits_of(load(tmp_path)[0], ids_BT), wanted)  # type: ignore[arg-type]

    def change(model: Any, info: Any) -> None:
        model.bert.encoder.layer[1].output.LayerNorm.bias.data[3] += 1

    careless(transformers.BertForMaskedLM, change)
    refused(tmp_path, "encoder.layer.1.output.LayerNorm.b", "other values")


def test_weights_that_transformers_takes_apart_are_compared(tmp_path: Path, careless: Careless):
    """Nomic BERT's file holds q, k and v in one tensor."""
    config = transformers.NomicBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=48,
        pad_token_id=0,
    )
    fill(transformers.NomicBertForMaskedLM(config)).save_pretrained(tmp_path)
    masked_tokenizer(0).save_pretrained(tmp_path)
    assert any("Wqkv" in name for name in load_file(tmp_path / "model.safetensors"))
    load(tmp_path)

    def change(model: Any, info: Any) -> None:
        next(value for name, value in model.named_parameters() if "1.self_attn.k_proj" in name).data[3] += 1

    careless(transformers.NomicBertForMaskedLM, change)
    refused(tmp_path, "Wqkv", "other values")


def test_a_weight_that_no_tensor_of_the_file_stands_for_is_refused_by_name(tmp_path: Path, careless: Careless):
    """A loader that leaves a weight random and reports nothing missing."""
    write_masked(tmp_path, "Bert")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    careless(transformers.BertForMaskedLM, lambda model, info: info["missing_keys"].clear())
    refused(tmp_path, "bert.encoder.layer.1.output.dense.bias", "no tensor of the files")


def test_a_table_of_positions_that_the_class_makes_itself_may_stand_in_the_file(tmp_path: Path, careless: Careless):
    """Files of 2020 hold one, beside layer norms of the old names."""
    write_masked(tmp_path, "Bert")
    rename(tmp_path, ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    weights = load_file(tmp_path / "model.safetensors") | {"bert.embeddings.position_ids": torch.arange(48)[None]}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    load(tmp_path)

    def change(model: Any, info: Any) -> None:
        model.bert.embeddings.LayerNorm.weight.data[0] += 1

    careless(transformers.BertForMaskedLM, change)
    refused(tmp_path, "bert.embeddings.LayerNorm.gamma", "other values")
