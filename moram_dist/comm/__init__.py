"""The only home of torch.distributed and of ZeRO: ranks, groups, gathering of parameters."""
