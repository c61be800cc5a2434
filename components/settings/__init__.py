"""params.yaml as frozen pydantic models. Settings that cannot work are refused before anything runs.

No field has a default, because DVC tracks only the values in params.yaml. Settings stop at ``stages``: below it there
are numbers and objects. A stage's function names the sections it reads; they are its ``params:`` in dvc.yaml.
"""

from .data import SPLITS, Counts, Data, Domain, Model, Pretrain, TaskSettings
from .evaluation import Case, Cases, Evaluate, Headroom, Sweep, Variants
from .load import read
from .policy import Confidence, Coupled, Decode, Feature, Policy
from .profile import Settings
from .section import Section, nearest
from .training import Distill, Influence, Train

__all__ = [
    "SPLITS",
    "Case",
    "Cases",
    "Confidence",
    "Counts",
    "Coupled",
    "Data",
    "Decode",
    "Distill",
    "Domain",
    "Evaluate",
    "Feature",
    "Headroom",
    "Influence",
    "Model",
    "Policy",
    "Pretrain",
    "Section",
    "Settings",
    "Sweep",
    "TaskSettings",
    "Train",
    "Variants",
    "nearest",
    "read",
]
