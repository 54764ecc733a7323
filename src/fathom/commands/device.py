"""Device profiles, and what this machine can run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fathom import artefacts, show
from fathom.artefacts import check_outputs
from fathom.commands.options import AsJson
from fathom.errors import ConfigError

app = typer.Typer(help="Device profiles: what a device may run.", no_args_is_help=True)


@app.command("list")
def profiles_list(as_json: AsJson = False) -> None:
    """The profiles that come with Fathom.

    Example: fathom profiles list
    """
    from fathom.edge_profiles.profile import load_profile, profile_names

    profiles = [load_profile(name) for name in profile_names()]
    if as_json:
        show.print_json([profile.model_dump(mode="json") for profile in profiles])
        return
    rows = [["profile", "tier", "depths", "simple / complex", "threshold", "budget", "memory", "threads"]]
    for p in profiles:
        limits = [f"{p.threshold:g}", f"{p.latency_budget_ms:g} ms", f"{p.memory_limit_mb} MB", str(p.threads)]
        rows.append([p.name, p.tier, " ".join(map(str, p.depths)), f"{p.shallow} / {p.deep}", *limits])
    show.table("Device profiles", rows)


@app.command("show")
def profiles_show(
    profile: Annotated[str, typer.Argument(help="A profile's name or file, or a tier.")], as_json: AsJson = False
) -> None:
    """Everything one profile says.

    Example: fathom profiles show jetson-orin-nano
    """
    from fathom.edge_profiles.profile import FIGURES, load_profile

    loaded = load_profile(profile)
    values = loaded.model_dump(mode="json")
    basis = {key: f" ({loaded.basis(key)})" for key in FIGURES}
    rows = [(key, _plain(value) + basis.get(key, "")) for key, value in values.items() if key != "measured"]
    show.result(values, as_json, show.facts, profile, rows)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items() if each is not None)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value).strip()


@app.command("check")
def profiles_check(
    path: Annotated[Path, typer.Argument(help="A profile YAML; or a bundle, followed by the profile.")],
    profile: Annotated[str | None, typer.Argument(help="A profile's name or file, or a tier.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write what was measured to this file, to be shared: `fathom profiles merge`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a profile of your own; or serve a bundle within a profile's memory, and note in it whether it fits.

    Exit code 2 when there is a mistake, or it does not fit.

    Example: fathom profiles check my-device.yaml
    Example: fathom profiles check build/ml-100k/bundle phone-low

    Example: fathom profiles check build/phone/bundle phone-low --report phone.json
    """
    if report is not None and profile is None:
        raise ConfigError("--report needs a bundle and a profile: a profile alone is not measured")
    sound = _check_profile(path, as_json) if profile is None else _check_fit(path, profile, report, as_json)
    if not sound:
        raise typer.Exit(2)


def _check_profile(path: Path, as_json: bool) -> bool:
    from fathom.edge_profiles.profile import check

    found = check(path)
    problems = found if isinstance(found, list) else []
    if as_json:
        show.print_json({"path": str(path), "problems": problems})
    elif problems:
        for problem in problems:
            show.out.print(problem, highlight=False, markup=False, soft_wrap=True)
    else:
        show.out.print(f"{path}: ok", highlight=False, markup=False)
    return not problems


@app.command("merge")
def profiles_merge(
    profile: Annotated[str, typer.Argument(help="The profile that was measured: a name, a file or a tier.")],
    reports: Annotated[list[Path], typer.Argument(help="Reports that `fathom profiles check --report` wrote.")],
    out: Annotated[Path, typer.Option(help="The new profile (YAML), named after its file.")],
    as_json: AsJson = False,
) -> None:
    """Put what was measured on devices into a profile of your own.

    The memory limit becomes the largest peak and a tenth more, the latency budget the largest p99 of any depth; the
    profile says of both on what they were measured. All else stays as it was chosen.

    Example: fathom profiles merge phone-low phone-1.json phone-2.json --out my-phone.yaml
    """
    from fathom.edge_profiles.profile import MEASURABLE, load_profile
    from fathom.tools.device_report import merge, read_report, write_profile

    check_outputs((out, artefacts.MERGED_PROFILE), inputs=reports)
    if out.suffix != ".yaml":
        raise ConfigError(f"{out}: a profile is a .yaml file; name it so")
    merged = merge(load_profile(profile), [read_report(path) for path in reports], name=out.stem)
    write_profile(out, merged)
    values = merged.model_dump(mode="json")
    rows = [(figure, f"{values[figure]} ({merged.basis(figure)})") for figure in MEASURABLE]
    show.result(values, as_json, show.facts, str(out), rows)


def _check_fit(bundle: Path, name: str, report: Path | None, as_json: bool) -> bool:
    from fathom.edge_profiles.profile import load_profile
    from fathom.runtime.manifest_file import read_manifest
    from fathom.tools.device_check import check_device
    from fathom.tools.device_report import write_report

    profile = load_profile(name)
    check_outputs((report, artefacts.DEVICE_REPORT), inputs=[bundle])
    with show.Activity(f"serve {bundle} as {profile.name}"):
        fit, energy_mj, energy_source = check_device(bundle, profile, name)
    if report is not None:
        write_report(report, profile, read_manifest(bundle), fit, energy_mj, energy_source)
    fits = fit.fits(profile.memory_limit_mb)
    if as_json:
        show.print_json({"profile": profile.name, "fits": fits, **fit.model_dump(mode="json")})
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


def doctor(as_json: AsJson = False) -> None:
    """What this machine can run: backends that really start, extras, GPU.

    Example: fathom doctor
    """
    from fathom.tools.doctor import examine

    found = examine()
    show.result(found, as_json, show.facts, "This machine", list(found.items()))
