"""`unmask doctor`: is this machine ready for the pipeline, and does it compute what it should?

The installation that is there is judged: the library alone, with onnx, or with the pipeline's tools; in a repository or
outside one. Every check only looks: nothing is trained, fetched or registered. Runs whose process is gone get their
final state. Left out: whether a policy is any good.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from ..core.errors import SettingsError, masked
from . import extras
from .device import device_fault

DISTRIBUTION = extras.DISTRIBUTION
OUTSIDE = "no repository in this folder: demo, decode --model and bench --random work here, stages do not"
SAMPLES = 4000  # decodes of the exactness check
CORRELATION = 0.5  # of the released policy's pair shifts with the exact ones, at least
ERRORS = 5.0  # standard errors by which a sampled mean may miss the exact one


def checks(root: Path) -> Iterator[tuple[str, bool, str]]:
    """(name, whether all is well, one line) check by check; a failed one says what is wrong, why it matters and what
    to do. Never raises."""
    table: dict[str, Callable[[Path], tuple[bool, str]]] = {
        "python": python,
        "installation": installation,
        "packages": packages,
        "settings": settings,
        "device": device,
        "threads": threads,
        "exactness": exactness,
        "shifts": shifts,
        "precision": precision,
        "dvc": graph,
        "tracker": tracker,
        "outputs": outputs,
    }
    for name, check in table.items():
        try:
            ok, text = check(root)
        except SettingsError:
            ok, text = False, "the settings cannot be read. Mend the line settings first."
        except Exception as error:  # a doctor that dies says nothing about the rest
            ok, text = False, f"{type(error).__name__}: {masked(str(error))}. Mend this first, or report it."
        yield name, ok, " ".join(text.split())


def python(root: Path) -> tuple[bool, str]:
    from packaging.specifiers import SpecifierSet

    have, wanted = platform.python_version(), metadata.metadata(DISTRIBUTION)["Requires-Python"]
    if not SpecifierSet(wanted).contains(have):
        return False, f"{have} is not {wanted}. Make the environment with another Python."
    return True, f"{have} ({platform.system()} {platform.machine()})"


def installation(root: Path) -> tuple[bool, str]:
    """Which extras are there; a pipeline without its tools is a failure only where there is one to run."""
    have = extras.installed()
    text = ", ".join(["library", *(name for name, there in have.items() if there and name != "dev")])
    lack = [name for name, there in have.items() if not there and name != "dev"]
    if (root / "dvc.yaml").exists() and "pipeline" in lack:
        return False, f"{text}: too little for this repository's stages. Run {extras.pip_command('pipeline')}"
    return True, text + (f"; more by {extras.pip_command(lack[-1])}" if lack else "")


def _is_repository(root: Path) -> bool:
    return any((root / name).exists() for name in ("params.yaml", "dvc.yaml"))


def packages(root: Path) -> tuple[bool, str]:
    """What is installed lies within the bounds of pyproject.toml; extras may be missing as a whole."""
    from packaging.requirements import Requirement

    wrong, absent, fine = [], [], 0
    for line in metadata.requires(DISTRIBUTION) or []:
        need = Requirement(line)
        if need.name == DISTRIBUTION:
            continue
        try:
            have = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            (absent if need.marker else wrong).append(f"{need.name} (absent)" if not need.marker else need.name)
            continue
        if need.specifier.contains(have, prereleases=True):
            fine += 1
        else:
            wrong.append(f"{need.name} {have} (wanted {need.specifier})")
    if wrong:
        return False, (
            f"{', '.join(wrong)}: versions that were not seen to work. "
            f"Run pip install --require-hashes --no-deps -r infra/requirements.lock"
        )
    return True, f"{fine} within bounds" + (f"; optional and absent: {', '.join(absent)}" if absent else "")


def settings(root: Path) -> tuple[bool, str]:
    from ..settings import read

    if not _is_repository(root):
        return True, OUTSIDE
    try:
        found = read(root / "params.yaml")
    except ValueError as error:
        return False, str(error)
    return True, f"profile {found.profile}"


def device(root: Path) -> tuple[bool, str]:
    import torch

    if fault := device_fault():
        return False, f"{fault} Every stage would fail."
    from ..core.devices import device_name

    gpus, embedded, other = torch.cuda.device_count(), device_name(checkpoint=False), device_name(checkpoint=True)
    name = embedded if embedded == other else f"{embedded}, checkpoints {other}"
    seen = ", ".join(torch.cuda.get_device_name(i) for i in range(gpus)) or "no GPU"
    return True, f"{name} (torch {torch.__version__}, {seen})"


def threads(root: Path) -> tuple[bool, str]:
    import torch

    count, policy = torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY", "unset")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count > cores:
        return False, f"{count} threads on {cores} cores wait for one another. Set OMP_NUM_THREADS={cores}."
    if policy.upper() != "PASSIVE":
        return False, (
            f"OMP_WAIT_POLICY={policy} costs a factor of 3 to 5 on busy cores, where waiting threads spin. "
            f"Unset it, or set PASSIVE."
        )
    return True, f"{count} on {cores} cores, waiting passively"


def exactness(root: Path) -> tuple[bool, str]:
    """Mean forward passes and mean score of a random policy on a canvas of 4: enumerated, and sampled by the loop."""
    import torch

    from ..core.types import Canvas
    from ..decode.engine import rollout
    from ..decode.job import DecodeOptions, Job
    from ..decode.oracle import enumerate_decoding, follow
    from ..denoisers.formula import FormulaDenoiser
    from ..policies.confidence import ConfidencePolicy, Shape

    length, words = 4, 4
    # Logits that depend on what is committed: which positions go together matters for the outcome.
    table = torch.randn(length * words, length * words, generator=torch.Generator().manual_seed(0))

    def formula(canvas: Canvas) -> torch.Tensor:
        seen_BX = torch.nn.functional.one_hot(canvas.ids_BT[:, canvas.start :], words).float().flatten(1)
        return (seen_BX @ table).unflatten(1, (length, words))

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        policy = ConfidencePolicy(Shape(width=8, heads=2, mlp_width=8, bias=0.0)).eval()
        denoiser, prompt = FormulaDenoiser(formula, words), torch.tensor([1])
        lattice = enumerate_decoding(denoiser, Job.of([prompt], length, length), policy.needs)
        exact = follow(lattice, policy)
        done = rollout(denoiser, policy, Job.of([prompt], length, length, group=SAMPLES), DecodeOptions(rows=SAMPLES))
    for name, of in (("forward passes", lambda r: r.nfe_R), ("score", lambda r: (r.canvas_RL == 1).sum(-1))):
        wanted, drawn_R = float(exact.expected(of(lattice.ends).double())), of(done).double()
        error = max(float(drawn_R.std()) / math.sqrt(SAMPLES), 1e-6)
        if abs(float(drawn_R.mean()) - wanted) > ERRORS * error:
            return False, (
                f"mean {name} of {SAMPLES} decodes is {float(drawn_R.mean()):.4f}, exactly it is "
                f"{wanted:.4f} +- {error:.4f}. Compare this torch ({torch.__version__}) with "
                f"infra/requirements.lock."
            )
    return (
        True,
        f"{len(exact.mass_N)} endings enumerated, total {float(exact.mass_N.sum()):.9f}; {SAMPLES} decodes agree",
    )


def shifts(root: Path) -> tuple[bool, str]:
    """The released policy's pair shifts, by ONNX Runtime, beside those that the released dLLM gives when probed."""
    from .shift_check import shift_fit

    try:
        found = shift_fit()
    except ModuleNotFoundError as error:
        return True, f"not compared: {extras.explain(error) or error}"
    said = (
        f"learned and exact pair shifts of the released policy correlate {found.correlation:.2f}, "
        f"{found.unexplained:.2f} unexplained ({found.pairs} pairs in {found.states} states)"
    )
    if found.correlation < CORRELATION:
        return False, f"{said}, and not {CORRELATION} or more. Install the package and its requirements again."
    return True, said


def precision(root: Path) -> tuple[bool, str]:
    """A note, never a failure: by how much rounded logits move a confidence."""
    import torch

    from ..core.types import Needs
    from ..decode.readout import statistics
    from ..settings import read

    logits_NV = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0)) * 4
    full, short = (
        statistics(x.float().clone(), Needs())["confidence"] for x in (logits_NV, logits_NV.to(torch.bfloat16))
    )
    moved = float((full - short).abs().max())
    models = read(root / "params.yaml").models if _is_repository(root) else {}
    said = "".join(f"{name} {model.dtype}; " for name, model in models.items())
    return (
        True,
        f"{said}logits in bfloat16 move a confidence by up to {moved:.3f}: nearer thresholds decide otherwise",
    )


def graph(root: Path) -> tuple[bool, str]:
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
    except ImportError:
        why = f"dvc, which stages need, is not installed. Run {extras.pip_command('pipeline')}"
        return not _is_repository(root), why
    if not _is_repository(root):
        return True, OUTSIDE
    try:
        with Repo(str(root)) as repo:
            count = sum(stage.path_in_repo == "dvc.yaml" for stage in repo.index.stages)
            return True, f"{count} stages in dvc.yaml"
    except (DvcException, OSError) as error:
        return False, (
            f"{error}. Work in a Git clone, or run `dvc config --local core.no_scm true` in an unpacked archive."
        )


def tracker(root: Path) -> tuple[bool, str]:
    from ..tracking import abandoned, registry, store

    uri = store.tracking_uri(root)
    try:
        path = store.database(uri)
        if path is None or path.exists():
            with store.reading(uri) as client:
                if broken := registry.broken_champions(client):
                    return False, (
                        f"{'; '.join(broken)}. Copy the folder {store.ARTIFACTS} from where the repository was, run "
                        "`unmask promote` where the outputs are, or `unmask rollback`."
                    )
                said = f"{masked(uri)}, {len(client.search_experiments())} experiments"
            closed = abandoned.close(uri) if path is None or os.access(path, os.W_OK) else []
            return True, said + (f", {len(closed)} runs whose process is gone marked as KILLED" if closed else "")
    except ImportError:
        why = f"mlflow, which runs need, is not installed. Run {extras.pip_command('pipeline')}"
        return not _is_repository(root), why
    except ValueError as error:
        return False, str(error)
    if not os.access(path.parent, os.W_OK):
        return False, f"{masked(uri)} cannot be made. Set MLFLOW_TRACKING_URI to another place."
    return True, f"{masked(uri)}, to be made by the first training"


def outputs(root: Path) -> tuple[bool, str]:
    """A note, never a failure: what the active profile has."""
    from ..settings import read

    if not _is_repository(root):
        return True, OUTSIDE
    folder = Path("outputs") / read(root / "params.yaml").profile
    parts = ["data", "pretrain", "distill/policy", "train/policy", "rules", "evaluate", "export/policy.onnx", "report"]
    have = [part for part in parts if (root / folder / part).exists()]
    lack = [part for part in parts if part not in have]
    if not lack:
        return True, f"all of {folder}"
    return True, f"{folder}: {', '.join(have) or 'nothing yet'}; `dvc repro` makes {', '.join(lack)}"
