"""From a data set to a bundle in one command."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fathom import show
from fathom.commands.bundle import bundle_values, show_bundle
from fathom.commands.options import (
    DELTA,
    EPS,
    AsJson,
    Preset,
    Seed,
    Settings,
    SettingsPath,
    names_preset,
    need_training,
    takes,
    train_config,
)
from fathom.commands.rank import show_ranking
from fathom.commands.recording import keep_run
from fathom.commands.table_options import prepare_options, table_options
from fathom.errors import ConfigError


@takes(given=table_options)
def build(
    *,
    source: Annotated[str, typer.Argument(help="As for `fathom data prepare`, or a dataset folder.")],
    out: Annotated[Path, typer.Option(help="The bundle; all other artefacts are kept beside it.")],
    preset: Preset = None,
    config_file: SettingsPath = None,
    settings: Settings = None,
    seed: Seed = None,
    no_certify: Annotated[
        bool, typer.Option("--no-certify", help="Leave the certificate to `fathom certify`, with options of your own.")
    ] = False,
    profile: Annotated[
        str | None,
        typer.Option(help="Build for this profile or tier alone: its precision, its depths. Default: for all, fp32."),
    ] = None,
    given: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """Run every stage: prepare, train, rank, plan, heal, compare, evaluate, export, certify. Skips what is current.

    The bundle ships the cheapest routing of requests over its depths that is shown to keep 95 % of the deepest depth's
    NDCG@10, for each profile that comes with Fathom. Where none is, it ships one that is shown to keep 95 % of the
    deepest depth's top 10 on average, and less than half of it for at most 5 % of the requests; else the deepest depth
    answers.

    Without --preset the settings of training follow from the data, and the output says why; data that a preset was
    tuned for gets that one.

    Example: fathom build ml-100k --out build/ml-100k/bundle

    Example: fathom build clicks.csv --items-path products.csv --out build/clicks/bundle

    Example: fathom build ml-100k --profile phone-low --out build/phone/bundle
    """
    need_training()
    from fathom.building.build import Build
    from fathom.building.verdict import verdict
    from fathom.commands import settings_pages
    from fathom.edge_profiles.profile import load_profile
    from fathom.runtime.manifest_file import read_manifest
    from fathom.training.dataset import Dataset

    config = train_config(preset, settings, seed, config_file)
    work = Build(source, out, config, risk=None if no_certify else (EPS, DELTA), profile=profile)
    if profile is not None:
        load_profile(profile)
    if not work.is_prepared:
        work = replace(work, options=prepare_options(source, given))
    elif given:
        raise ConfigError(f"{source} is a dataset already: --{next(iter(given)).replace('_', '-')} does nothing for it")
    ran, why = [], {}
    if not names_preset(preset, config_file):
        ran = work.prepare()
        chosen, config = settings_pages.config_by_data(Dataset.load(work.dataset), settings, seed, config_file)
        work, why = replace(work, config=config), {"chosen": chosen.as_dict()}
    ran += work.run()
    if not ran:
        show.err.print("nothing has changed: every artefact is current", highlight=False)
    manifest, evaluation = read_manifest(out), work.evaluation()
    if ran:
        systems = evaluation["systems"]
        ndcg = {f"test ndcg@10 of {name}": system["metrics"]["ndcg@10"]["value"] for name, system in systems.items()}
        keep_run(
            "build", model=out, data=source, metrics=ndcg, config=settings_pages.plain(config) | why, outputs=(out,)
        )
    sentence = verdict(evaluation, manifest.strategy, sorted(manifest.depths), out)
    if as_json:
        values = bundle_values(out)
        routing = values.pop("routing")
        show.print_json({"ran": ran, "verdict": sentence, "routing": routing, "manifest": values, **why})
        return
    show_ranking(work.folder / "ranking.json")
    show.table("Quality on the test items, 95 % intervals over users", evaluation["table"])
    show_bundle(out)
    show.out.print(sentence, highlight=False, markup=False)
