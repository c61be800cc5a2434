"""Whether this machine can run the profile at all, asked before anything is made.

Left out: whether the settings are right (components/settings), loading the model (stage pretrain).
"""

from collections.abc import Mapping
from pathlib import Path

from components.core.errors import CheckpointError, SettingsError
from components.core.imports import is_import_path
from components.settings import Settings
from components.settings.data import Model


def pretrained(settings: Settings) -> list[Model]:
    """The dLLMs that are neither embedded nor a user's own function: checkpoints, of real size as a rule."""
    return [m for m in settings.models.values() if m.source != "embedded" and not is_import_path(m.source)]


def check_device(settings: Settings, environment: Mapping[str, str]) -> None:
    """Raise SettingsError if a GPU is asked for, by UNMASK_DEVICE or by the dLLMs' size, and there is none."""
    checkpoints, asked = pretrained(settings), environment.get("UNMASK_DEVICE")
    if not (asked or checkpoints):
        return
    import torch

    from components.core.devices import device_name

    device = device_name(bool(checkpoints), environment)
    needed = device.startswith("cuda") or not asked
    if needed and not torch.cuda.is_available():
        why = f"model {checkpoints[0].source!r}" if checkpoints else f"UNMASK_DEVICE={device}"
        raise SettingsError(
            f"a GPU is needed for {why}, and torch {torch.__version__} sees no GPU on this machine. Start "
            "the run on a machine with a GPU, run the deployment train-policy/cpu, or set UNMASK_DEVICE=cpu."
        )


def check_model(name: str, revision: str | None = None) -> None:
    """Raise CheckpointError unless `name` is a folder with a checkpoint, or a hub name whose files are in the cache."""
    folder = Path(name) if Path(name).is_dir() else _cached(name, revision)
    if folder is None or not (folder / "config.json").exists() or not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"model {name!r} is neither a folder with a checkpoint nor in this machine's Hugging Face cache. "
            f"Fetch it once with `hf download {name}{f' --revision {revision}' if revision else ''}`."
        )


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
