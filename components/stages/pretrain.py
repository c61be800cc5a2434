"""Stage pretrain: trains an embedded dLLM; of a hub model, resolves and records the revision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.files import beside, write_json
from ..settings import Model, Pretrain
from ..tasks.example import Example
from .common.cases import item_of
from .common.progress import progress
from .common.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from ..denoisers import Encoder
    from ..denoisers.transformer import TransformerDenoiser
    from ..tasks import Task
    from ..trainers.pretrain import Batch

    Encoded = tuple[Tensor, Tensor, Tensor]


def pretrain(workspace: Workspace, models: Mapping[str, Model], pretrain: Pretrain, model: str) -> dict[str, float]:
    """P/pretrain/<model>: an embedded dLLM, or the pinned source of another one. source.json describes it."""
    chosen = item_of(models, "models", model)
    figures: dict[str, float] = {}
    with beside(workspace.outputs / "pretrain" / model) as folder:
        folder.mkdir()
        source, dtype = {"source": None, "revision": None}, chosen.dtype
        if chosen.source == "embedded":
            figures = _train(workspace, pretrain, model, chosen, folder)
        else:
            source = _resolve(chosen.source, chosen.revision)
        if dtype == "auto":
            from ..denoisers.dtype import native_dtype

            dtype = native_dtype()
        write_json(folder / "source.json", source | {"dtype": dtype})
    workspace.metrics(f"pretrain-{model}", figures)
    return figures


def _resolve(source: str, revision: str | None) -> dict[str, str | None]:
    from ..core.imports import is_import_path
    from ..denoisers.checkpoint import commit_of, read_config

    if is_import_path(source):
        return {"source": source, "revision": None}
    read_config(source, revision)
    if Path(source).is_dir():
        return {"source": str(Path(source).resolve()), "revision": None}
    return {"source": source, "revision": commit_of(source, revision)}


def _train(workspace: Workspace, settings: Pretrain, name: str, model: Model, folder: Path) -> dict[str, float]:
    from ..denoisers import embedded
    from ..trainers.pretrain import Schedule
    from ..trainers.pretrain import pretrain as run

    corpora = {task: workspace.corpus(name, task) for task in model.rows}
    examples = {task: corpus.examples("pretrain") for task, corpus in corpora.items()}
    tasks = {task: corpus.task() for task, corpus in corpora.items()}
    denoiser, encoder = _fresh(settings, model.layout, tasks, examples)
    encoded = {t: _encoded(examples[t], tasks[t].canvas_length, encoder, denoiser.mask_id) for t in tasks}
    history: list[dict[str, float]] = []
    with progress(f"pretrain {name}", settings.steps) as tick:

        def report(step: int, metrics: dict[str, float]) -> None:
            history.append(metrics)
            tick(" ".join(f"{task} {metrics[f'loss/{i}']:.2f}" for i, task in enumerate(tasks)))

        schedule = Schedule(settings.steps, settings.learning_rate, settings.warmup, settings.seed)
        run(denoiser, partial(_batches, encoded, model.rows, settings.seed), schedule, report)
    embedded.save(denoiser, encoder, folder)
    late = history[-25:]
    return {"parameters": float(sum(p.numel() for p in denoiser.model.parameters()))} | {
        f"loss.{task}": sum(h[f"loss/{i}"] for h in late) / len(late) for i, task in enumerate(tasks)
    }


def _fresh(
    settings: Pretrain, layout: str, tasks: Mapping[str, Task], examples: Mapping[str, Sequence[Example]]
) -> tuple[TransformerDenoiser, Encoder]:
    """A dLLM over the letters of its tasks, with positions for canvases of twice their length."""
    from ..core.rng import seed_of
    from ..denoisers import embedded

    alphabet = "".join(task.alphabet for task in tasks.values())
    longest = max(len(examples[t][0].prompt) + 2 * tasks[t].canvas_length for t in tasks)
    shape = embedded.Shape(settings.width, settings.layers, settings.heads, settings.inner, 8 + longest)
    return embedded.build(layout, alphabet, shape, seed_of(settings.seed, layout) % 2**31)


def _batches(encoded: Mapping[str, Encoded], rows: Mapping[str, int], seed: int, step: int) -> list[Batch]:
    """One batch per task, drawn for this step; its weight is its share of the rows."""
    import torch

    from ..core.rng import generator
    from ..trainers.pretrain import Batch

    batches = []
    for task, (ids, attend, answers) in encoded.items():
        source = generator(seed, "pretrain", "rows", task, step)
        drawn = torch.randint(len(ids), (rows[task],), generator=source)
        batches.append(Batch(ids[drawn], attend[drawn], answers[drawn], rows[task] / sum(rows.values())))
    return batches


def _encoded(examples: Sequence[Example], length: int, encoder: Encoder, mask_id: int) -> Encoded:
    """Prompt ids padded on the left, their attention mask, and the answers as canvases."""
    import torch

    # An example of a worded task has further spellings of its answer.
    pairs = [(x.prompt, text) for x in examples for text in (x.answer, *x.metadata.get("respelled", ()))]
    prompts = [encoder.prompt(prompt) for prompt, _ in pairs]
    width = max(map(len, prompts))
    ids = torch.stack([torch.nn.functional.pad(p, (width - len(p), 0), value=mask_id) for p in prompts])
    attend = torch.stack([torch.arange(width) >= width - len(p) for p in prompts])
    return ids, attend, torch.stack([encoder.answer(text, length) for _, text in pairs])
