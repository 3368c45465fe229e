"""The exchange of gradients during the backward pass."""
import torch

from debzero.train.gradient_mean import GradientMean


class Group:
    """As NCCL's: it keeps what was sent until somebody waits for the work itself, not for its future."""

    def __init__(self):
        self.kept, self.sent = [], 0

    def allreduce_coalesced(self, tensors):
        self.kept += tensors
        self.sent += len(tensors)
        return self

    def wait(self):
        self.kept.clear()


def test_what_was_sent_is_kept_no_longer_than_the_exchange_takes():
    model, group = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4))), Group()
    mean = GradientMean(list(model.parameters()), group)
    mean.start()
    model(torch.ones(2, 3)).sum().backward()
    mean.finish()
    assert (group.sent, group.kept) == (8, [])
