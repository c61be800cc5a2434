"""Stage export: the policy as one self-describing ONNX file that decodes the same texts as the torch policy."""

from __future__ import annotations

from ..core.files import beside
from ..settings import Decode, Domain
from .common.progress import progress
from .common.runfile import content_hash, describe_run, read_run, write_run
from .common.workspace import Workspace


def export(workspace: Workspace, domain: Domain, decode: Decode) -> dict[str, float]:
    """P/export/policy.onnx; ParityError unless every test and gate prompt of the domain decodes to the same text, by
    mode and by sampling. The file takes its name after that. run.json has the hashes of the policy and the file,
    state.json the inputs of the file half-way through one decode.

    metrics: what was compared, texts equal, largest difference of a utility, bytes.
    """
    from ..export import Decoding, OnnxPolicy, check_parity, export_policy, random_states, visited_state
    from ..policies import store
    from .common.models import domain_prompts, open_denoiser, with_decode_settings

    trained = workspace.outputs / "train" / "policy"
    policy = with_decode_settings(store.load(trained), decode)
    run = read_run(workspace.outputs / "train" / "run.json")
    settings = {"decode": decode.model_dump(mode="json"), "domain": domain.model_dump(mode="json")}
    begun = describe_run("export", workspace.profile, settings, [trained], workspace.root)
    path = workspace.outputs / "export" / "policy.onnx"
    facts = {"training": run.identity, "profile": workspace.profile, "policy_hash": store.content_hash(trained)}
    facts |= {"block_length": str(decode.block_length or ""), "choose": decode.choose}
    facts |= {"frontier": str(decode.frontier or ""), "end_of_text": str(decode.end_of_text).lower()}
    if decode.alpha is not None:
        facts["alpha"] = str(decode.alpha)
    denoiser, encoder = open_denoiser(workspace, domain.model)
    encoder = encoder.stopping() if decode.end_of_text else encoder
    prompts = domain_prompts(workspace, domain, encoder, ["test", "gate"], share=False)
    with beside(path) as part, progress("export parity", 4 * len(prompts)) as tick:
        export_policy(policy, part, facts)
        decoding = Decoding(denoiser, prompts, decode.block_length, decode.frontier, lambda count: tick("", count))
        report = check_parity(policy.to(denoiser.device), OnnxPolicy(part), random_states(policy), decoding)
    figures = report.metrics() | {"bytes": float(path.stat().st_size)}
    exported = OnnxPolicy(path)
    job = prompts.take([0]).job(decode.block_length, decode.frontier)
    state = visited_state(exported, denoiser, job, decode.choose)
    fields = {name: value.tolist() for name, value in exported.fields(state).items()}
    workspace.write_json(fields, "export", "state.json")
    hashes = {"policy_hash": facts["policy_hash"], "file_hash": content_hash(path)}
    write_run(path.with_name("run.json"), begun.finished(figures, **hashes))
    workspace.metrics("export", figures)
    return figures
