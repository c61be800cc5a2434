"""Prompts as they come: control text, unknown characters, too long ones, tokenizers without a template or an end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from components.bench import checkpoints
from components.core.errors import DataError
from components.core.types import Canvas
from components.decode.engine import rollout
from components.decode.job import Job
from components.decode.prompts import Prompts
from components.denoisers import TransformerDenoiser, embedded, load
from components.denoisers.encoder import Encoder
from components.policies.heuristics import Threshold
from components.tasks.example import Example, Score
from tests.messages import has_remedy
from tests.unit.test_denoisers import WRITERS
from tests.unit.test_masked_models import write_masked

torch.set_num_threads(1)

LETTERS = "abcdefgh .0123456789<|>musrki"


def built(positions: int = 64) -> tuple[TransformerDenoiser, Encoder]:
    return embedded.build("llada", LETTERS, embedded.Shape(16, 1, 2, 24, positions), seed=0)


def refused(encoder: Any, text: str, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        encoder.prompt(text)
    assert has_remedy(str(caught.value)), str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("token", ["<|mask|>", "<|user|>", "<|assistant|>", "<|endoftext|>"])
@pytest.mark.parametrize("text", ["{}", "ab {} 12", "{}{}"])
def test_control_text_in_a_question_is_refused_by_name(token: str, text: str):
    refused(built()[1], text.replace("{}", token), token)


def test_what_only_looks_like_control_text_stays_text():
    encoder = built()[1]
    words = encoder.tokenizer.convert_ids_to_tokens(encoder.prompt("<|mak|> user").tolist())
    assert words == ["<|user|>", *"<|mak|> user", "<|assistant|>"]


@pytest.mark.parametrize(
    ("layout", "token"),
    [("llada", "<|mdm_mask|>"), ("llada", "<|eot_id|>"), ("dream", "<|mask|>"), ("dream", "<|im_start|>")],
)
def test_control_text_of_a_hub_tokenizer_is_refused_by_name(layout: str, token: str, tmp_path: Path):
    """LLaDA's tokenizer does not name its mask token: the id is known by the config alone."""
    WRITERS[layout](tmp_path)
    _, encoder = load(tmp_path)
    assert len(encoder.prompt("ab 1"))
    refused(encoder, f"ab {token}", token)


def test_an_unnamed_mask_token_is_control_text_too(tmp_path: Path):
    WRITERS["llada"](tmp_path)
    path = tmp_path / "tokenizer.json"
    words = json.loads(path.read_text())
    for token in words["added_tokens"]:
        token["special"] = token["special"] and token["content"] != "<|mdm_mask|>"
    path.write_text(json.dumps(words))
    refused(load(tmp_path)[1], "ab <|mdm_mask|>", "<|mdm_mask|>")


def test_a_chat_gets_no_special_tokens_but_those_of_its_template():
    """LLaDA's template writes bos itself; a tokenizer that adds another would move every position."""
    encoder = built()[1]
    before, end = encoder.prompt("ab"), encoder.tokenizer.eos_token
    encoder.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, encoder.tokenizer.eos_token_id)]
    )
    assert encoder.tokenizer("ab")["input_ids"][0] == encoder.tokenizer.eos_token_id
    assert torch.equal(encoder.prompt("ab"), before)


def test_characters_without_a_token_are_refused_by_name():
    encoder = built()[1]
    refused(encoder, "Hab Z", "'H'", "'Z'")
    refused(encoder, "\u00e9", "\u00e9")
    with pytest.raises(DataError, match="'X'"):
        encoder.answer("aX", 4)


def test_without_a_chat_template_the_plain_text_is_the_prompt(tmp_path: Path):
    WRITERS["llada"](tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))
    denoiser, encoder = load(tmp_path)
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.prompt("ab 1").tolist()) == [*"ab 1"]
    refused(encoder, "ab <|eot_id|>", "<|eot_id|>")
    assert bool(rollout(denoiser, Threshold(0.9), Job.of([encoder.prompt("ab 1")], 4, 4)).finished_R.all())


def test_a_base_model_s_prompt_is_not_the_chat_of_its_sibling(tmp_path: Path):
    """LLaDA-8B-Base has Instruct's template and not its tokens, which would be split into letters."""
    checkpoints.write("llada", tmp_path, checkpoints.SHAPES["llada", "small"])
    assert load(tmp_path)[1].prompt("ab").tolist()[0] == 256  # bos, written by the template
    path, gone = tmp_path / "tokenizer.json", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    words = json.loads(path.read_text(encoding="utf-8"))
    words["added_tokens"] = [token for token in words["added_tokens"] if token["content"] not in gone]
    words["model"]["vocab"] = {token: i for token, i in words["model"]["vocab"].items() if token not in gone}
    path.write_text(json.dumps(words), encoding="utf-8")
    encoder = load(tmp_path)[1]
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.prompt("ab 1").tolist()) == [*"ab", "Ġ", "1"]
    assert encoder.end_ids == {257}


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{% for message in messages %}{{ message.content }}", "fails"),
        ("{{ messages[0].content.nothing.more }}", "fails"),
        ("{{ raise_exception('system messages only') }}", "system messages only"),
        ("{{ 1 / 0 }}", "fails"),
        ("a{{ messages[0].contemt }}b", "leaves the question 'ab 1' out"),
        ("", "leaves the question"),
    ],
)
def test_a_chat_template_that_is_damaged_is_refused(template: str, word: str):
    encoder = built()[1]
    encoder.tokenizer.chat_template = template
    refused(encoder, "ab 1", "chat template", word)


def test_a_masked_model_s_prompt_is_not_ended_before_its_canvas(tmp_path: Path):
    write_masked(tmp_path, "Bert")
    _, encoder = load(tmp_path)
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.prompt("ab").tolist()) == ["[CLS]", "a", "b"]
    refused(encoder, "ab [MASK]", "[MASK]")


def test_without_an_end_token_a_short_answer_is_refused_and_a_whole_one_is_not():
    tokenizer = embedded.tokenizer("abc")
    tokenizer.eos_token = None
    encoder = Encoder(tokenizer, frozenset())
    assert len(encoder.answer("abc", 3)) == 3
    with pytest.raises(DataError, match="no end token") as caught:
        encoder.answer("ab", 3)
    assert has_remedy(str(caught.value))
    assert encoder.text(encoder.answer("abc", 3)) == "abc"


# --- length --------------------------------------------------------------------------------------------------------


class Letters:
    """A task of free text."""

    canvas_length, name, alphabet = 8, "letters", LETTERS


def test_a_prompt_and_canvas_beyond_the_positions_are_refused_before_anything_is_decoded():
    denoiser, encoder = built(positions=16)
    fits, long = Example("letters", "abcdef", "a"), Example("letters", "abcdefg", "a")
    asked = Prompts.of(Letters(), [fits], encoder)  # type: ignore[arg-type]
    assert len(asked.ids[0]) + 8 == 16
    assert bool(rollout(denoiser, Threshold(0.9), asked.job(None)).finished_R.all())
    with pytest.raises(DataError, match=r"abcdefg.*9 tokens.*canvas of 8.*16 positions") as caught:
        Prompts.of(Letters(), [fits, long], encoder)  # type: ignore[arg-type]
    assert has_remedy(str(caught.value))
    with pytest.raises(DataError, match="16 positions"):
        Prompts.of(Letters(), [fits], encoder, length=9)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llada", "Bert"])
def test_a_job_of_one_s_own_beyond_the_positions_is_refused_too(name: str, tmp_path: Path):
    if name == "Bert":
        write_masked(tmp_path, name)
        denoiser, encoder = load(tmp_path)
    else:
        denoiser, encoder = built(positions=48)
    room = 48 - len(encoder.prompt("ab"))
    assert bool(rollout(denoiser, Threshold(0.9), Job.of([encoder.prompt("ab")], room, room)).finished_R.all())
    with pytest.raises(DataError, match="take 49 positions, this dLLM has 48"):
        rollout(denoiser, Threshold(0.9), Job.of([encoder.prompt("ab")], room + 1, room + 1))


def test_padding_does_not_count_as_positions():
    """A long prompt's short canvas beside a short prompt's long one: wide together, each of them fits."""
    denoiser, _ = built(positions=8)
    ids_BT = torch.ones(2, 10, dtype=torch.int64)
    attend_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    attend_BT[0, :2] = attend_BT[1, 8:] = False
    assert bool(denoiser.hidden(Canvas(ids_BT, attend_BT, 5))[0].isfinite().all())


class Sure(Letters):
    """Every text is right."""

    def score(self, text: str, example: Example) -> Score:
        return Score(1.0, 1.0)


def test_a_row_with_masks_left_is_wrong_whatever_its_text():
    denoiser, encoder = built()
    asked = Prompts.of(Sure(), [Example("letters", "ab", "a"), Example("letters", "c", "a")], encoder)  # type: ignore[arg-type]
    job = asked.job(None)
    done = rollout(denoiser, Threshold(0.9), job)
    assert asked.scores(job, done)[1].tolist() == [1.0, 1.0]
    half = replace(done, finished_R=torch.tensor([True, False]))
    assert [scores.tolist() for scores in asked.scores(job, half)[1:]] == [[1.0, 0.0]] * 2
