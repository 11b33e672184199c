"""A small sweep in a world of our own making: hosts, clocks, processes, disks and buckets, all of which fail by seed.

The store, the ledger, the lease, the claims and the dispatcher are raylt's own. Below them lie a filesystem in memory that
knows what was synced (`disk.py`) and an S3 server in memory (`bucket.py`); beside them clocks, threads, locks and processes
that live in simulated time (`world.py`, `system.py`). In place of training there is a hash (`work.py`). One seed decides
all that happens, so that whatever goes wrong can be seen again.
"""
