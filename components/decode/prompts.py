"""Examples, encoded for one denoiser and made into decode jobs; and the scores of what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.rng import seed_of
from ..core.types import Rollout
from ..denoisers.encoder import Encoder
from ..tasks.example import MASK, Example, Score, Task
from .job import Job


@dataclass(frozen=True)
class Prompts:
    """P encoded examples: ids, canvas lengths and noise addresses. Tasks may be mixed.

    canvases: by prompt, of those that bring one that is partly filled, -1 at its masks.
    """

    tasks: Sequence[Task]
    examples: Sequence[Example]
    ids: Sequence[Tensor]
    lengths: Sequence[int]
    encoder: Encoder
    canvases: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])

    @staticmethod
    def of(task: Task, examples: Sequence[Example], encoder: Encoder, length: int | None = None) -> Prompts:
        """``length``: the canvas; the task's own where it is None. An example's own canvas is as long as it is.
        DataError for a prompt that the dLLM cannot take."""
        ids = [encoder.prompt(x.prompt) for x in examples]
        canvases = {i: encoder.canvas(x.canvas, MASK) for i, x in enumerate(examples) if x.canvas is not None}
        lengths = [len(canvases[i]) if i in canvases else length or task.canvas_length for i in range(len(examples))]
        for example, prompt, canvas in zip(examples, ids, lengths, strict=True):
            encoder.check_length(example.prompt, len(prompt), canvas)
        return Prompts([task] * len(examples), examples, ids, lengths, encoder, canvases)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def longest(self) -> int:
        """The longest canvas; of prompts that bring their own, what their tasks take for it."""
        return max(
            self.tasks[i].canvas_length if i in self.canvases else length for i, length in enumerate(self.lengths)
        )

    def __add__(self, other: Prompts) -> Prompts:
        return Prompts(
            [*self.tasks, *other.tasks],
            [*self.examples, *other.examples],
            [*self.ids, *other.ids],
            [*self.lengths, *other.lengths],
            self.encoder,
            {**self.canvases, **{len(self) + i: canvas for i, canvas in other.canvases.items()}},
        )

    def take(self, index: Sequence[int]) -> Prompts:
        return Prompts(
            [self.tasks[i] for i in index],
            [self.examples[i] for i in index],
            [self.ids[i] for i in index],
            [self.lengths[i] for i in index],
            self.encoder,
            {new: self.canvases[old] for new, old in enumerate(index) if old in self.canvases},
        )

    def job(
        self,
        block_length: int | None,
        frontier: int | None = None,
        group: int = 1,
        experts: int = 0,
        expert_block: int | None = None,
        answers: bool = False,
    ) -> Job:
        """``group`` rows a prompt that policy 0 draws, then ``experts`` rows that policy 1 draws, prompt by prompt.

        block_length None: the whole canvas, full diffusion. frontier: eligible masks of a block, the first ones; None:
        all. expert_block: of the experts' rows, None for the same. answers: with the reference answers, for a policy
        that needs them. Rows start from the canvases that examples bring, and end at the encoder's ``stop_ids``.
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
            canvas_RL=self._canvases(prompt_R) if self.canvases else None,
            end_ids=self.encoder.stop_ids,
            answers=self.answers() if answers else None,
            frontier=frontier,
        )

    def _canvases(self, prompt_R: Tensor) -> Tensor:
        canvas_PL = torch.full((len(self), max(self.lengths)), -1)
        for i, ids in self.canvases.items():
            canvas_PL[i, : len(ids)] = ids
        return canvas_PL[prompt_R]

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
