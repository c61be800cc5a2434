"""Checkpoint folder or hub name -> denoiser and encoder, without remote code.

==================  ==========================================================  ===========================
model_type          checkpoints                                                 native class
==================  ==========================================================  ===========================
llada               LLaDA 8B Base and Instruct, LLaDA 1.5                       Llama, keys renamed
Dream               Dream, Dream-Coder, DiffuCoder                              Qwen2, shifted by one
a2d-*               autoregressive models made dLLMs (dllm's A2D), unshifted    Llama, Qwen2, Qwen3
llama, qwen2 (3)    what this project wrote, and others with a mask token       Llama, Qwen2, Qwen3
bert, roberta ...   masked language models of transformers                      its ...ForMaskedLM
==================  ==========================================================  ===========================

The first two were compared with the authors' code. ``logits_shifted`` in config.json overrides the shift. Whatever is
loaded is compared with its files and probed (``check``).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ..core.devices import ran_out
from ..core.errors import CheckpointError, DataError
from . import checkpoint, llada, vocabulary
from .check import check_denoiser
from .encoder import Encoder
from .split import AUTO, split
from .transformer import TransformerDenoiser

if TYPE_CHECKING:
    from .masked_lm import MaskedLMDenoiser

LoadedDenoiser: TypeAlias = "TransformerDenoiser | MaskedLMDenoiser"

DTYPES = ("float32", "bfloat16", "float64")
NOT_SHAPE = ("model_type", "auto_map", "architectures", "dtype", "torch_dtype")
# Ordinary sentences, for the check of the alignment.
TEXT = (
    "The sun rises in the east and sets in the west. There are seven days in a week and twelve months in a year. "
    "Water boils at one hundred degrees. Paris is the capital of France, and Rome is the capital of Italy."
)


@dataclass(frozen=True)
class Family:
    """native: prefix of the class. shifted: logits at i predict position i + 1. must_be: what the native class
    computes, whatever the config says. defaults: what a key means that the config leaves out, where it matters."""

    native: str
    shifted: bool = False
    must_be: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)


# A block_size marks descendants that attend block by block.
WHOLE = {"use_sliding_window": False, "block_size": None}
FAMILIES = {
    "llada": Family("Llama", must_be=llada.MUST_BE, defaults=llada.DEFAULTS),
    "Dream": Family("Qwen2", True, {"hidden_act": "silu", "use_mrope": False, **WHOLE}),
    "llama": Family("Llama", must_be={"block_size": None}),
    "qwen2": Family("Qwen2", must_be=WHOLE),
    "qwen3": Family("Qwen3", must_be=WHOLE),
    "a2d-llama": Family("Llama", must_be={"block_size": None}),
    "a2d-qwen2": Family("Qwen2", must_be=WHOLE),
    "a2d-qwen3": Family("Qwen3", must_be={**WHOLE, "loophole_enabled": False}),
}

BLOCKWISE = "attends block by block, so that later blocks are never seen; this library's dLLMs see the whole canvas"
EXPERTS = "routes tokens to experts by its own code, which no native class of transformers computes"
UNSUPPORTED = {
    "llada_moe": EXPERTS,
    "llada2_moe": f"{EXPERTS}, and {BLOCKWISE}",
    "llada2": BLOCKWISE,
    "sdar": BLOCKWISE,
    "sdar_moe": BLOCKWISE,
    "Fast_dLLM_Qwen": BLOCKWISE,
    "diffusion_gemma": "starts from random tokens and has no mask token, so that there is nothing to unmask",
}


def load(
    path: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    revision: str | None = None,
    limits: Mapping[int | str, int | str] | None = None,
) -> tuple[LoadedDenoiser, Encoder]:
    """The denoiser and the encoder of a checkpoint, compared with its files and probed.

    device: "auto" spreads the layers over all GPUs, see ``split``, which reads ``limits``. dtype: float32, bfloat16 or
    float64. CheckpointError if the checkpoint cannot be carried exactly.
    """
    path = str(path)
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype={dtype!r} is no type of weights here. Use one of {DTYPES}.")
    raw = checkpoint.read_config(path, revision)
    name = str(raw.get("model_type"))
    if why := _unsupported(name, raw):
        raise CheckpointError(
            f"{path}: model_type {name!r} {why}. Use a LLaDA, Dream, A2D or masked-language-model checkpoint."
        )
    family = FAMILIES.get(name)
    common: dict[str, Any] = dict(dtype=getattr(torch, dtype), revision=revision)
    model = _masked_model(path, name, common) if family is None else _decoder(path, name, family, raw, common)
    tokenizer = _tokenizer(path, name, family is None, revision)
    known = vocabulary.known_ids(path, tokenizer, model.config.vocab_size)
    end_ids = vocabulary.end_ids(tokenizer, family is None)
    mask_id = vocabulary.mask_id(path, raw, tokenizer, model.config.vocab_size, end_ids)
    if device == AUTO and family is None:
        raise CheckpointError(f"{path}: a masked language model is not split. Name one device.")
    model = model.to(device) if device != AUTO else split(_finite(model), limits)
    if family is None:
        denoiser = _masked_denoiser(path, model, mask_id, known, tokenizer.pad_token_id or 0)
    else:
        denoiser = TransformerDenoiser(model, mask_id, known, bool(raw.get("logits_shifted", family.shifted)))
    encoder = Encoder(tokenizer, end_ids, denoiser.positions, mask_id)
    probe(denoiser, encoder)
    return denoiser, encoder


def _unsupported(name: str, raw: dict[str, Any]) -> str | None:
    """Why no route can carry this config, or None."""
    experts = any(raw.get(key) for key in ("num_experts", "n_routed_experts", "num_local_experts"))
    if name == "llada" and (experts or ("hidden_size" in raw and "d_model" not in raw)):
        return EXPERTS
    return UNSUPPORTED.get(name)


def _decoder(path: str, name: str, family: Family, raw: dict[str, Any], common: dict[str, Any]) -> Any:
    """A native causal-LM class with the checkpoint's weights."""
    import transformers

    raw = family.defaults | raw
    for key, wanted in family.must_be.items():
        if key in raw and raw[key] != wanted and (raw[key] or wanted):  # null is as good as false
            raise CheckpointError(
                f"{path}: config.json has {key}={raw[key]!r}, the native class computes {wanted!r} "
                f"only. Use the released layout."
            )
    if "sliding_attention" in (raw.get("layer_types") or ()):
        raise CheckpointError(f"{path}: layer_types has sliding_attention. Use a layout with full attention alone.")
    kind: Any = getattr(transformers, f"{family.native}ForCausalLM")
    shape = {k: v for k, v in raw.items() if k not in NOT_SHAPE}
    shape = llada.native_config(path, raw) if name == "llada" else shape
    with _described(path):
        config = getattr(transformers, f"{family.native}Config")(**shape)
    names = llada.KEYS if name == "llada" else {}
    model = _from_files(path, kind, common | {"config": config, "key_mapping": names or None}, names)
    if name == "llada" and raw["rope_full_precision"] and common["dtype"] == torch.bfloat16:
        llada.rotate_in_float32(model)
    return model


def _masked_model(path: str, name: str, common: dict[str, Any]) -> Any:
    """The ...ForMaskedLM class of this model type, with the checkpoint's weights."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_MASKED_LM_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if name not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise CheckpointError(
            f"{path}: model_type {name!r} is not supported. Use one of {', '.join(FAMILIES)}, or a masked language "
            f"model of transformers (bert, roberta, modernbert, esm ...)."
        )
    with _described(path):
        config = CONFIG_MAPPING[name].from_pretrained(path, revision=common["revision"])
    if not isinstance(getattr(config, "vocab_size", None), int):  # a model of images and text
        raise CheckpointError(f"{path}: {type(config).__name__} has no vocab_size. Use another masked language model.")
    return _from_files(path, MODEL_FOR_MASKED_LM_MAPPING[type(config)], common | {"config": config}, {})


def _masked_denoiser(path: str, model: Any, mask_id: int, known: frozenset[int], pad_id: int) -> MaskedLMDenoiser:
    """The model as a denoiser. CheckpointError where its class is more than an encoder with a head (BART)."""
    from .masked_lm import MaskedLMDenoiser

    try:
        return MaskedLMDenoiser(model, mask_id, known, pad_id)
    except Exception as error:  # each class fails in its own way
        if ran_out(error):
            raise
        raise CheckpointError(
            f"{path}: {type(model).__name__} is no encoder with a head ({_line(error)}). Use another masked language "
            f"model."
        ) from error


@contextmanager
def _described(path: str) -> Generator[None]:
    """CheckpointError where the library does not make a config of config.json."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(
            f"{path}: config.json describes no model ({_line(error)}). Mend it, or download the checkpoint again."
        ) from error


def _line(error: Exception) -> str:
    """What a library says of a file that it cannot use, in one line. Its errors have no common class."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _from_files(path: str, kind: Any, more: dict[str, Any], names: dict[str, str]) -> Any:
    """``kind.from_pretrained`` from safetensors alone, checked against the files."""
    from transformers.utils import logging

    files = checkpoint.weight_files(path, more["revision"])
    checkpoint.check_readable(files)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is said below, in a sentence
    try:
        model, info = kind.from_pretrained(
            path, output_loading_info=True, use_safetensors=True, ignore_mismatched_sizes=True, **more
        )
    except Exception as error:
        raise CheckpointError(
            f"{path}: its weights do not load ({_line(error)}). Compare config.json with the weights, or "
            f"download the checkpoint again."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    checkpoint.check_loaded(path, info, model.config)
    checkpoint.check_tied(path, model)
    checkpoint.check_equal(model, files, names)
    checkpoint.check_rotary(path, model)
    return model


def probe(denoiser: LoadedDenoiser, encoder: Encoder | None = None) -> None:
    """Checks after loading what would otherwise fail in silence; raises CheckpointError.

    Every weight and buffer must be finite, and ``check_denoiser`` must find nothing.
    """
    model = denoiser.model
    _finite(model)
    problems = check_denoiser(denoiser, None if encoder is None else _text_ids(encoder, denoiser.positions))
    if problems:
        raise CheckpointError(
            f"{type(model).__name__} cannot be decoded with: {'; '.join(problems)}. Use transformers >=5.13,<6, a "
            f"whole checkpoint, and attention that honors a 4-D mask (sdpa, eager)."
        )


def _finite(model: Any) -> Any:
    """The model, where all its weights and buffers are finite."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        # What lies on the disk was looked at before it went there.
        if not tensor.is_meta and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{name} holds values that are not finite: the checkpoint did not load whole. Download it again, or "
                "compare it with its safetensors files."
            )
    return model


def _text_ids(encoder: Encoder, positions: int) -> torch.Tensor | None:
    """``TEXT`` where the vocabulary can write it."""
    try:
        ids = encoder.plain(TEXT)[: min(64, positions)]
    except DataError:  # letters of a puzzle
        return None
    return ids


def _tokenizer(path: str, family: str, masked: bool, revision: str | None) -> Any:
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    # Dream's own tokenizer class is remote code; the native one gives the same ids. Everybody else has a whole
    # tokenizer.json; AutoTokenizer would go by the model's family and put its own splitting into it (Qwen2: no spaces).
    kind: Any = transformers.Qwen2Tokenizer if family == "Dream" else transformers.PreTrainedTokenizerFast
    own = TOKENIZER_MAPPING_NAMES.get(family)
    if masked and own and checkpoint.find(path, "tokenizer.json", revision) is None:
        kind = getattr(transformers, own)  # a vocabulary file, split by the class' own rules
    try:
        tokenizer = kind.from_pretrained(path, revision=revision, padding_side="left")
    except Exception as error:
        raise CheckpointError(
            f"{path}: no tokenizer ({_line(error)}). Put the {family} checkpoint's tokenizer beside its weights."
        ) from error
    if vocabulary.is_foreign(tokenizer):
        tokenizer.chat_template = None
    return tokenizer
