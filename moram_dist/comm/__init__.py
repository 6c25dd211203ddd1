"""All of torch.distributed and of ZeRO is used here: ranks, groups, gathering of parameters."""
