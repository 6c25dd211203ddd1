"""All use of torch.distributed and ZeRO: ranks, groups, gathering of parameters."""
