"""Examples, encoded for one denoiser and made into decode jobs; and the scores of what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from components.core.rng import seed_of
from components.core.types import Rollout
from components.decode.job import Job
from components.denoisers.encoder import Encoder
from components.tasks.example import Example, Score, Task


@dataclass(frozen=True)
class Prompts:
    """P encoded examples: ids, canvas lengths and noise addresses. Tasks may be mixed."""

    tasks: Sequence[Task]
    examples: Sequence[Example]
    ids: Sequence[Tensor]
    lengths: Sequence[int]
    encoder: Encoder

    @staticmethod
    def of(task: Task, examples: Sequence[Example], encoder: Encoder, length: int | None = None) -> Prompts:
        """``length``: the canvas; the task's own where it is None. DataError for a prompt that the dLLM cannot take."""
        size, canvas = len(examples), length or task.canvas_length
        ids = [encoder.prompt(x.prompt) for x in examples]
        for example, prompt in zip(examples, ids, strict=True):
            encoder.check_length(example.prompt, len(prompt), canvas)
        return Prompts([task] * size, examples, ids, [canvas] * size, encoder)

    def __len__(self) -> int:
        return len(self.examples)

    def __add__(self, other: Prompts) -> Prompts:
        return Prompts(
            [*self.tasks, *other.tasks],
            [*self.examples, *other.examples],
            [*self.ids, *other.ids],
            [*self.lengths, *other.lengths],
            self.encoder,
        )

    def take(self, index: Sequence[int]) -> Prompts:
        return Prompts(
            [self.tasks[i] for i in index],
            [self.examples[i] for i in index],
            [self.ids[i] for i in index],
            [self.lengths[i] for i in index],
            self.encoder,
        )

    def job(
        self,
        block_length: int | None,
        group: int = 1,
        experts: int = 0,
        expert_block: int | None = None,
        answers: bool = False,
        alpha_P: Tensor | None = None,
    ) -> Job:
        """``group`` rows a prompt that policy 0 draws, then ``experts`` rows that policy 1 draws, prompt by prompt.

        block_length None: the whole canvas, full diffusion. expert_block: of the experts' rows, None for the same.
        answers: with the reference answers, for a policy that needs them. alpha_P: the speed exponent that each
        prompt's group is asked for, of a policy that is conditioned on it.
        """
        members = group + experts
        prompt_R = torch.arange(len(self)).repeat_interleave(members)
        member_R = torch.arange(members).repeat(len(self))
        uid_P = torch.tensor([seed_of(x.uid) for x in self.examples], dtype=torch.int64)
        length_R = torch.tensor(self.lengths, dtype=torch.int64)[prompt_R]
        block_R = length_R if block_length is None else torch.full_like(length_R, block_length)
        expert_R = member_R >= group
        if expert_block is not None:
            block_R = block_R.masked_fill(expert_R, expert_block)
        return Job(
            self.ids,
            prompt_R,
            uid_P[prompt_R],
            member_R,
            length_R,
            block_R,
            expert_R.long(),
            answers=self.answers() if answers else None,
            alpha_R=None if alpha_P is None else alpha_P[prompt_R],
        )

    def answers(self) -> list[Tensor]:
        """The reference answers as canvases."""
        return [self.encoder.answer(x.answer, n) for x, n in zip(self.examples, self.lengths, strict=True)]

    def scores(self, job: Job, rollout: Rollout) -> tuple[list[str], Tensor, Tensor]:
        """Texts, correct_R and dense_R (float32) of a job made by ``job``. A row with masks left is wrong: the text
        has holes, and no score is asked for."""
        texts, scores = [], []
        # Two canvases may read alike, one of them with masks behind its end token.
        seen: dict[tuple[int, str, bool], Score] = {}
        whole = rollout.finished_R.tolist()
        for row, prompt in enumerate(job.prompt_R.tolist()):
            text = self.encoder.text(rollout.canvas_RL[row][: self.lengths[prompt]])
            case = (prompt, text, whole[row])
            if case not in seen:
                seen[case] = self.tasks[prompt].score(text, self.examples[prompt]) if whole[row] else Score(0.0, 0.0)
            texts.append(text)
            scores.append(seen[case])
        return texts, torch.tensor([s.correct for s in scores]), torch.tensor([s.dense for s in scores])
