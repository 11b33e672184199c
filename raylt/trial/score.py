"""A trained ticket -> its numbers under a named protocol: held-out loss, FID and KID, each a memoised stage."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import Tensor

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import ImageSet
from raylt.diffusion.sample import Sampling, chunk_size, held_out_loss, sample_chunk
from raylt.diffusion.tensors import NamedTensors, pack, unpack
from raylt.diffusion.unet import build_unet, load_parameters
from raylt.spec import SweepSpec
from raylt.spec.vocabulary import Protocol
from raylt.store import Manifest, Output, Stage, Store
from raylt.store.layout import CLASSIFIER, GRID, SAMPLES, STATISTICS
from raylt.ticket.find import Round, data_key
from raylt.trial.features import CnnFeatures, FeatureExtractor, InceptionFeatures, train_small_cnn
from raylt.trial.fid import Statistics, fid, statistics
from raylt.trial.kid import RealFeatures, kid
from raylt.trial.parts import in_parts

BROKEN_ABOVE = 0.5  # of the loss that predicting zero gives
KID_REFERENCES = 10_000  # real features kept for KID
REFERENCE_CHUNK = 2_500  # training images between two checkpoints of the reference features
GRID_IMAGES = 64
SAVE_SAMPLES_ABOVE = 5_000  # fewer are sampled again after a kill
CLASSIFIER_SEED, CLASSIFIER_EPOCHS = 0, {"digits-cnn": 10, "mnist-cnn": 1}


@dataclass(frozen=True)
class Score:
    """A round's numbers. `broken`: the loss is above half of what predicting zero gives; such a ticket is never ranked."""

    loss: float
    fid: float
    kid: float
    kid_sd: float | None  # over KID's subsets; None where there is but one of the images or of the reference, and of old values
    broken: bool
    loss_stage: Stage
    sample_stage: Stage


@dataclass(frozen=True)
class Reference:
    """What FID and KID are measured against."""

    stage: str
    statistics: Statistics
    features: RealFeatures


class Scorer:
    """Scores the rounds of one sweep's trials under one protocol; keeps features and reference between them."""

    def __init__(
        self, spec: SweepSpec, compute: Compute, images: ImageSet, protocol: Protocol,
        inception: NamedTensors | None = None,
    ) -> None:  # fmt: skip
        """`inception`: its weights, where its features are used; None: those of this machine."""
        self.spec, self.compute, self.images, self.inception = spec, compute, images, inception
        self.name, self.protocol = protocol, spec.protocol(protocol)
        self._extractor: FeatureExtractor | None = None
        self._reference: Reference | None = None

    @cached_property
    def shape_CHW(self) -> tuple[int, int, int]:
        channels, size = self.spec.image_shape
        return channels, size, size

    def score(self, trained: Round, store: Store) -> Score:
        loss_stage, loss = self._loss_stage(trained, store)
        sample_stage, sampled = self._sample_stage(trained, store)
        numbers = (sampled.values["fid"], sampled.values["kid"], sampled.values.get("kid_sd"))
        return Score(loss.values["loss"], *numbers, loss.values["broken"], loss_stage, sample_stage)

    def _loss_stage(self, trained: Round, store: Store) -> tuple[Stage, Manifest]:
        """Held-out denoising loss of the EMA weights."""

        def compute(stage: Stage) -> Output:
            images, schedule = self.images.test_NCHW, self.spec.train.beta_schedule
            loss, zero = held_out_loss(self._model(trained), images, schedule, self.compute, self.name)
            return Output({"loss": loss, "zero": zero, "broken": not loss <= BROKEN_ABOVE * zero})

        stage = store.stage({"kind": "loss", "of": trained.stage.digest, **self._own_noise})
        return stage, stage.make(compute)

    def _sample_stage(self, trained: Round, store: Store) -> tuple[Stage, Manifest]:
        protocol, keep = self.protocol, self.spec.metrics.keep_samples
        stage = store.stage(
            {
                "kind": "sample",
                "of": trained.stage.digest,
                "sampler": protocol.sampler,
                "steps": protocol.steps,
                "samples": protocol.samples,
                "reference": self.reference(store).stage,
                "keep": keep,
                **({"spacing": protocol.spacing} if protocol.spacing == "trailing" else {}),  # leading was all there was
                **self._own_noise,
            }
        )
        return stage, stage.make(lambda own: self._sample(own, trained, store))

    @property
    def _own_noise(self) -> dict[str, str]:
        """What the key of a score says of its noise and its held-out images: nothing where they are the search's."""
        return {} if self.name == "search" else {"noise": self.name}

    def _sample(self, stage: Stage, trained: Round, store: Store) -> Output:
        model, protocol = self._model(trained), self.protocol
        beta_schedule = self.spec.train.beta_schedule
        how = Sampling(protocol.sampler, protocol.steps, beta_schedule, self.compute, protocol.spacing, self.name)

        def chunk(index: int, count: int) -> Tensor:
            return sample_chunk(model, self.shape_CHW, index, count, how)

        keep = protocol.samples > SAVE_SAMPLES_ABOVE
        images_NCHW = in_parts(stage, "images", protocol.samples, chunk_size(self.shape_CHW), chunk, keep=keep)
        reference = self.reference(store)
        features_ND = self.extractor(store)(images_NCHW)
        files = {GRID: pack(images={"first": images_NCHW[:GRID_IMAGES]})}
        if self.spec.metrics.keep_samples:
            files[SAMPLES] = _npz(images_NCHW)
        kid_mean, kid_sd = kid(features_ND, reference.features)
        return Output({"fid": fid(features_ND, reference.statistics), "kid": kid_mean, "kid_sd": kid_sd}, files)

    def _model(self, trained: Round) -> UNet2DModel:
        model = build_unet(trained.unet_config, seed=0)
        load_parameters(model, trained.trained["ema"])
        return model.to(self.compute.device).to(memory_format=self.compute.layout).eval()

    # --- features and reference: one of each for a data set ---------------------------------------------------------

    def extractor(self, store: Store) -> FeatureExtractor:
        if self._extractor is None:
            name = self.protocol.features
            assert name is not None
            device = torch.device(self.compute.device)
            self._extractor = (
                InceptionFeatures(device, self.inception) if name == "inception" else self._classifier(name, device, store)
            )
        return self._extractor

    def _classifier(self, name: str, device: torch.device, store: Store) -> FeatureExtractor:
        key: dict[str, object] = {
            "kind": "classifier", "name": name, "data": data_key(self.spec, self.images), "seed": CLASSIFIER_SEED,
            "epochs": CLASSIFIER_EPOCHS[name], "threads": self.compute.threads,
        }  # fmt: skip

        def compute(stage: Stage) -> Output:
            state = train_small_cnn(self.images, CLASSIFIER_SEED, CLASSIFIER_EPOCHS[name])
            return Output(files={CLASSIFIER: pack(state=state)})

        stage = store.stage(key)
        stage.make(compute)
        return CnnFeatures(unpack(stage.read(CLASSIFIER))["state"], name, device)

    def reference(self, store: Store) -> Reference:
        """That of the training images."""
        if self._reference is None:
            extractor, count = self.extractor(store), self.spec.metrics.reference or len(self.images.train_NCHW)
            count = min(count, len(self.images.train_NCHW))
            stage = store.stage(
                {
                    "kind": "reference",
                    "data": data_key(self.spec, self.images),
                    "features": extractor.name,
                    "weights": extractor.digest,
                    "images": count,
                    **self.compute.key(),
                }
            )
            stage.make(lambda own: self._compute_reference(own, extractor, count))
            self._reference = self._load_reference(stage)
        return self._reference

    def _compute_reference(self, stage: Stage, extractor: FeatureExtractor, count: int) -> Output:
        def chunk(index: int, size: int) -> Tensor:
            first = index * REFERENCE_CHUNK
            return extractor(self.images.train_NCHW[first : first + size]).cpu()

        features_ND = in_parts(stage, "features", count, REFERENCE_CHUNK, chunk, keep=True)
        real = statistics(features_ND.to(self.compute.device))
        tensors = {"mean": real.mean_D, "covariance": real.covariance_DD}
        kept_ND = features_ND[:KID_REFERENCES]
        return Output({"images": count}, {STATISTICS: pack(real=tensors, kid={"features": kept_ND})})

    def _load_reference(self, stage: Stage) -> Reference:
        groups, device = unpack(stage.read(STATISTICS)), self.compute.device
        count = int(stage.read_manifest().values["images"])
        real = Statistics(groups["real"]["mean"].to(device), groups["real"]["covariance"].to(device), count)
        return Reference(stage.digest, real, RealFeatures(groups["kid"]["features"].to(device)))


def _npz(images_NCHW: Tensor) -> bytes:
    """The images as `samples.npz`: one array `arr_0`, uint8, N x H x W x C, as FID tools of the field read it."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images_NCHW.permute(0, 2, 3, 1).numpy())
    return buffer.getvalue()
