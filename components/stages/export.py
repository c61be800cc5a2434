"""Stage export: the policy as one self-describing ONNX file that decodes the same texts as the torch policy."""

from __future__ import annotations

from typing import Any

from components.settings import Data, Decode, Domain, Models
from components.stages.distill import prompts_of
from components.stages.place import Place
from components.stages.runfile import read_run, write_run


def export(place: Place, data: Data, models: Models, domain: Domain, decode: Decode) -> dict[str, Any]:
    """P/export/policy.onnx; ParityError unless every test and gate prompt decodes to the same text, by mode and by
    sampling. metrics: prompts compared, texts equal, largest difference of a utility."""
    from components.export import OnnxPolicy, check_parity, export_policy
    from components.policies import store

    policy = store.load(place.outputs / "train" / "policy")
    policy.temperature, policy.scale = decode.temperature, decode.scale
    run = read_run(place.outputs / "train" / "run.json")
    path = place.outputs / "export" / "policy.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    choice = {"block_length": str(decode.block_length or ""), "choose": decode.choose}
    export_policy(policy, path, {"training": run["identity"], "profile": place.profile, **choice})
    denoiser, encoder = place.open_denoiser(models, domain.model)
    asked = prompts_of(place, data, domain, encoder, "test", data.counts.test)
    asked = asked + prompts_of(place, data, domain, encoder, "gate", data.counts.gate)
    report = check_parity(policy.to(denoiser.device), OnnxPolicy(path), denoiser, asked, decode.block_length)
    figures = dict(vars(report)) | {"bytes": path.stat().st_size}
    settings = {"decode": decode.model_dump(mode="json"), "domain": domain.model_dump(mode="json")}
    write_run(path.with_name("run.json"), "export", place.profile, settings, [place.outputs / "train" / "policy"], figures)
    place.metrics("export", figures)
    return figures
