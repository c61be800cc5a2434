"""Whether this machine can run the profile at all, asked before anything is made.

Left out: whether the settings are right (components/settings), loading the model (stage pretrain).
"""

from collections.abc import Mapping
from pathlib import Path

from components.core.errors import CheckpointError, SettingsError


def check_device(profile: str, environment: Mapping[str, str]) -> None:
    """Raise SettingsError if a GPU is asked for, by UNMASK_DEVICE or by the profile, and there is none."""
    device = environment.get("UNMASK_DEVICE") or ("cuda" if profile == "gpu" else "cpu")
    if not device.startswith("cuda"):
        return
    import torch

    if not torch.cuda.is_available():
        raise SettingsError(
            f"device={device!r} is asked for, and torch {torch.__version__} sees no GPU on this machine: profile "
            f"{profile!r} decodes with a model that would take days on a CPU; start the run on a machine with a GPU, "
            "or run the deployment train-policy/cpu"
        )


def check_model(name: str, revision: str | None = None) -> None:
    """Raise CheckpointError unless `name` is a folder with a checkpoint, or a hub name whose files are in the cache."""
    folder = Path(name) if Path(name).is_dir() else _cached(name, revision)
    if folder is None or not (folder / "config.json").exists() or not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"model {name!r} is neither a folder with a checkpoint nor in this machine's Hugging Face cache: a policy "
            f"is trained over a frozen dLLM, and a flow run downloads none by itself; fetch it once with "
            f"`hf download {name}{f' --revision {revision}' if revision else ''}`"
        )


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
