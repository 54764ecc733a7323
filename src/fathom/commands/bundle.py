"""Bundles: what is in them, and other bundles made from them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fathom import artefacts, show
from fathom.artefacts import check_outputs
from fathom.commands.options import AsJson, BundlePath, Data, need_training, takes, whole_numbers
from fathom.errors import ConfigError

if TYPE_CHECKING:
    from fathom.exporter.bundle.index import IndexLimits
    from fathom.runtime.manifest import Manifest

app = typer.Typer(help="Inspect, verify and slice bundles.", no_args_is_help=True)


def bundle_values(bundle: Path) -> dict[str, Any]:
    """For JSON: a bundle's manifest, and ``routing``, how its profiles are routed."""
    from fathom.exporter.certification.routing_table import routing_rows
    from fathom.runtime.bundle_contents import read_certificate
    from fathom.runtime.manifest_file import read_manifest

    manifest = read_manifest(bundle)
    rows = routing_rows(manifest, read_certificate(bundle, manifest))
    return manifest.model_dump(mode="json") | {"routing": [asdict(row) for row in rows]}


def show_bundle(bundle: Path, *, as_json: bool = False) -> None:
    """Print what a bundle's manifest and certificate say."""
    from fathom.exporter.bundle.report import depth_rows, evidence_rows, fact_rows
    from fathom.runtime.manifest_file import read_manifest

    if as_json:
        show.print_json(bundle_values(bundle))
        return
    manifest = read_manifest(bundle)
    show.facts("Bundle", [(name, value) for name, value in fact_rows(manifest)])
    show.table("Depths", depth_rows(manifest))
    if manifest.strategy_evidence:
        show.table("Plans on validation items (* is shipped)", evidence_rows(manifest))
    _show_routing(bundle, manifest)


def _show_routing(bundle: Path, manifest: "Manifest") -> None:
    from fathom.exporter.certification.routing_table import routing_rows, shortfall, table_rows, title
    from fathom.runtime.bundle_contents import read_certificate

    certificate = read_certificate(bundle, manifest)
    rows = routing_rows(manifest, certificate)
    show.table(title(certificate, rows), table_rows(rows))
    if missing := shortfall(rows, bundle):
        show.out.print(missing, highlight=False, markup=False)


@app.command("inspect")
def bundle_inspect(bundle: BundlePath, as_json: AsJson = False) -> None:
    """What a bundle holds: depths, layers, engines, sizes, parity, where it came from, and how requests are routed.

    Example: fathom bundle inspect build/ml-100k/bundle
    """
    show_bundle(bundle, as_json=as_json)


@app.command("quality")
def bundle_quality(bundle: BundlePath, as_json: AsJson = False) -> None:
    """Quality per depth on held-out items, as measured when the bundle was made.

    Example: fathom bundle quality build/ml-100k/bundle
    """
    from fathom.exporter.bundle.report import quality_rows
    from fathom.runtime.manifest_file import read_manifest

    manifest = read_manifest(bundle)
    title = "Quality on the test items, 95 % intervals over users"
    values = {str(depth): info.model_dump()["quality"] for depth, info in manifest.depths.items()}
    show.result(values, as_json, show.table, title, quality_rows(manifest))


@app.command("verify")
def bundle_verify(
    bundle: BundlePath,
    trust: Annotated[
        list[Path] | None, typer.Option(help="Public key (PEM) that it must be signed with; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every file of a bundle against its manifest; exit code 2 if one is wrong.

    Example: fathom bundle verify build/ml-100k/bundle
    """
    from fathom.runtime.bundle import verify
    from fathom.runtime.signature import Trust

    checks = verify(bundle, Trust.load(trust or ()))
    if as_json:
        show.print_json([asdict(check) for check in checks])
    else:
        rows = [["file", "", "what was found"]]
        show.table(str(bundle), rows + [[c.name, "ok" if c.ok else "BAD", c.detail] for c in checks])
    if not all(check.ok for check in checks):
        raise typer.Exit(2)


@app.command("keygen")
def bundle_keygen(
    private: Annotated[Path, typer.Argument(help="The new private key (PEM): keep it secret.")],
    public: Annotated[Path, typer.Argument(help="The new public key (PEM): for `fathom serve --trust`.")],
) -> None:
    """Make an ed25519 key pair for signing bundles and checking signatures.

    Example: fathom bundle keygen shop-private.pem shop-public.pem
    """
    from fathom.exporter.bundle.sign import make_keys

    make_keys(private, public)
    print(f"{private}: private, keep it secret; {public}: public")


@app.command("sign")
def bundle_sign(
    bundle: BundlePath, key: Annotated[Path, typer.Option(help="Private ed25519 key (PEM), as keygen makes it.")]
) -> None:
    """Sign a bundle, so that a server with `--trust PUBLIC` serves it.

    Example: fathom bundle sign build/ml-100k/bundle --key shop-private.pem
    """
    from fathom.exporter.bundle.sign import sign_bundle

    sign_bundle(bundle, key)
    print(f"{bundle}: signed")


@app.command("slice")
def bundle_slice(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="The smaller bundle.")],
    profile: Annotated[str | None, typer.Option(help="A profile's name or file, or a tier.")] = None,
    depths: Annotated[str | None, typer.Option(help="Depths separated by commas, for no profile.")] = None,
    any_precision: Annotated[
        bool, typer.Option("--any-precision", help="Even if its precision is not the profile's.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Cut a smaller bundle: the depths of a device profile, from a bundle of its precision, or the given depths.

    In fewer bits a bundle's quality has to be measured again, on its data: `fathom build --profile` and `fathom export
    --profile` do that.

    Example: fathom bundle slice build/ml-100k/bundle --profile cloud --out build/ml-100k/cloud

    Example: fathom bundle slice build/ml-100k/bundle --depths 4 --out build/ml-100k/shallow
    """
    from fathom.edge_profiles.profile import load_profile
    from fathom.exporter.bundle.slice import check_precision, cut_depths, slice_bundle
    from fathom.runtime.manifest_file import read_manifest

    if (profile is None) == (depths is None):
        raise ConfigError("say what to keep: either --profile, as cloud, or --depths, as 4,8")
    check_outputs((out, artefacts.BUNDLE), inputs=[bundle])
    if depths is not None:
        cut_depths(bundle, whole_numbers("--depths", depths), out)
    elif profile is not None:
        device = load_profile(profile)
        if not any_precision:
            check_precision(read_manifest(bundle), device)
        slice_bundle(bundle, device, out)
    show_bundle(out, as_json=as_json)


@dataclass(frozen=True)
class IndexOptions:
    """What an index must find and may cost, and how it is built."""

    profile: Annotated[str | None, typer.Option(help="Profile or tier to take --min-recall and --max-loss from.")] = (
        None
    )
    min_recall: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of the flat search's top 10 to be found. Default: the profile's, otherwise 0.99."
        ),
    ] = None
    max_loss: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of NDCG@10 that may be lost. Default: the profile's, otherwise 0.01."),
    ] = None
    lists: Annotated[
        int | None, typer.Option(help="ivf and pq: inverted lists. Default: two to four times the root of the items.")
    ] = None
    threads: Annotated[
        int, typer.Option(min=1, help="Threads that build it; with more than one, a graph differs from time to time.")
    ] = 1

    @property
    def limits(self) -> "IndexLimits":
        """Those that were given, else the profile's."""
        from fathom.edge_profiles.profile import load_profile
        from fathom.exporter.bundle.index import MIN_RECALL, IndexLimits
        from fathom.exporter.engines.reduced_quality import MAX_LOSS

        device = load_profile(self.profile) if self.profile else None
        recall, loss = (MIN_RECALL, MAX_LOSS) if device is None else (device.min_recall, device.max_loss)
        return IndexLimits(
            recall if self.min_recall is None else self.min_recall, loss if self.max_loss is None else self.max_loss
        )


@app.command("index")
@takes(options=IndexOptions)
def bundle_index(
    bundle: BundlePath,
    data: Data,
    out: Annotated[Path, typer.Option(help="The bundle with the index.")],
    options: IndexOptions,
    kind: Annotated[
        Literal["ivf", "hnsw", "pq"],
        typer.Option(help="pq: inverted lists, 4 bits a component. ivf: the same in 8 bits. hnsw: a graph."),
    ] = "pq",
    as_json: AsJson = False,
) -> None:
    """Give a large catalogue an index, so that a request's items are found without scoring all of them.

    The index is measured beside the flat search on the data set's test users, and refused where it finds too few of the
    best ten items or loses too much of NDCG@10. The certificate is dropped, because it holds for other answers: certify
    the new bundle.

    Example: fathom bundle index build/shop/bundle --data build/shop/dataset --out build/shop/indexed
    """
    need_training()
    from fathom.exporter.bundle.index import index_bundle
    from fathom.training.dataset import Dataset

    check_outputs((out, artefacts.BUNDLE), inputs=[bundle, data])
    limits = options.limits
    with show.Activity("index") as activity:
        made = index_bundle(
            bundle,
            Dataset.load(data),
            out,
            kind,
            limits=limits,
            lists=options.lists,
            threads=options.threads,
            progress=activity.update,
        )
    show.note(
        f"built in {made.built_s:.0f} s; on this machine a search takes {made.index_ms:.2f} ms by the index and"
        f" {made.flat_ms:.2f} ms without it"
    )
    show_bundle(out, as_json=as_json)


@dataclass(frozen=True)
class ConvertOptions:
    """What single formats need to know."""

    profile: Annotated[str, typer.Option(help="triton: the profile that depths are chosen for.")] = "cloud"
    checkpoint: Annotated[
        Path | None, typer.Option(help="executorch: the checkpoint that the bundle was exported from.")
    ] = None
    gpu: Annotated[
        str | None,
        typer.Option(
            help="tensorrt-rtx: compute capabilities of the GPUs (default 8.6,8.9). tensorrt: this machine's."
        ),
    ] = None
    timing_cache: Annotated[
        Path | None, typer.Option(help="tensorrt: file that keeps its timings, for faster builds on the same GPU.")
    ] = None


@app.command("convert")
@takes(options=ConvertOptions)
def bundle_convert(
    bundle: BundlePath,
    to: Annotated[
        Literal["ort", "executorch", "cuda", "tensorrt", "tensorrt-rtx", "triton"],
        typer.Option(
            help="ort: for onnxruntime's mobile builds. executorch: for phones that run .pte files. cuda: engines that"
            " become CUDA graphs. tensorrt: with a plan for this machine's NVIDIA GPU beside the engines. tensorrt-rtx:"
            " with plans for GPUs that need not be here. triton: a model repository for Triton."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The converted bundle, or the repository.")],
    options: ConvertOptions,
    as_json: AsJson = False,
) -> None:
    """Convert a bundle's engines to another format and check them, or write it for another server.

    Example: fathom bundle convert build/ml-100k/mobile --to ort --out build/ml-100k/phone
    """
    kind = artefacts.TRITON if to == "triton" else artefacts.BUNDLE
    check_outputs((out, kind), (options.timing_cache, artefacts.TIMING_CACHE), inputs=[bundle, options.checkpoint])
    if to == "triton":
        _convert_to_triton(bundle, out, options, as_json=as_json)
    else:
        _convert(bundle, to, out, options)
        show_bundle(out, as_json=as_json)


def _convert_to_triton(bundle: Path, out: Path, options: ConvertOptions, *, as_json: bool) -> None:
    from fathom.edge_profiles.profile import load_profile
    from fathom.exporter.formats.triton import write_triton

    model = write_triton(bundle, out, load_profile(options.profile))
    if as_json:
        show.print_json({"model": model})
    else:
        print(f"{out}: model {model}")


def _convert(bundle: Path, to: str, out: Path, options: ConvertOptions) -> None:
    if to == "ort":
        from fathom.exporter.formats.ort import convert_to_ort

        convert_to_ort(bundle, out)
    elif to == "cuda":
        from fathom.exporter.formats.cuda import convert_for_cuda

        convert_for_cuda(bundle, out)
    elif to in ("tensorrt", "tensorrt-rtx"):
        from fathom.exporter.formats.tensorrt import add_plans
        from fathom.runtime.engines.plans import FLAVOURS

        gpus = "8.6,8.9" if options.gpu is None and to == "tensorrt-rtx" else options.gpu
        capabilities = None if gpus is None else [each.strip() for each in gpus.split(",") if each.strip()]
        add_plans(bundle, out, FLAVOURS[to], capabilities, timing_cache=options.timing_cache)
    else:
        from fathom.exporter.formats.executorch import convert_to_executorch
        from fathom.training.checkpoint import Checkpoint

        if options.checkpoint is None:
            raise ConfigError("executorch needs --checkpoint: .pte files are made from the network itself")
        convert_to_executorch(bundle, Checkpoint.load(options.checkpoint), out)
