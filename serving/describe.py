"""The server's description of itself: GetBundle's answer, and the line it prints when it is ready."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fathom.edge_profiles.profile import TIER_DEFAULTS, DeviceProfile, load_profile, profile_names
from fathom.errors import ConfigError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.selector.certificate import Certificate
from fathom.selector.chooser import DepthChooser
from fathom.selector.drift import FeatureDrift
from fathom.selector.policy import CertifiedRouting


@dataclass(frozen=True)
class DeploymentInfo:
    """A bundle in service."""

    name: str
    version: str
    items: int
    depths: tuple[int, ...]
    profile: str
    engine: str
    policy: str

    def __str__(self) -> str:
        return (
            f"bundle {self.name} {self.version} ({self.items} items), profile {self.profile},"
            f" depths {', '.join(map(str, self.depths))}, {self.policy}, {self.engine}"
        )


@dataclass(frozen=True)
class ServerInfo:
    """A server that is ready; ``metrics_address`` is None when it shows no metrics."""

    address: str
    metrics_address: str | None
    bundles: tuple[DeploymentInfo, ...]
    started_s: float
    workers: int = 1
    admin_address: str | None = None
    http_address: str | None = None
    secure: bool = False

    def __str__(self) -> str:
        web = "https" if self.secure else "http"
        metrics = f", metrics {web}://{self.metrics_address}/metrics" if self.metrics_address else ""
        tls = " (TLS)" if self.secure else ""
        http = f", {web}://{self.http_address}" if self.http_address else ""
        admin = f", admins on {self.admin_address}" if self.admin_address else ""
        processes = f", {self.workers} processes" if self.workers > 1 else ""
        bundles = "; ".join(map(str, self.bundles))
        places = f"{processes}{http}{admin}{metrics}"
        return f"ready on {self.address}{tls}: {bundles}{places} (warmed up in {self.started_s:.1f} s)"


def served_profiles(bundle: Bundle) -> dict[str, DeviceProfile]:
    """Every name and tier that a request may give, for the shipped profiles that share a depth with the bundle."""
    depths = set(bundle.depths)
    named = {name: profile for name in profile_names() if depths & set((profile := load_profile(name)).depths)}
    return named | {tier: named[name] for tier, name in TIER_DEFAULTS.items() if name in named}


def own_profile(name: str, bundle: Bundle, *, force: bool = False) -> DeviceProfile:
    """The profile of requests that name none; raises ConfigError when the bundle has none of its depths.

    Also, without ``force``, when `fathom profiles check` found that it does not fit.
    """
    profile = load_profile(name)
    if not set(profile.depths) & set(bundle.depths):
        allowed, served = _listed(profile.depths), _listed(bundle.depths)
        raise ConfigError(
            f"profile {profile.name} allows depths {allowed}, but {bundle.path} has {served}; choose another --profile"
        )
    fit = bundle.manifest.fits.get(profile.name)
    if fit is not None and not force and not fit.fits(profile.memory_limit_mb):
        raise too_large(bundle.path, profile, fit.peak_mb)
    return profile


def too_large(path: Path, profile: DeviceProfile, peak_mb: float | None) -> ConfigError:
    """A profile's memory does not suffice; ``peak_mb``: None where it took more than could be measured."""
    took = "more than that" if peak_mb is None else f"{peak_mb:.1f} MB"
    return ConfigError(
        f"{path}: serving it under profile {profile.name} took {took} of {profile.memory_limit_mb} MB; slice it, export"
        " it in a smaller precision, or serve it with --force"
    )


def bundle_message(
    bundle: Bundle, engine: str, profiles: Mapping[str, DeviceProfile], default: DeviceProfile
) -> pb.GetBundleResponse:
    """GetBundle's answer."""
    manifest = bundle.manifest
    distinct = {profile.name: profile for profile in (*profiles.values(), default)}
    return pb.GetBundleResponse(
        name=manifest.name,
        version=manifest.version,
        strategy=manifest.strategy,
        precision=manifest.precision,
        items=manifest.items,
        max_history=manifest.model.max_history,
        uses_timestamps=manifest.model.uses_timestamps or manifest.request_time is not None,
        context=() if manifest.context is None else sorted(manifest.context.features),
        depths=[
            pb.DepthQuality(
                depth=depth,
                quality={
                    name: pb.QualityInterval(value=each.value, low=each.low, high=each.high)
                    for name, each in found.items()
                },
            )
            for depth, found in manifest.quality.items()
        ],
        default_profile=default.name,
        profiles=[
            pb.ProfileInfo(name=name, tier=profile.tier, depths=profile.depths)
            for name, profile in sorted(distinct.items())
        ],
        engine=engine,
    )


def routing_message(chooser: DepthChooser, profile: DeviceProfile, certificate: Certificate | None) -> pb.Routing:
    """How the requests of a profile are routed now, and what feedback has found."""
    policy = chooser.policy(profile)
    message = pb.Routing(policy=policy.words(profile))
    if not isinstance(policy, CertifiedRouting) or certificate is None:
        return message
    promise = certificate.promises[policy.kind]
    message.certified, message.kind, message.eps, message.delta = True, policy.kind, promise.eps, promise.delta
    if policy.monitor is not None:
        evidence = policy.monitor.evidence
        message.feedback_samples, message.feedback_agreement = evidence.count, evidence.mean
        message.expected_agreement, message.alarm = evidence.expected, policy.monitor.alarm
        again = policy.monitor.recertification
        if again is not None:
            message.recertification_attempts, message.recertified = again.attempts, again.succeeded
            message.recertification_samples, message.recertification_needed = again.gathered, again.needed
    return message


def drift_message(drift: FeatureDrift) -> pb.Drift:
    """How far live requests are from the training data, by feature."""
    features = [pb.FeatureDrift(name=name, mean_rank=rank, alarm=alarm) for name, rank, alarm in drift.readings]
    return pb.Drift(samples=drift.samples, features=features)


def _listed(depths: tuple[int, ...]) -> str:
    return ", ".join(map(str, depths))
