"""Commands that a server or a device runs: bundles, profiles, serving, asking, load. None of them loads torch."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fathom import artefacts, show
from fathom.artefacts import check_outputs
from fathom.commands.connection_options import talks_to_server
from fathom.connection import Connection

if TYPE_CHECKING:
    from fathom.client import Recommendation
    from fathom.edge_profiles.profile import DeviceProfile
    from fathom.runtime.manifest import Manifest

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")]

bundle_app = typer.Typer(help="Look at, check and cut bundles.", no_args_is_help=True)
profiles_app = typer.Typer(help="Device profiles: what a device may run.", no_args_is_help=True)
history_app = typer.Typer(help="Histories of users that a server keeps.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.add_typer(bundle_app, name="bundle")
    app.add_typer(profiles_app, name="profiles")
    app.add_typer(history_app, name="history")
    for command in (serve, reload, recommend, demo, loadtest, doctor):
        app.command()(command)


def show_bundle(manifest: "Manifest") -> None:
    """Print what a manifest says."""
    from fathom.exporter.bundle.report import depth_rows, evidence_rows, fact_rows

    show.facts("Bundle", [(name, value) for name, value in fact_rows(manifest)])
    show.table("Depths", depth_rows(manifest))
    if manifest.strategy_evidence:
        show.table("Plans on validation items (* is shipped)", evidence_rows(manifest))


@bundle_app.command("inspect")
def bundle_inspect(bundle: BundlePath, as_json: AsJson = False) -> None:
    """What a bundle holds: depths, layers, engines, sizes, parity, where it came from.

    Example: fathom bundle inspect build/ml-100k/bundle
    """
    from fathom.runtime.bundle import read_manifest

    manifest = read_manifest(bundle)
    if as_json:
        show.as_json(manifest.model_dump(mode="json"))
    else:
        show_bundle(manifest)


@bundle_app.command("quality")
def bundle_quality(bundle: BundlePath, as_json: AsJson = False) -> None:
    """Quality per depth on held-out items, as measured when the bundle was made.

    Example: fathom bundle quality build/ml-100k/bundle
    """
    from fathom.exporter.bundle.report import quality_rows
    from fathom.runtime.bundle import read_manifest

    manifest = read_manifest(bundle)
    if as_json:
        show.as_json({str(d): info.model_dump()["quality"] for d, info in manifest.depths.items()})
    else:
        show.table("Quality on the test items, 95 % intervals over users", quality_rows(manifest))


@bundle_app.command("verify")
def bundle_verify(
    bundle: BundlePath,
    trust: Annotated[
        list[Path] | None, typer.Option(help="Public key (PEM) that it must be signed with; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every file of a bundle against its manifest; exit code 2 when one is not right.

    Example: fathom bundle verify build/ml-100k/bundle
    """
    from fathom.runtime.bundle import verify
    from fathom.runtime.signature import Trust

    checks = verify(bundle, Trust.load(trust or ()))
    if as_json:
        show.as_json([asdict(check) for check in checks])
    else:
        rows = [["file", "", "what was found"]]
        show.table(str(bundle), rows + [[c.name, "ok" if c.ok else "BAD", c.detail] for c in checks])
    if not all(check.ok for check in checks):
        raise typer.Exit(2)


@bundle_app.command("keygen")
def bundle_keygen(
    private: Annotated[Path, typer.Argument(help="The new private key (PEM): keep it secret.")],
    public: Annotated[Path, typer.Argument(help="The new public key (PEM): for `fathom serve --trust`.")],
) -> None:
    """Make a pair of ed25519 keys, to sign bundles and to check signatures.

    Example: fathom bundle keygen shop-private.pem shop-public.pem
    """
    from fathom.exporter.bundle.sign import make_keys

    make_keys(private, public)
    print(f"{private}: private, keep it secret; {public}: public")


@bundle_app.command("sign")
def bundle_sign(
    bundle: BundlePath, key: Annotated[Path, typer.Option(help="Private ed25519 key (PEM), as keygen makes it.")]
) -> None:
    """Sign a bundle, so that a server with `--trust PUBLIC` serves it.

    Example: fathom bundle sign build/ml-100k/bundle --key shop-private.pem
    """
    from fathom.exporter.bundle.sign import sign_bundle

    sign_bundle(bundle, key)
    print(f"{bundle}: signed")


@bundle_app.command("slice")
def bundle_slice(
    bundle: BundlePath,
    profile: Annotated[str, typer.Option(help="A profile's name or file, or a tier.")],
    out: Annotated[Path, typer.Option(help="The smaller bundle.")],
    as_json: AsJson = False,
) -> None:
    """Cut the smaller bundle that a device profile needs.

    Example: fathom bundle slice build/ml-100k/bundle --profile mobile --out build/ml-100k/mobile
    """
    from fathom.edge_profiles.profile import load_profile
    from fathom.exporter.bundle.slice import slice_bundle

    check_outputs((out, artefacts.BUNDLE), inputs=[bundle])
    manifest = slice_bundle(bundle, load_profile(profile), out)
    if as_json:
        show.as_json(manifest.model_dump(mode="json"))
    else:
        show_bundle(manifest)


@bundle_app.command("convert")
def bundle_convert(
    bundle: BundlePath,
    to: Annotated[
        Literal["ort", "executorch", "cuda", "tensorrt-rtx", "triton"],
        typer.Option(
            help="ort: for onnxruntime's mobile builds. executorch: for phones that run .pte files. cuda: engines that"
            " become CUDA graphs. tensorrt-rtx: with plans for NVIDIA GPUs beside the engines. triton: a model"
            " repository for Triton."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The converted bundle, or the repository.")],
    profile: Annotated[str, typer.Option(help="triton: the profile that depths are chosen for.")] = "cloud",
    backend: Annotated[
        Literal["onnxruntime", "python"], typer.Option(help="triton: what runs the engines.")
    ] = "onnxruntime",
    checkpoint: Annotated[
        Path | None, typer.Option(help="executorch: the checkpoint that the bundle was exported from.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="tensorrt-rtx: compute capabilities of the GPUs.")] = "8.6,8.9",
    as_json: AsJson = False,
) -> None:
    """Write the same bundle with engines in another format, checked against the first, or for another server.

    Example: fathom bundle convert build/ml-100k/mobile --to ort --out build/ml-100k/phone
    """
    from fathom.edge_profiles.profile import load_profile

    kind = artefacts.TRITON if to == "triton" else artefacts.BUNDLE
    check_outputs((out, kind), inputs=[bundle, checkpoint])
    if to == "triton":
        from fathom.exporter.formats.triton import write_triton

        models = write_triton(bundle, out, load_profile(profile), backend=backend)
        if as_json:
            show.as_json({"models": models})
        else:
            print(f"{out}: {', '.join(models)}; ask {models[0]}")
        return
    if to == "ort":
        from fathom.exporter.formats.ort import convert_to_ort

        manifest = convert_to_ort(bundle, out)
    elif to == "cuda":
        from fathom.exporter.formats.cuda import convert_for_cuda

        manifest = convert_for_cuda(bundle, out)
    elif to == "executorch":
        from fathom.errors import ConfigError
        from fathom.exporter.formats.executorch import convert_to_executorch
        from fathom.training.checkpoint import Checkpoint

        if checkpoint is None:
            raise ConfigError("executorch needs --checkpoint: .pte files are made from the network itself")
        manifest = convert_to_executorch(bundle, Checkpoint.load(checkpoint), out)
    else:
        from fathom.exporter.formats.tensorrt import add_plans

        manifest = add_plans(bundle, out, [each.strip() for each in gpu.split(",") if each.strip()])
    if as_json:
        show.as_json(manifest.model_dump(mode="json"))
    else:
        show_bundle(manifest)


@profiles_app.command("list")
def profiles_list(as_json: AsJson = False) -> None:
    """The profiles that come with Fathom.

    Example: fathom profiles list
    """
    from fathom.edge_profiles.profile import load_profile, profile_names

    profiles = [load_profile(name) for name in profile_names()]
    if as_json:
        show.as_json([profile.model_dump(mode="json") for profile in profiles])
        return
    rows = [["profile", "tier", "depths", "simple / complex", "threshold", "budget", "memory", "threads"]]
    rows += [_profile_row(profile) for profile in profiles]
    show.table("Device profiles", rows)


def _profile_row(p: "DeviceProfile") -> list[str]:
    depths = " ".join(map(str, p.depths))
    choice = f"{p.shallow} / {p.deep}"
    return [
        p.name,
        p.tier,
        depths,
        choice,
        f"{p.threshold:g}",
        f"{p.latency_budget_ms:g} ms",
        f"{p.memory_limit_mb} MB",
        str(p.threads),
    ]


@profiles_app.command("show")
def profiles_show(
    profile: Annotated[str, typer.Argument(help="A profile's name or file, or a tier.")], as_json: AsJson = False
) -> None:
    """Everything one profile says.

    Example: fathom profiles show jetson-orin-nano
    """
    from fathom.edge_profiles.profile import load_profile

    values = load_profile(profile).model_dump(mode="json")
    if as_json:
        show.as_json(values)
    else:
        show.facts(profile, [(key, _plain(value)) for key, value in values.items()])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items() if each is not None)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value).strip()


@profiles_app.command("check")
def profiles_check(
    path: Annotated[Path, typer.Argument(help="A profile YAML; or a bundle, followed by the profile.")],
    profile: Annotated[str | None, typer.Argument(help="A profile's name or file, or a tier.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a profile of your own; or serve a bundle within a profile's memory, and note in it whether it fits.

    Exit code 2 when there is a mistake, or it does not fit.

    Example: fathom profiles check my-device.yaml
    Example: fathom profiles check build/ml-100k/bundle phone-low
    """
    sound = _check_profile(path, as_json) if profile is None else _check_fit(path, profile, as_json)
    if not sound:
        raise typer.Exit(2)


def _check_profile(path: Path, as_json: bool) -> bool:
    from fathom.edge_profiles.profile import check

    found = check(path)
    problems = found if isinstance(found, list) else []
    if as_json:
        show.as_json({"path": str(path), "problems": problems})
    elif problems:
        for problem in problems:
            show.out.print(problem, highlight=False, markup=False, soft_wrap=True)
    else:
        show.out.print(f"{path}: ok", highlight=False, markup=False)
    return not problems


def _check_fit(bundle: Path, name: str, as_json: bool) -> bool:
    from fathom.device_check import check_fit
    from fathom.edge_profiles.profile import load_profile

    profile = load_profile(name)
    with show.Activity(f"serve {bundle} as {profile.name}"):
        fit = check_fit(bundle, profile, name)
    fits = fit.fits(profile.memory_limit_mb)
    if as_json:
        show.as_json({"profile": profile.name, "fits": fits, **fit.model_dump(mode="json")})
        return fits
    took = "more than that" if fit.peak_mb is None else f"{fit.peak_mb:.1f} MB"
    facts = [("peak memory", f"{took} of {profile.memory_limit_mb} MB"), ("", fit.words)]
    show.facts(f"{bundle} {'fits' if fits else 'does not fit'} {profile.name}", [fact for fact in facts if fact[1]])
    if fit.latency:
        rows = [["depth", "history", "p50 ms", "p99 ms", f"p99 within {profile.latency_budget_ms:g} ms"]]
        for each in fit.latency:
            within = "yes" if each.p99_ms <= profile.latency_budget_ms else "no"
            rows.append([str(each.depth), str(each.history), f"{each.p50_ms:.2f}", f"{each.p99_ms:.2f}", within])
        show.table(f"Inside the server, {fit.threads} threads, {fit.machine}", rows)
    return fits


def serve(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, or a folder with NAME/NUMBER/ bundles in it.")
    ],
    default_bundle: Annotated[
        str | None, typer.Option(help="Bundle of requests that name none. Default: the only one.")
    ] = None,
    watch_s: Annotated[
        float | None, typer.Option(help="Seconds between looks for newer bundles. Default: never.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Profile of requests that name none. Default: cloud.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port, 0 takes a free one. Default: 50051.")] = None,
    metrics_port: Annotated[str | None, typer.Option(help="HTTP port of /metrics. Default: off.")] = None,
    workers: Annotated[int | None, typer.Option(help="Server processes on the port. Default: 1.")] = None,
    force: Annotated[
        bool | None, typer.Option("--force", help="Serve although the bundle did not fit the profile.")
    ] = None,
    policy: Annotated[
        Literal["auto", "certified", "rule", "deepest"] | None,
        typer.Option(
            metavar="POLICY",
            help="How depths are chosen: certified, rule (the profile's), deepest, or auto: as certified, else by the"
            " rule. Default: auto.",
        ),
    ] = None,
    feedback_share: Annotated[
        float | None, typer.Option(help="Certified requests that run twice. Default: 0.01.")
    ] = None,
    feedback_alpha: Annotated[float | None, typer.Option(help="Chance of a false alarm, ever. Default: 0.01.")] = None,
    history: Annotated[
        str | None, typer.Option(help="Users' histories: off, memory, sqlite:PATH, redis://HOST:PORT/DB. Default: off.")
    ] = None,
    history_max_events: Annotated[int | None, typer.Option(help="Events kept of a user. Default: 1000.")] = None,
    history_days: Annotated[int | None, typer.Option(help="Older events are forgotten. Default: never.")] = None,
    history_ahead_s: Annotated[
        int | None, typer.Option(help="How far ahead of the clock events may be dated. Default: 86400.")
    ] = None,
    history_tombstone_days: Annotated[
        int | None, typer.Option(help="Days for which late events of a deleted user are ignored. Default: 7.")
    ] = None,
    history_memory_mb: Annotated[int | None, typer.Option(help="Memory of --history memory. Default: 256.")] = None,
    reuse_mb: Annotated[
        float | None,
        typer.Option(help="Memory for histories that may return. Default: by the profile, at most 64."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Engine threads. Default: the profile's.")] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where engines run. Default: auto, a GPU if it can.")
    ] = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key (PEM) that bundles must be signed with; may be repeated. Default: none is needed."
        ),
    ] = None,
    max_queue: Annotated[int | None, typer.Option(help="Waiting requests before the server is full.")] = None,
    backlog: Annotated[int | None, typer.Option(help="Calls held unread. Default: ten times --max-queue.")] = None,
    max_message_mb: Annotated[int | None, typer.Option(help="Largest message in and out.")] = None,
    stream_in_flight: Annotated[int | None, typer.Option(help="Requests one stream may have waiting.")] = None,
    drain_s: Annotated[float | None, typer.Option(help="Time for requests in flight at SIGTERM.")] = None,
    log_format: Annotated[Literal["json", "text"] | None, typer.Option(help="Default: json.")] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(metavar="LEVEL", help="debug, info, warning or error. Default: info."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with any of these settings.")] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a bundle over gRPC until SIGTERM or Ctrl-C, then finish what is in flight.

    Example: fathom serve build/ml-100k/bundle --profile cloud --metrics-port 9464
    """
    options = {key: value for key, value in locals().items() if key not in ("bundle", "config", "as_json")}
    options["trust"] = tuple(trust) if trust else None
    from fathom.serving.config import load_settings
    from fathom.serving.server import serve as run

    settings = load_settings(options, file=config)
    if as_json:
        run(settings, bundle, ready=lambda info: print(json.dumps(asdict(info)), flush=True))
    else:
        run(settings, bundle)


@talks_to_server
def reload(
    connection: Connection,
    name: Annotated[str, typer.Argument(help="Only this bundle. Default: all.")] = "",
    as_json: AsJson = False,
) -> None:
    """Let a running server exchange its bundles for the newest in its folder; exit code 2 when one is refused.

    Example: fathom reload --target 127.0.0.1:50051
    """
    from fathom.client import Client

    with Client.over(connection) as client:
        reloaded = client.reload(name)
    if as_json:
        show.as_json([asdict(each) for each in reloaded])
    else:
        rows = [["bundle", "serves", "before", ""]]
        rows += [[e.bundle, e.version or "-", e.previous or "-", e.error and f"refused: {e.error}"] for e in reloaded]
        show.table(f"Bundles of {connection.target}", rows)
    if any(each.error for each in reloaded):
        raise typer.Exit(2)


@history_app.command("import")
def history_import(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder, as `fathom data prepare` writes it.")],
    to: Annotated[str, typer.Option(help="sqlite:PATH or redis://HOST:PORT/DB, as for `fathom serve --history`.")],
    max_events: Annotated[int, typer.Option(min=1, max=10_000, help="Events kept of a user, the newest.")] = 1_000,
    max_days: Annotated[
        int | None, typer.Option(min=1, help="Older events are not imported, as `fathom serve --history-days`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put the interactions of a dataset into a store; doing it again adds only what is new. Servers may be running.

    Example: fathom history import build/ml-100k/dataset --to sqlite:build/history.db
    """
    from fathom.history_import import import_dataset
    from fathom.serving.history.contract import Retention

    imported = import_dataset(dataset, to, Retention(max_events, max_days))
    if as_json:
        show.as_json(asdict(imported))
    else:
        left_out = (
            f"{imported.known} known already",
            f"{imported.too_old} too old or beyond the newest {max_events} of a user",
            f"{imported.before_deletion} of users who were deleted later",
        )
        text = f"{imported.added} new events of {imported.users} users; left out: {', '.join(left_out)}"
        show.out.print(text, highlight=False, soft_wrap=True)


@talks_to_server
def recommend(
    connection: Connection,
    items: Annotated[str, typer.Option(help="Item ids with commas between them, oldest first.")] = "",
    user: Annotated[str, typer.Option(help="In place of items: a user whose history the server keeps.")] = "",
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    profile: Annotated[str, typer.Option(help="A device profile or tier; default: the server's own.")] = "",
    depth: Annotated[int | None, typer.Option(help="Run exactly this depth.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="Only items of this category. Repeatable.")] = None,
    exclude: Annotated[str, typer.Option(help="Ids never to return, with commas between them.")] = "",
    bundle: Annotated[str, typer.Option(help="Which of the server's bundles; default: its default.")] = "",
    timeout_ms: Annotated[float, typer.Option(min=1, help="Deadline of the request.")] = 5000.0,
    as_json: AsJson = False,
) -> None:
    """Ask a running server: items with titles and scores, the depth, the reason, and where the time went.

    Example: fathom recommend --items 50,172,181 -k 5 --profile edge
    """
    from fathom.client import Client

    with Client.over(connection) as client:
        answer = client.recommend(
            _ids(items),
            user_id=user,
            bundle=bundle,
            k=k,
            profile=profile,
            depth=depth,
            categories=category or (),
            exclude=_ids(exclude),
            timeout_s=timeout_ms / 1000,
        )
    if as_json:
        show.as_json(asdict(answer))
    else:
        show_answer(answer)


def _ids(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def show_answer(answer: "Recommendation", *more: tuple[str, str]) -> None:
    """Print one answer, and more names and values below it."""
    rows = [["title", "id", "score"], *([item.title or "-", item.id, f"{item.score:.4f}"] for item in answer.items)]
    show.table(f"depth {answer.depth}: {answer.why}", rows)
    t = answer.timings
    used = f"{answer.history_used} items of the history used, {answer.unknown_items} unknown"
    stages = f"select {t.select_us}, queue {t.queue_us}, engine {t.engine_us}, retrieval {t.retrieval_us}"
    show.facts("", [("server time", f"{t.total_us} µs ({stages})"), ("history", used), *more])


def demo(
    bundle: BundlePath,
    data: Annotated[Path | None, typer.Option(help="Dataset with real histories. Default: beside the bundle.")] = None,
    users: Annotated[int, typer.Option(min=1, help="Users to ask for.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Start a server, ask it for real users under the three tiers, and show the live answers.

    Example: fathom demo build/ml-100k/bundle
    """
    from fathom.demo import ask

    answers = ask(bundle, data or bundle.parent / "dataset", users)
    if as_json:
        show.as_json([asdict(answer) for answer in answers])
        return
    for answer in answers:
        show.out.rule(f"a user with {answer.history} items, asked as {answer.tier}", align="left")
        show_answer(answer.answer, ("round trip", f"{answer.round_trip_ms:.2f} ms over gRPC"))


@talks_to_server
def loadtest(
    connection: Connection,
    trace: Annotated[Path, typer.Option(help="A trace, or a dataset folder to make one from.")],
    rate: Annotated[float, typer.Option(help="Mean requests per second of a made trace.")] = 50.0,
    duration: Annotated[float, typer.Option(help="Seconds of a made trace.")] = 30.0,
    kind: Annotated[Literal["poisson", "bursty"], typer.Option(help="Arrivals of a made trace.")] = "poisson",
    seed: Annotated[int, typer.Option(help="Seed of a made trace.")] = 0,
    profile: Annotated[list[str] | None, typer.Option(help="Profiles to mix in a made trace. Repeatable.")] = None,
    deadline_ms: Annotated[float, typer.Option(help="Deadline of each request.")] = 1000.0,
    bundle: Annotated[str, typer.Option(help="Which of the server's bundles; default: its default.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON, and a plot beside it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Replay an arrival trace in an open loop; latency counts from the intended send time.

    Example: fathom loadtest --trace build/ml-100k/dataset --rate 200 --duration 10 --out load.json
    """
    from fathom.loadtests.replay import replay
    from fathom.loadtests.traces import Trace, make_trace, read_histories

    check_outputs((out, artefacts.LOAD_REPORT), inputs=[trace])
    if trace.is_dir():
        histories = read_histories(trace, seed=seed)
        made = make_trace(
            histories, kind=kind, rate_per_s=rate, duration_s=duration, seed=seed, profiles=profile or [""]
        )
    else:
        made = Trace.load(trace)
    report = replay(connection, made, bundle=bundle, deadline_ms=deadline_ms)
    if out:
        report.save(out)
    if as_json:
        show.as_json(report.as_dict())
    else:
        show.out.print(report.table())


def doctor(as_json: AsJson = False) -> None:
    """What this machine can run: backends that really start, extras, GPU.

    Example: fathom doctor
    """
    from fathom.doctor import examine

    found = examine()
    if as_json:
        show.as_json(found)
    else:
        show.facts("This machine", list(found.items()))
