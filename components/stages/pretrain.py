"""Stage pretrain: the embedded dLLM of one layout; for a hub model it resolves and records the revision."""

from __future__ import annotations

from pathlib import Path

from components.core.errors import CheckpointError, SettingsError
from components.core.files import beside, write_json
from components.settings import Data, Models, Pretrain
from components.stages.common.progress import progress
from components.stages.common.workspace import Workspace, task_of


def pretrain(workspace: Workspace, data: Data, models: Models, pretrain: Pretrain, model: str) -> dict[str, float]:
    """P/pretrain/<model>: a Hugging Face folder, or source.json with the pinned revision of a model from elsewhere."""
    chosen = getattr(models, model)
    folder = workspace.outputs / "pretrain" / model
    figures: dict[str, float] = {}
    with beside(folder) as part:
        part.mkdir()
        if chosen.source != "embedded":
            write_json(part / "source.json", _resolve(chosen.source, chosen.revision))
        else:
            rows = getattr(pretrain.rows, model)
            if not rows:
                raise SettingsError(
                    f"pretrain.rows.{model} names no task. Give rows of a task, or set models.{model}.source."
                )
            figures = _train(workspace, data, pretrain, chosen.layout, rows, part)
            if chosen.dtype == "auto":
                from components.denoisers.dtype import fastest

                dtype, ratio = fastest(str(part))
                write_json(part / "dtype.json", {"dtype": dtype})
                figures["bfloat16_speed_up"] = ratio
    workspace.metrics(f"pretrain-{model}", figures)
    return figures


def _resolve(source: str, revision: str | None) -> dict[str, str | None]:
    from components.denoisers.loading import read_config

    read_config(source, revision)
    if Path(source).is_dir():
        return {"source": str(Path(source).resolve()), "revision": None}
    from huggingface_hub import HfApi

    try:
        return {"source": source, "revision": HfApi().model_info(source, revision=revision).sha}
    except OSError as error:
        raise CheckpointError(
            f"the revision of {source} could not be resolved ({error}); results would not say which "
            f"weights made them; go online, or set models.*.revision"
        ) from error


def _train(
    workspace: Workspace, data: Data, settings: Pretrain, layout: str, rows_of: dict[str, int], folder: Path
) -> dict[str, float]:
    import torch

    from components.core.rng import generator, seed_of
    from components.denoisers import embedded
    from components.denoisers.loading import Encoder
    from components.trainers.pretrain import Batch
    from components.trainers.pretrain import pretrain as run

    tasks = {name: task_of(data, name) for name in rows_of}
    alphabet = "".join(task.alphabet for task in tasks.values())
    positions = 8 + max(len(workspace.examples(n, "test", 1)[0].prompt) + 2 * t.canvas_length for n, t in tasks.items())
    denoiser, encoder = embedded.build(
        layout,
        alphabet,
        settings.width,
        settings.layers,
        settings.heads,
        settings.inner,
        positions,
        seed_of(settings.seed, layout) % 2**31,
    )

    def encode(name: str, encoder: Encoder):
        examples = workspace.examples(name, "pretrain")
        prompts = [encoder.prompt(x.prompt) for x in examples]
        width = max(map(len, prompts))
        ids = torch.stack([torch.nn.functional.pad(p, (width - len(p), 0), value=denoiser.mask_id) for p in prompts])
        attend = torch.stack([torch.arange(width) >= width - len(p) for p in prompts])
        return ids, attend, torch.stack([encoder.answer(x.answer, tasks[name].canvas_length) for x in examples])

    encoded = {name: encode(name, encoder) for name in tasks}
    total = sum(rows_of.values())

    def batches(step: int) -> list[Batch]:
        found = []
        for name, (ids, attend, answers) in encoded.items():
            source = generator(settings.seed, "pretrain", "rows", name, step)
            rows = torch.randint(len(ids), (rows_of[name],), generator=source)
            found.append(Batch(ids[rows], attend[rows], answers[rows], rows_of[name] / total))
        return found

    history: list[dict[str, float]] = []
    with progress(f"pretrain {layout}", settings.steps) as tick:

        def report(step: int, metrics: dict[str, float]) -> None:
            history.append(metrics)
            tick(" ".join(f"{name} {metrics[f'loss/{i}']:.2f}" for i, name in enumerate(tasks)))

        run(denoiser, batches, settings.steps, settings.learning_rate, settings.warmup, settings.seed, report)
    embedded.save(denoiser, encoder, folder)
    late = history[-25:]
    return {"parameters": float(sum(p.numel() for p in denoiser.model.parameters()))} | {
        f"loss.{name}": sum(h[f"loss/{i}"] for h in late) / len(late) for i, name in enumerate(tasks)
    }
