"""Controls: what a ticket is compared with, to learn what its success rests on. Each changes one thing about it.

| control       | mask                                            | weights it starts from     | trained |
|---------------|-------------------------------------------------|----------------------------|---------|
| `reinit`      | the ticket's                                    | another initialisation     | 0 .. T  |
| `shuffled`    | the ticket's, permuted within each layer        | the rewind point's         | k .. T  |
| `random`      | random within each block, as many as the ticket | the rewind point's         | k .. T  |
| `small-dense` | none: a narrower U-Net of the ticket's FLOPs    | an initialisation          | 0 .. T  |

Reinit and shuffled masks: Frankle & Carbin 2019 (arXiv 1803.03635), section 2, and Frankle et al. 2021 (arXiv
2009.08576), section 4. `random` keeps a block's density but not those of its layers, so it differs from `shuffled` where
the layers' shares matter. Order, noise and timesteps are the ticket's own, and so is the number of steps in all (k steps
of a rewound ticket are the dense training's): a control is never given less than its ticket.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from raylt.diffusion.flops import count_flops, narrower_unet
from raylt.diffusion.rng import Draw, generator, seed_of
from raylt.spec.schema import matches
from raylt.spec.vocabulary import Control
from raylt.ticket.find import Round, TicketRunner
from raylt.ticket.mask import Mask
from raylt.ticket.ticket_search import TicketSearch

FROM_SCRATCH = ("reinit", "small-dense")  # trained 0 .. T in the table above, not from the rewind point


def control_round(runner: TicketRunner, ticket: Round, control: Control) -> Round:
    """The control of a ticket that the runner found, trained; its index is the ticket's."""
    search, mask = runner.search, ticket.mask
    draw = generator(search.seed, Draw.CONTROL, ticket.index)
    if control == "reinit":
        search = replace(search, start_seed=seed_of(search.seed, Draw.CONTROL, 0) % 2**32, rewinds_to=0)
    elif control == "shuffled":
        mask = shuffled_within_layers(mask, draw)
    elif control == "random":
        mask = random_within_blocks(search, mask, draw)
    else:
        smaller = narrower_unet(search.unet_config, count_flops(search.unet_config).of(mask.counts))
        search = replace(search, allocation=None, rewinds_to=0, smaller_unet=smaller)
        mask = Mask.dense(search.layers)
    return TicketRunner(search, runner.images, runner.store, runner.progress).train(ticket.index, mask, None)


def shuffled_within_layers(mask: Mask, draw: torch.Generator) -> Mask:
    """Each layer's mask in random order: its density stays, its structure goes."""
    return Mask(
        {
            name: keep.reshape(-1)[torch.randperm(keep.numel(), generator=draw)].reshape(keep.shape)
            for name, keep in mask.layers.items()
        }
    )


def random_within_blocks(search: TicketSearch, mask: Mask, draw: torch.Generator) -> Mask:
    """A block's kept weights spread evenly over its layers, those kept dense excepted: its density stays, its layers' go."""
    keep = dict(mask.layers)
    for block in search.spec.blocks:
        layers = [la for la in search.layers if la.block == block and not matches(la.name, search.spec.ticket.keep_dense)]
        if not layers:
            continue
        pool = torch.cat([mask.layers[layer.name].reshape(-1) for layer in layers])
        parts = torch.split(pool[torch.randperm(len(pool), generator=draw)], [layer.size for layer in layers])
        keep |= {layer.name: part.reshape(layer.shape) for layer, part in zip(layers, parts, strict=True)}
    return Mask(keep)
