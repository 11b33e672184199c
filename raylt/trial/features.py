"""What FID and KID see of an image: Inception's features, or those of a small classifier for digits."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d, relu
from torch.nn.utils.fusion import fuse_conv_bn_eval

from raylt.diffusion.data import ImageSet, to_float
from raylt.diffusion.device import exact
from raylt.diffusion.tensors import NamedTensors, digest_of_tensors
from raylt.errors import EnvironmentFailure, InputError

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_DIMS, INCEPTION_CLASSES = 2048, 1008
CNN_DIMS = 64
CNN_CLASSES = 10
CNN_IMAGES = 20_000  # training images that a classifier sees at most
CNN_BATCH = 32
CNN_LEARNING_RATE = 3e-3
_CPU_BATCH, _GPU_BATCH = 16, 250  # a small one stays in the caches of a CPU


@runtime_checkable
class FeatureExtractor(Protocol):
    """Images -> features. `digest`: SHA-256 of the weights that decide them."""

    @property
    def name(self) -> str: ...

    @property
    def dims(self) -> int: ...

    @property
    def digest(self) -> str: ...

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """uint8 (N, C, H, W) on any device -> float32 (N, dims) on the extractor's."""
        ...


class InceptionFeatures:
    """The 2048 features of torch-fidelity's Inception v3: those of TensorFlow's FID (Heusel et al. 2017, arXiv 1706.08500).

    Images of any size are scaled to 299x299 as TensorFlow 1 does; grey ones are repeated to three channels. Computed
    in fp32 without TF32, so that a GPU gives a CPU's features but for rounding.
    """

    name = "inception"
    dims = INCEPTION_DIMS

    def __init__(self, device: torch.device | str, weights: Mapping[str, Tensor] | str | Path | None = None) -> None:
        """`weights`: those of `load_inception`, or the file that it reads. Raises as it does."""
        self._device = torch.device(device)
        state = weights if isinstance(weights, Mapping) else load_inception(weights)
        # Both are faster on a CPU, together 1.5 times, and equal but for rounding (1e-6).
        layout = torch.channels_last if self._device.type == "cpu" else torch.preserve_format
        self._network = _without_norms(_inception(state)).to(memory_format=layout).to(self._device)
        self.digest = digest_of_tensors(state)

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        _check_images(images_NCHW, (1, 3))
        rgb_NCHW = images_NCHW.expand(-1, 3, -1, -1)
        return _in_batches(lambda x_NCHW: self._network(x_NCHW)[0], rgb_NCHW, self._device, self.dims)


class SmallCnn(nn.Module):
    """Three convolutions and a 64-d layer: classifies grey digits of any size from 4 pixels (8, 16 and 28 are used)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.pool = nn.AdaptiveMaxPool2d(4)
        self.hidden = nn.Linear(64 * 4 * 4, CNN_DIMS)
        self.out = nn.Linear(CNN_DIMS, CNN_CLASSES)

    def features(self, x_NCHW: Tensor) -> Tensor:
        """float (N, 1, H, W), -1..1 -> (N, 64), the penultimate layer after its ReLU."""
        h = relu(self.conv1(x_NCHW))
        h = relu(self.conv2(max_pool2d(h, 2) if h.shape[-1] >= 16 else h))
        h = self.pool(relu(self.conv3(h)))
        return relu(self.hidden(h.flatten(1)))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """float (N, 1, H, W), -1..1 -> logits (N, 10)."""
        logits_NK: Tensor = self.out(self.features(x_NCHW))
        return logits_NK


def train_small_cnn(images: ImageSet, seed: int, epochs: int) -> NamedTensors:
    """The state of a `SmallCnn` trained on the first 20 000 training images, on the CPU: Adam, one cosine, batches of 32.

    Equal bit for bit for equal images, seed, epochs and threads; torch's own random state is left as it was. Raises
    `InputError` for images without labels or in colour.
    """
    if images.train_labels_N is None or images.train_NCHW.shape[1] != 1:
        raise InputError("a classifier for features needs grey images with labels; metrics: features: inception needs neither")
    x_NCHW, labels_N = images.train_NCHW[:CNN_IMAGES].cpu(), images.train_labels_N[:CNN_IMAGES].cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallCnn()
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=CNN_LEARNING_RATE)
    steps = epochs * -(-len(x_NCHW) // CNN_BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    with torch.enable_grad():
        for _ in range(epochs):
            for index_B in torch.split(torch.randperm(len(x_NCHW), generator=order), CNN_BATCH):
                optimizer.zero_grad()
                torch.autograd.backward(cross_entropy(model(to_float(x_NCHW[index_B])), labels_N[index_B]))
                optimizer.step()
                schedule.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class CnnFeatures:
    """The 64 penultimate features of a trained `SmallCnn`. FID over them compares with no FID over Inception's."""

    dims = CNN_DIMS

    def __init__(self, state: Mapping[str, Tensor], name: str, device: torch.device | str) -> None:
        """`state` is that of `train_small_cnn`; `name` says in every table what the numbers rest on (`digits-cnn`)."""
        self.name, self.digest = name, digest_of_tensors(state)
        self._device = torch.device(device)
        with torch.random.fork_rng(devices=[]):
            self._network = SmallCnn()
        self._network.load_state_dict(dict(state))
        self._network.to(self._device).eval().requires_grad_(False)

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        _check_images(images_NCHW, (1,))
        return _in_batches(lambda x_NCHW: self._network.features(to_float(x_NCHW)), images_NCHW, self._device, self.dims)


def _decides_features(name: str) -> bool:
    """Whether a tensor of Inception decides its 2048 features: not the classifier behind them, not a counter."""
    return not name.startswith("fc.") and not name.endswith("num_batches_tracked")


def _check_images(images_NCHW: Tensor, channels: tuple[int, ...]) -> None:
    shape = tuple(images_NCHW.shape)
    if images_NCHW.dtype != torch.uint8 or len(shape) != 4 or shape[1] not in channels:
        expected = f"uint8 of shape (N, {' or '.join(map(str, channels))}, H, W)"
        raise ValueError(f"images are {images_NCHW.dtype} of shape {shape}; expected {expected}")


def _in_batches(network: Callable[[Tensor], Tensor], images_NCHW: Tensor, device: torch.device, dims: int) -> Tensor:
    """Features (N, dims) float32 on the device: without gradients, without TF32, with deterministic convolutions."""
    size = _CPU_BATCH if device.type == "cpu" else _GPU_BATCH
    features_ND = torch.empty(len(images_NCHW), dims, device=device)
    with torch.inference_mode(), exact():
        for start in range(0, len(images_NCHW), size):
            batch_NCHW = images_NCHW[start : start + size].to(device)
            features_ND[start : start + size] = network(batch_NCHW)
    return features_ND


def load_inception(weights_path: str | Path | None = None) -> NamedTensors:
    """The tensors that decide Inception's features, by name.

    From `weights_path`, else `$RAYLT_INCEPTION`, else torch-fidelity's own download, kept in torch's cache. Raises
    `InputError` where the file named is missing or is no such file, `EnvironmentFailure` where there is neither a file
    nor a network.
    """
    named = weights_path or os.environ.get("RAYLT_INCEPTION") or None
    path = _downloaded() if named is None else Path(named).expanduser()
    if not path.is_file():
        raise _unusable(str(path), "no such file")
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")  # tensors alone, or an error
        state = {name: tensor.contiguous() for name, tensor in content.items() if _decides_features(name)}
        _inception(state)
    except Exception as error:
        raise _unusable(str(path), " ".join(str(error).split())[:200] or type(error).__name__) from error
    return state


def _unusable(path: str, cause: str) -> InputError:
    expected = f"the file {INCEPTION_FILE} of torch-fidelity"
    return InputError(f"RAYLT_INCEPTION: no usable Inception weights in {path} ({cause}); {expected}")


def _inception(state: Mapping[str, Tensor]) -> nn.Module:
    """torch-fidelity's Inception v3 in evaluation mode, cut at its 2048 features."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    norms = [name.removesuffix("running_var") for name in state if name.endswith("running_var")]
    rest = {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}
    rest |= {"fc.weight": torch.zeros(INCEPTION_CLASSES, INCEPTION_DIMS), "fc.bias": torch.zeros(INCEPTION_CLASSES)}
    pickled = io.BytesIO()  # torch-fidelity takes a pickle alone: one of our own making, which it reads and forgets
    torch.save({**state, **rest}, pickled)
    pickled.seek(0)
    with torch.random.fork_rng(devices=[]):
        network: nn.Module = FeatureExtractorInceptionV3("inception", [str(INCEPTION_DIMS)], pickled, verbose=False)
    return network


def _without_norms(network: nn.Module) -> nn.Module:
    """The same function, each batch norm folded into the convolution before it."""
    from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d

    for part in network.modules():
        if isinstance(part, BasicConv2d):
            part.conv, part.bn = fuse_conv_bn_eval(part.conv, part.bn), nn.Identity()
    return network


def _downloaded() -> Path:
    """Where torch-fidelity keeps its Inception weights, in torch's cache; downloaded once."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    try:
        torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, progress=False, weights_only=True, map_location="cpu")
    except Exception as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        advice = f"set RAYLT_INCEPTION to the file {INCEPTION_FILE}, or let this machine reach the internet once"
        raise EnvironmentFailure(f"no Inception weights from {URL_INCEPTION_V3} ({cause}); {advice}") from error
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
