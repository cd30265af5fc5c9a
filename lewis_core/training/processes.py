"""What the processes of one training run share."""

import sys


def leave_process_group() -> None:
    """Leave the group that training joined, if it joined one; call it when all processes come to the same end.

    A process that ends as a member may be aborted by its communication threads ("terminate called without an active
    exception"), and the launcher would then count a finished training as failed.
    """
    if "torch.distributed" not in sys.modules:
        return
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
