"""Everything durable: files, stages addressed by their content, the lease, the ledger. Begin with `stages` and `ledger`."""

from raylt.store.lease import Lease
from raylt.store.ledger import Ledger
from raylt.store.stages import Manifest, Output, Stage, Store

__all__ = ["Lease", "Ledger", "Manifest", "Output", "Stage", "Store"]
